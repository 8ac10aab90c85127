"""Does the clock follow? Predicted time against measured, and a race with what one would run instead.

    tables       seconds of every segment and head, kept in WORK; what is searched with them is kept too
    prediction   configurations of three networks: share of the MACs, of the time as predicted, as measured
    overhead     all exits off against the unmodified model; what an exit costs beyond its head
    race         full model, smaller ones, other implementations of early exit, ours: accuracy on the report
                 split, latency and throughput on the same samples, call by call side by side
    picture      runtime.png

    python bench/runtime --backbones DIR --artifact DIR --work DIR [--part race --batch 1 --threads 1]

Configurations are chosen on the search split; ``keep_memory`` is on for every
entry of the race. A part may be run by
itself, for some settings only: it takes minutes on an idle machine and adds to the same JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import offramp
from bench.runtime.cases import NAMES, Case, load_case
from bench.runtime.prediction import overhead, prediction
from bench.runtime.race import Setting, entries, entry_accuracy, inside, race, rivals, versus
from bench.runtime.rivals import EXECUTIONS, ONNX, Entry
from bench.shared import command, results
from offramp import CostTable, ExitRecords, Frontier

PARTS = ("tables", "prediction", "overhead", "race", "picture")
RACERS = ("fashion", "text")  # of the others no answer means anything


class Bench:
    """Parts to run, and where their results go.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.console = arguments, Console(width=140)
        self.results: dict[str, Any] = results.read(arguments.out)
        arguments.work.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Every part of the command line, for every case, number of threads and batch size."""
        wanted = self.arguments.part
        for name in self.arguments.case if set(wanted) - {"picture"} else ():
            with self.timed(f"loading {name}"):
                case = load_case(name, self.arguments)
            for threads in self.arguments.threads:
                torch.set_num_threads(threads)
                for batch in self.arguments.batch:
                    self._settings(case, batch, threads)
        if "picture" in wanted and "race" in self.results:
            from bench.runtime.picture import draw

            draw(self.results["race"], self.arguments.out.with_suffix(".png"))

    def _settings(self, case: Case, batch: int, threads: int) -> None:
        key, wanted = f"{case.name}, batch {batch}, {_threads(threads)}", self.arguments.part
        if "tables" in wanted:
            with self.timed(f"tables: {key}"):
                self._measure(case, batch, threads)
        if "overhead" in wanted and batch in (1, 64):
            with self.timed(f"overhead: {key}"):
                self._keep("overhead", key, overhead(case, batch, self.arguments.seconds))
        if "prediction" in wanted and batch in (1, 64):
            with self.timed(f"prediction: {key}"):
                self._keep("prediction", key, self._predict(case, batch, threads))
        if "race" in wanted and case.name in RACERS:
            self._race(case, batch, threads, key)

    # ------------------------------------------------------------------------------------------- tables

    def _file(self, case: Case, batch: int, threads: int, kind: str) -> Path:
        path: Path = self.arguments.work / f"{case.name}-{batch}-{threads}.{kind}.json"
        return path

    def _measure(self, case: Case, batch: int, threads: int) -> None:
        inputs = case.report.picked(batch).rows(slice(batch))
        costs = offramp.measure_cost(
            case.net, unit="seconds", batch_size=batch, threads=threads, inputs=inputs
        )
        self._file(case, batch, threads, "costs").write_text(costs.to_json())
        for kind in ("frontier", "inside"):  # made with other costs
            self._file(case, batch, threads, kind).unlink(missing_ok=True)

    def _costs(self, case: Case, batch: int, threads: int) -> CostTable:
        path = self._file(case, batch, threads, "costs")
        if not path.exists():
            self._measure(case, batch, threads)
        return CostTable.from_json(path.read_text())

    def _frontier(self, case: Case, batch: int, threads: int, records: ExitRecords, kind: str) -> Frontier:
        """Searched with measured seconds; kept."""
        path = self._file(case, batch, threads, kind)
        if not path.exists():
            with self.timed(f"search, {kind}"):
                found = offramp.search(
                    records, self._costs(case, batch, threads), workers=os.cpu_count() or 1
                )
            path.write_text(found.to_json())
        return Frontier.from_json(path.read_text())

    def _predict(self, case: Case, batch: int, threads: int) -> list[dict[str, Any]]:
        costs, frontier = self._costs(case, batch, threads), None
        if case.search is not None:
            frontier = self._frontier(case, batch, threads, case.search.records, "frontier")
        return prediction(case, batch, costs, frontier, self.arguments.seconds)

    # --------------------------------------------------------------------------------------------- race

    def _race(self, case: Case, batch: int, threads: int, key: str) -> None:
        skipped: dict[str, str] = {}
        assert case.search is not None  # racers have a search split
        seen = {"frontier": case.search.records, "inside": inside(case.search.records)}
        with self.timed(f"making ready: {key}"):
            frontier, within = (
                self._frontier(case, batch, threads, each, kind) for kind, each in seen.items()
            )
            setting = Setting(
                case=case,
                batch=batch,
                costs=self._costs(case, batch, threads),
                frontier=frontier,
                within=within,
                rivals=rivals(case, self._remembered),
                executions=self.arguments.executions,
                work=self.arguments.work,
                skip=skipped.__setitem__,
            )
            raced = list(entries(setting))
            exact = [self._accuracy(entry, setting) for entry, _ in raced]
        if self.arguments.prepare_only:
            return
        with self.timed(f"race: {key}"):
            batches = case.report.picked(len(case.report)).batches(batch)
            figures = race([entry for entry, _ in raced], batches, batch, self.arguments.seconds)
        rows = [
            {"name": entry.name, "kind": entry.kind, "execution": entry.execution, "accuracy": right,
             "config": entry.config and json.loads(entry.config.to_json()), "chosen_for": names, **told}
            for (entry, names), right, told in zip(raced, exact, figures, strict=True)
        ]  # fmt: skip
        self._keep("race", key, {"rows": rows, "versus": versus(rows), "skipped": skipped})

    def _accuracy(self, entry: Entry, setting: Setting) -> float:
        """Of an entry; those that must be computed are kept between runs."""
        if entry.foretold:
            return entry_accuracy(entry, setting)
        batch = "" if entry.any_batch else f", batch {setting.batch}"
        choices = entry.config.to_json() if entry.config else ""
        name = f"{setting.case.name}, {entry.name}{batch}, {entry.execution}, {choices}"
        return self._remembered(name, lambda: entry_accuracy(entry, setting))

    def _remembered(self, name: str, find: Any) -> float:
        path = self.arguments.work / "accuracy.json"
        known = results.read(path)
        if name not in known:
            known[name] = find()
            results.write(path, known)
        return float(known[name])

    # ------------------------------------------------------------------------------------------ results

    def _keep(self, part: str, key: str, found: Any) -> None:
        """Show a result and add it to the file."""
        self.results["machine"] = machine()
        self.results.setdefault(part, {})[key] = found
        show(self.console, part, key, found)
        results.write(self.arguments.out, self.results)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Tell how long something took."""
        start = time.perf_counter()
        yield
        self.console.print(f"{what}: {time.perf_counter() - start:.0f} s", style="dim", highlight=False)


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


# ---------------------------------------------------------------------------------------------- tables


def show(console: Console, part: str, key: str, found: Any) -> None:
    """One result as tables."""
    {"prediction": _show_prediction, "overhead": _show_overhead, "race": _show_race}[part](
        console, key, found
    )


def _table(console: Console, title: str, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    console.print(results.table(title, names, rows, title_justify="left"))


def _show_prediction(console: Console, key: str, rows: list[dict[str, Any]]) -> None:
    names = (
        "configuration",
        "exits",
        "MACs",
        "time, predicted",
        "time, measured",
        "measured - predicted",
        "median of pairs",
        "against exits off",
    )
    told = [
        (row["name"], str(row["exits"]), f"{row['macs']:.1%}",
         f"{row['predicted']:.1%}", f"{row['measured']:.1%}",
         f"{row['measured'] / row['predicted'] - 1:+.1%}", f"{row['median']:.1%}",
         f"{row['against off']:.1%}")
        for row in rows
    ]  # fmt: skip
    _table(console, f"{key}: share of the unmodified model's", names, told)


def _show_overhead(console: Console, key: str, found: dict[str, Any]) -> None:
    extra = (
        f", an exit no sample takes: {found['per_exit_us']:+.1f} µs beyond its head"
        if "per_exit_us" in found
        else ""
    )
    console.print(f"{key}: all exits off {found['off'] - 1:+.2%} of {found['plain_ms']:.2f} ms{extra}")


def _show_race(console: Console, key: str, found: dict[str, Any]) -> None:
    names = ("", "accuracy", "p50 ms", "p95", "p99", "samples/s", "chosen against")
    rows = [
        (row["name"], f"{row['accuracy']:.2%}", *(f"{row[q]:.2f}" for q in ("p50", "p95", "p99")),
         f"{row['throughput']:.0f}", ", ".join(row["chosen_for"]))
        for row in found["rows"]
    ]  # fmt: skip
    _table(console, key, names, rows)
    names = ("rival", "chosen on search", "beats it", "fastest as accurate", "beats it")
    told = [
        (row["rival"], row["chosen"] or "-", _yes(row["chosen beats it"]), row["fastest as accurate"] or "-",
         _yes(row["fastest beats it"]))
        for row in found["versus"]
    ]  # fmt: skip
    _table(console, f"{key}: ours against each, in the same execution", names, told)
    for name, why in found["skipped"].items():
        console.print(f"without {name}: {why}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--case", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--executions", nargs="*", choices=[*EXECUTIONS, ONNX], default=[*EXECUTIONS, ONNX])
    parser.add_argument("--seconds", type=float, default=90, help="of timing, for each part and setting")
    parser.add_argument(
        "--prepare-only", action="store_true", help="a race without its timing: what is kept in WORK"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a look: 5 seconds each, Fashion-MNIST, one thread"
    )
    command.add_fashion(parser)
    parser.add_argument(
        "--artifact", type=Path, required=True, help="written by bench/fashion_mnist artifact"
    )
    parser.add_argument("--text-data", type=Path, help="folder that bench/text prepare wrote")
    parser.add_argument("--text-backbones", type=Path, help="folder that bench/text backbones wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for tables, frontiers and exports")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "runtime.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.case, arguments.threads, arguments.executions = 5, ["fashion"], [1], []
    if "text" in arguments.case and not (arguments.text_data and arguments.text_backbones):
        parser.error("the text case takes --text-data and --text-backbones; or leave it out with --case")
    offramp.keep_memory()  # the unmodified models gain as much
    Bench(arguments).run()
