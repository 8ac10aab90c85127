"""What ``python bench/search`` compares: record sets split in two, methods that choose on one of the parts.

generated, stored      record sets -> pairs of a search split and a report split, one for each seed
METHODS                what others use (offramp.baselines) and what offramp.search has
measure                one method on one pair: chosen on the search split, judged on both
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.search import recordsets
from bench.shared.measures import objective_of
from offramp import CostTable, ExitConfig, ExitRecords, baselines, evaluate, search
from offramp.baselines.derived_records import entropy_records, patience_records
from offramp.core.evaluate import full_quality

CLASSES, RIVAL = 10, 0.7

Answers = dict[float, ExitConfig]

# ------------------------------------------------------------------------------------------------- records


@dataclass
class Split:
    """Records, the class each exit answers where that is known, and what is derived from both."""

    records: ExitRecords
    classes: npt.NDArray[np.int8] | None = None
    derived: dict[str, ExitRecords] = field(default_factory=dict)

    def view(self, name: str) -> ExitRecords:
        """The records a method's configurations are evaluated on."""
        makers: dict[str, Callable[[], ExitRecords]] = {
            "recorded": lambda: self.records,
            "entropy": lambda: entropy_records(self.records),
            "patience": lambda: patience_records(self.records, self.classes),
        }
        if name not in self.derived:
            self.derived[name] = makers[name]()
        return self.derived[name]

    def has(self, name: str) -> bool:
        """Whether that view can be made."""
        known = self.records.logits is not None
        return name == "recorded" or known or (name == "patience" and self.classes is not None)

    def subset(self, index: npt.NDArray[np.int64]) -> Split:
        """Of the samples that ``index`` picks."""
        classes = None if self.classes is None else self.classes[:, :, index]
        return Split(self.records.subset(index), classes)


@dataclass
class Pair:
    """One seed of a record set."""

    search: Split
    report: Split
    costs: CostTable

    def smaller(self, samples: int, seed: int) -> Pair:
        """The same with so many samples to search on, drawn at random."""
        pick = np.random.default_rng([seed, 3]).permutation(self.search.records.samples)[:samples]
        return Pair(self.search.subset(np.sort(pick)), self.report, self.costs)


@dataclass(frozen=True)
class Sizes:
    """How many seeds and samples, and of which shape generated sets are."""

    seeds: int
    samples: int
    report: int
    positions: int
    heads: int


def named_classes(records: ExitRecords, seed: int) -> npt.NDArray[np.int8]:
    """(P, C, N): classes for generated records, which only know right from wrong; for patience alone.

    Of ten classes 0 is right. A wrong answer is the sample's rival with probability 0.7, else any other wrong
    one: wrong exits often agree, as a network's do, but less often than right ones.
    """
    draw = np.random.default_rng([seed, 2])
    rival = draw.integers(1, CLASSES, records.samples, np.int8)
    other = draw.integers(1, CLASSES, records.quality.shape, np.int8)
    wrong = np.where(draw.random(records.quality.shape, np.float32) < RIVAL, rival, other)
    return np.where(records.quality > 0.5, np.int8(0), wrong)


def generated(sizes: Sizes, input_exit: bool) -> Iterator[Pair]:
    """A new network and new samples for each seed."""
    for seed in range(sizes.seeds):
        records, costs = recordsets.generated(
            seed, sizes.samples + sizes.report,
            positions=sizes.positions, heads=sizes.heads, input_exit=input_exit,
        )  # fmt: skip
        yield _pair(Split(records, named_classes(records, seed)), costs, seed, sizes)


def stored(folder: Path, sizes: Sizes) -> Iterator[Pair]:
    """Fixed splits where the folder has them; else random ones of the pool that it holds."""
    ready = recordsets.load_seeds(folder, sizes.seeds)
    for seed, (records, report, costs) in enumerate(ready):
        pair = Pair(Split(records), Split(report), costs)
        yield pair.smaller(sizes.samples, seed) if records.samples > sizes.samples else pair
    if recordsets.seed_folders(folder):
        return
    records, costs = recordsets.load(folder)
    for seed in range(sizes.seeds):
        yield _pair(Split(records), costs, seed, sizes)


def _pair(split: Split, costs: CostTable, seed: int, sizes: Sizes) -> Pair:
    """The last samples of a random order are reported on, the first ones searched on."""
    order = np.random.default_rng(seed).permutation(split.records.samples)
    if sizes.samples >= order.size:
        raise SystemExit(f"--samples {sizes.samples}: the set has {order.size}; leave some to report on")
    report = order[max(sizes.samples, order.size - sizes.report) :]
    return Pair(split.subset(np.sort(order[: sizes.samples])), split.subset(np.sort(report)), costs)


# ------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """How configurations are chosen, and on which view of the records they are evaluated."""

    choose: Callable[[Split, CostTable, Sequence[float]], Answers]
    view: str = "recorded"


def _baseline(choose: Callable[..., Answers], **options: Any) -> Method:
    return Method(lambda split, costs, lambdas: choose(split.records, costs, lambdas, **options))


def _search(method: str, regularise: str | None = None) -> Method:
    def choose(split: Split, costs: CostTable, lambdas: Sequence[float]) -> Answers:
        found = search(
            split.records, costs, tradeoffs=lambdas, method=method, regularise=regularise, step=None
        )
        return dict(found.by_tradeoff)

    return Method(choose)


def _patience(split: Split, costs: CostTable, lambdas: Sequence[float]) -> Answers:
    return baselines.patience(split.records, costs, lambdas, predictions=split.classes)


SAME, PUBLISHED, EXACT, DEFAULT = "same-threshold", "brent-iterative", "search/exact", "search/auto"
METHODS = {
    SAME: _baseline(baselines.same_threshold),
    "entropy": Method(_baseline(baselines.entropy_thresholds).choose, "entropy"),
    "patience": Method(_patience, "patience"),
    "single-exit": _baseline(baselines.single_exit),
    "greedy-grid": _baseline(baselines.greedy_grid),
    "brent-single-pass": _baseline(baselines.brent_single_pass),
    PUBLISHED: _baseline(baselines.brent_iterative, incremental=True),
    "search/same-threshold": _search("same-threshold"),
    "search/single-pass": _search("single-pass"),
    "search/iterative": _search("iterative"),
    EXACT: _search("exact"),
    DEFAULT: _search("exact", "auto"),
}


def measure(method: Method, pair: Pair, lambdas: Sequence[float]) -> dict[str, Any]:
    """One method on one seed: J by lambda on both splits, CPU seconds of choosing, and what was chosen."""
    start = time.process_time()  # the machine may be shared
    answers = method.choose(pair.search, pair.costs, lambdas)
    row: dict[str, Any] = {"seconds": time.process_time() - start}
    for name, split in (("search", pair.search), ("report", pair.report)):
        view = split.view(method.view)
        full = full_quality(view)
        outcomes = [evaluate(view, pair.costs, answers[lam]) for lam in lambdas]
        row[name] = [objective_of(outcome, full, lam) for outcome, lam in zip(outcomes, lambdas, strict=True)]
    row["points"] = [(outcome.quality, outcome.relative_cost) for outcome in outcomes]
    row["exits"] = [len(answers[lam].choices) for lam in lambdas]
    return row
