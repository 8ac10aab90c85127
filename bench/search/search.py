"""Which search finds the better configurations, on the records it sees and on others, and in what time?

Every method chooses on the search split alone and is judged on the report split, with the same costs: what
others use (``offramp.baselines``) and what ``offramp.search`` has. Ends with PASS and FAIL lines.

    python bench/search                                   generated record sets (recordsets.py)
    python bench/search --records FOLDER [FOLDER ...]     stored ones; --generated adds the others
    python bench/search ... --charge 0 0.016              as they are, and with a cost added to every exit
    python bench/search --stored                          tables and plot again, from the file alone
    python bench/search --speed [--scaling]               seconds instead (speed.py)

A FOLDER is one set, split at random for each seed, or has subfolders <seed>/search and <seed>/report. Every
set and charge has an entry of its own in bench/results/search.json, kept until the same is run again;
search.png shows all but those of --samples and --name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from bench.search import recordsets
from bench.search.methods import DEFAULT, EXACT, METHODS, Pair, Sizes, generated, measure, stored
from bench.search.tables import Rows, optimism, show, show_verdicts, summary, verdicts
from bench.shared import command, results
from offramp.core.evaluate import full_quality

TRADEOFFS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
SAMPLES, REPORT, FEW = 5000, 10_000, 1000

Document = dict[str, Any]
Pairs = Callable[[], Iterator[Pair]]


@dataclass
class Measured:
    """Rows by method, one for each seed: on all samples to search on, and on few; and sizes."""

    rows: dict[str, Rows]
    few: dict[str, Rows]
    shape: tuple[int, ...] = (0, 0, 0, 0)  # P, C, samples to search on, samples to report on
    full: list[float] = field(default_factory=list)  # quality of the full model, by seed


def compare(name: str, pairs: Iterator[Pair], charge: float, options: argparse.Namespace) -> Document:
    """Every method on every seed of one record set, summed up."""
    found = measured(name, pairs, charge, options)
    result = {
        **dict(zip(("positions", "heads", "samples", "report_samples"), found.shape, strict=True)),
        "name": name, "usual": not (options.samples or options.name), "seeds": len(found.full),
        "charge": charge,
        "full_quality": float(np.mean(found.full)), "tradeoffs": list(options.tradeoffs),
        "left_out": [label for label, rows in found.rows.items() if not rows],
        "methods": {label: summary(rows, found.rows[DEFAULT]) for label, rows in found.rows.items() if rows},
        "few": optimism(found.few, options.few) if options.few else None,
    }  # fmt: skip
    result["verdicts"] = verdicts(result)
    return result


def measured(name: str, pairs: Iterator[Pair], charge: float, options: argparse.Namespace) -> Measured:
    """What takes the time, behind a progress bar."""
    found = Measured({label: [] for label in METHODS if label not in options.skip}, {EXACT: [], DEFAULT: []})
    with _bar() as bar:
        task = bar.add_task(name, total=options.seeds * len(found.rows))
        for seed, pair in enumerate(pairs):
            records = pair.search.records
            found.shape = (*records.confidence.shape, pair.report.records.samples)
            found.full.append(full_quality(pair.report.records))
            if charge:
                pair.costs = recordsets.charged(pair.costs, charge, records.exists)
            for label, rows in found.rows.items():
                bar.update(task, description=f"{name}: {label}")
                view = METHODS[label].view
                if pair.search.has(view) and pair.report.has(view):
                    rows.append(measure(METHODS[label], pair, options.tradeoffs))
                bar.advance(task)
            few = pair.smaller(options.few, seed)
            for label, rows in found.few.items() if options.few else ():
                bar.update(task, description=f"{name}: {label}, {options.few} samples")
                rows.append(measure(METHODS[label], few, options.tradeoffs))
    return found


def _bar() -> Progress:
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


# ----------------------------------------------------------------------------------------- sets and results


def record_sets(options: argparse.Namespace) -> dict[str, Pairs]:
    """Names and makers of the chosen sets; folders named ..._input hold sets with an exit at the input."""
    sizes = Sizes(options.seeds, options.samples or SAMPLES, options.report, options.positions, options.heads)
    sets: dict[str, Pairs] = {
        path.name.replace("_input", ", input exit"): lambda path=path: stored(path, sizes)
        for path in options.records
    }
    if options.generated or not (sets or options.input_exit):
        sets["generated"] = lambda: generated(sizes, False)
    if options.input_exit:
        sets["generated, input exit"] = lambda: generated(sizes, True)
    return sets


def entry(name: str, charge: float, options: argparse.Namespace) -> str:
    """What the results of one set and charge are stored under."""
    parts = [name]
    parts += [f"charge {charge:g}"] if charge else []
    parts += [f"{options.samples} samples"] if options.samples else []
    parts += [options.name] if options.name else []
    return ", ".join(parts)


def read(path: Path) -> Document:
    """Stored results, or a document without any."""
    found: Document = results.read(
        path, {"hypervolume_reference": {"quality": 0, "relative_cost": 1}, "sets": {}}
    )
    return found


def keep(path: Path, result: Document) -> None:
    """Add one result to the file, or replace the one of the same name."""
    document = read(path)
    document["sets"][result["name"]] = result
    results.write(path, document, flat=True)


# --------------------------------------------------------------------------------------------- command line


def _arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--records", type=Path, nargs="+", default=[], metavar="FOLDER")
    add("--generated", action="store_true", help="generated sets; the default without --records")
    add("--input-exit", action="store_true", help="generated sets with a small model at the input")
    add("--charge", type=float, nargs="+", default=[0.0], help="shares of the full model's cost, per exit")
    add("--seeds", type=int, default=10)
    add("--samples", type=int, help=f"to search on, at most; {SAMPLES:,} without it")
    add("--report", type=int, default=REPORT, help="samples of a generated set or a pool to report on")
    add("--few", type=int, default=FEW, help="samples to measure the optimism of the search at; 0 skips it")
    add("--positions", type=int, default=27, help="of generated sets")
    add("--heads", type=int, default=4, help="of generated sets")
    add("--tradeoffs", type=float, nargs="+", default=TRADEOFFS)
    add("--skip", nargs="+", default=[], metavar="METHOD", help="of: " + ", ".join(METHODS),
        choices=[label for label in METHODS if label != DEFAULT])  # fmt: skip
    add("--name", help="added to the names that results are stored under")
    add("--quick", action="store_true", help="two small sets, four trade-offs; stores nothing")
    add("--stored", action="store_true", help="run nothing: print stored results and draw the plot")
    add("--out", type=Path, default=results.RESULTS, help="folder for JSON and plot")
    _speed_arguments(parser)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.samples, options.few = 2, 1000, 300
        options.positions, options.heads, options.tradeoffs = 10, 2, (0.7, 0.85, 0.93, 0.98)
    return options


def _speed_arguments(parser: argparse.ArgumentParser) -> None:
    speed = parser.add_argument_group("--speed")
    add = speed.add_argument
    add("--speed", action="store_true", help="seconds, at --samples (50,000) generated ones")
    add("--points", type=int, default=501, help="trade-offs of the frontier, 0.5 to 1")
    add("--no-whole", action="store_true", help="leave out simulation as in the released code")
    add("--scaling", action="store_true", help="only: time over N, and over P * C")
    add("--scaling-samples", type=int, nargs="+", default=[5000, 15_000, 50_000, 150_000, 500_000])
    add("--scaling-exits", nargs="+", default=["7x2", "14x2", "14x4", "27x4", "27x8"])


def run(options: argparse.Namespace, console: Console) -> list[Document]:
    """Every set with every charge; each result is stored as soon as it is there."""
    found = []
    for charge in options.charge:
        for name, pairs in record_sets(options).items():
            found.append(compare(entry(name, charge, options), pairs(), charge, options))
            show(found[-1], console)
            if not options.quick:
                keep(options.out / "search.json", found[-1])
    return found


def main() -> None:
    options, console = _arguments(), Console(width=132)
    if options.speed or options.scaling:
        from bench.search import speed

        raise SystemExit(speed.run(options, console))
    path = options.out / "search.json"
    if options.stored:
        found = list(read(path)["sets"].values())
        for result in found:
            result["verdicts"] = verdicts(result)
            show(result, console)
    else:
        found = run(options, console)
    for result in found if len(found) > 1 else []:
        show_verdicts(result, console)
    if options.quick:
        return
    from bench.search.plot import draw

    draw(list(read(path)["sets"].values()), options.out / "search.png")
    console.print(f"{path}, {path.with_name('search.png')}")
