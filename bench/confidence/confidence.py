"""Which confidence ranks best, and what does it save? On record sets that hold the exits' outputs.

Three disjoint parts of each set, for each seed: one to fit confidences on (left unused by those that have
nothing to fit), one to search on, one to report on. Reported are

    AUROC   of being right, at the exits that most samples leave at in the frontier of max-probability
    J       after a search with each confidence, at five trade-offs
    chain   the exits of a first search alone, thresholds searched again: with each exit on its own, and with
            answers that look back at the exits before (chain.py)

    python bench/confidence --records FOLDER [FOLDER ...] [--seeds 10]
    python bench/confidence --stored          table and plot again, from the file alone

A FOLDER is one set, or has subfolders <seed>/search and <seed>/report
(``bench/search/recordsets.py``). Results are kept
in bench/results/confidence.json; confidence.png shows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import offramp
from bench.confidence.chain import LINKED, Exit, chained, linked
from bench.search import recordsets
from bench.shared import command, results
from bench.shared.measures import objective
from offramp import CostTable, ExitRecords
from offramp.core.ranking import auroc
from offramp.tasks.confidence import get_confidence, get_fitted, is_fitted

TRADEOFFS = (0.8, 0.9, 0.95, 0.97, 0.99)
USUAL = "max-probability"
KINDS = (USUAL, "margin", "entropy", "temperature", "learned")
CARRY = 5  # exits at which AUROC is reported
FIT, SEARCH = 0.2, 1 / 3  # of a pool; of <seed>/search 0.3 are to fit on
VIEWS = 4  # of each digit in the sets of ``bench/search digits``, a quarter of the rows apart

Parts = tuple[ExitRecords, ExitRecords, ExitRecords, CostTable]
Rows = dict[str, list[Any]]


def parts_of(folder: Path, seeds: int) -> Iterator[Parts]:
    """(to fit on, to search on, to report on, costs) for each seed."""
    for seed, (records, report, costs) in enumerate(recordsets.load_seeds(folder, seeds)):
        digits = records.samples // VIEWS
        picked = np.tile(np.random.default_rng(seed).random(digits) < 0.3, VIEWS)
        yield records.subset(picked), records.subset(~picked), report, costs
    if not recordsets.seed_folders(folder):
        records, costs = recordsets.load(folder)
        for seed in range(seeds):
            fit, search, report = records.split((FIT, SEARCH, 1 - FIT - SEARCH), seed)
            yield fit, search, report, costs


def restated(records: ExitRecords, confidence_fn: Callable[[Exit, Tensor], Tensor]) -> ExitRecords:
    """The same records with another confidence."""
    confidence = records.confidence.copy()
    assert records.logits is not None
    for p, c in np.argwhere(records.exists):
        confidence[p, c] = confidence_fn((p, c), torch.from_numpy(records.logits[p, c])).numpy()
    return replace(records, confidence=confidence)


def fitted(kind: str, fit: ExitRecords) -> Callable[[Exit, Tensor], Tensor]:
    """(exit, outputs) -> confidence, fitted where there is something to fit."""
    if not is_fitted(kind):
        return lambda _, outputs: get_confidence(kind)(outputs)
    calibrators = {}
    assert fit.logits is not None
    for p, c in np.argwhere(fit.exists):
        calibrators[p, c] = get_fitted(kind)(fit.logits.shape[-1])
        calibrators[p, c].fit(torch.from_numpy(fit.logits[p, c]), torch.from_numpy(fit.quality[p, c]))
    return lambda exit_, outputs: calibrators[exit_](outputs)


def chain_of(records: ExitRecords, config: offramp.ExitConfig) -> list[Exit]:
    """A configuration's exits by index, in order."""
    return [
        (records.positions.index(choice.position), records.heads.index(choice.head))
        for choice in config.choices
    ]


def carriers(records: ExitRecords, costs: CostTable, frontier: offramp.Frontier) -> list[Exit]:
    """The exits that most samples leave at, over the configurations of a frontier."""
    load: dict[Exit, float] = {}
    for config in frontier:
        shares = offramp.evaluate(records, costs, config).exit_shares
        for exit_ in chain_of(records, config):
            load[exit_] = load.get(exit_, 0.0) + float(shares[exit_[0]])
    return sorted(load, key=lambda exit_: -load[exit_])[:CARRY]


def one_seed(parts: Parts, found: dict[str, Rows], chains: bool) -> None:
    """Adds one seed's figures; those of chains take most of the time."""
    fit, search, report, costs = parts
    views = {kind: tuple(restated(r, fitted(kind, fit)) for r in (search, report)) for kind in KINDS}
    searched = {kind: offramp.search(views[kind][0], costs, tradeoffs=TRADEOFFS, step=None) for kind in KINDS}
    carry = carriers(views[USUAL][1], costs, searched[USUAL])
    for kind in KINDS:
        there = views[kind][1]
        chosen = searched[kind].by_tradeoff
        found["auroc"][kind].append([auroc(there.confidence[e], there.quality[e]) for e in carry])
        found["J"][kind].append([objective(there, costs, chosen[lam], lam) for lam in TRADEOFFS])
    exits = [chain_of(search, searched["temperature"].by_tradeoff[lam]) for lam in TRADEOFFS]
    for label in found["chain"] if chains else ():
        row = []
        for lam, chain in zip(TRADEOFFS, exits, strict=True):
            if label in LINKED:
                _, here, there = linked(label, chain, (fit, search, report))
                pair = chained(search, chain, here), chained(report, chain, there)
            else:
                pair = chained(views[label][0], chain), chained(views[label][1], chain)
            again = offramp.search(pair[0], costs, tradeoffs=[lam], step=None)
            row.append(objective(pair[1], costs, again.by_tradeoff[lam], lam))
        found["chain"][label].append(row)


def measure(folder: Path, seeds: int, chain_seeds: int, console: Console) -> Iterator[dict[str, Any]]:
    """One record set: what there is after each seed."""
    kinds = {"auroc": KINDS, "J": KINDS, "chain": (USUAL, "temperature", "learned", *LINKED)}
    found: dict[str, Rows] = {name: {kind: [] for kind in listed} for name, listed in kinds.items()}
    start = time.perf_counter()
    for seed, parts in enumerate(parts_of(folder, seeds)):
        one_seed(parts, found, chains=seed < chain_seeds)
        samples = {name: part.samples for name, part in zip(("fit", "search", "report"), parts, strict=False)}
        console.print(f"{folder.name}: {seed + 1} of {seeds}, {time.perf_counter() - start:.0f} s")
        yield {"seeds": seed + 1, "samples": samples, "tradeoffs": TRADEOFFS, **found}


def show(name: str, result: dict[str, Any], console: Console) -> None:
    """Means over seeds; J over that of max-probability, with the standard error of the difference."""
    tradeoffs = result["tradeoffs"]
    samples = ", ".join(f"{count:,} to {what} on" for what, count in result["samples"].items())
    for part, usual in (("J", USUAL), ("chain", "temperature")):
        if len(result[part][usual]) < 2:
            continue  # no standard error yet
        title = (
            f"{name}: {samples}; {len(result[part][usual])} seeds. J on the report part, over that of {usual}"
        )
        title += ", the same chain of exits for all" if part == "chain" else ""
        names = ("confidence", "AUROC", *(f"lambda {lam:g}" for lam in tradeoffs), "mean")
        table = results.table(title, names, title_justify="left")
        base = np.array(result[part][usual])
        for kind, rows in result[part].items():
            ranks = result["auroc"].get(kind) if part == "J" else None
            cells = [kind, f"{np.mean([np.mean(row) for row in ranks]):.4f}" if ranks else ""]
            ratio = np.mean(rows, 0) / base.mean(0)
            error = np.std(np.array(rows) - base, axis=0, ddof=1) / len(rows) ** 0.5 / base.mean(0)
            cells += [f"{r:.3f} ± {e:.3f}" for r, e in zip(ratio, error, strict=True)]
            table.add_row(*cells, f"{ratio.mean():.3f}")
        console.print(table)


def draw(document: dict[str, Any], path: Path) -> None:
    """One column per set: J over max-probability's above, a chain's J over each exit's on its own below."""
    from bench.shared.figures import PALETTE, panels

    size, settings = (4 * len(document), 6), {**PALETTE, "font.size": 9}
    with panels(path, (2, len(document)), size, settings=settings) as (_, axes):
        for column, (name, result) in enumerate(document.items()):
            for row, (part, usual) in enumerate((("J", USUAL), ("chain", "temperature"))):
                axis = axes[row, column]
                if not result[part][usual]:
                    axis.set_visible(False)
                    continue
                base = np.mean(result[part][usual], 0)
                for kind, rows in result[part].items():
                    width = 2 if kind in (usual, "learned") else 1
                    y = np.mean(rows, 0) / base
                    axis.plot(range(len(base)), y, "o-", markersize=3, linewidth=width, label=kind)
                axis.set_xticks(range(len(base)), [f"{lam:g}" for lam in result["tradeoffs"]])
                axis.set_title(f"{name}: {'one chain of exits' if row else 'searched with each'}", fontsize=9)
                axis.set_xlabel("λ")
                axis.set_ylabel(f"J over that of {usual}")
                if not column:
                    axis.legend(fontsize=7, frameon=False)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--records", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--chain-seeds", type=int, default=5, help="of these, so many for the chains")
    parser.add_argument("--stored", action="store_true", help="run nothing: print stored results, draw again")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for JSON and plot")
    options, console = parser.parse_args(), Console(width=132)
    torch.set_num_threads(1)
    path = options.out / "confidence.json"
    document = results.read(path)
    if not (options.stored or options.records):
        parser.error("expected --records FOLDER or --stored")
    for folder in [] if options.stored else options.records:
        name = folder.name.replace("_input", ", input exit")
        for result in measure(folder, options.seeds, options.chain_seeds, console):
            document[name] = result
            results.write(path, document, flat=True)
    for name, result in document.items():
        show(name, result, console)
    draw(document, path.with_suffix(".png"))
