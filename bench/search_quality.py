"""Which search finds the better frontier, on the records it sees and on others, and in what time?

Synthetic records (fixed seed): difficulty of a sample, skill of an exit that grows with depth, a confidence
that knows part of the margin between the two. Search and report splits are disjoint; nothing is chosen on the
report split. Every search in one run, one after the other. The rival from outside is the published single
pass, whose thresholds come from bounded Brent search (scipy.optimize.fminbound; DyCE, arXiv 2403.01695).

    python bench/search_quality.py [--quick]      prints a table, writes bench/results/search_quality.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy.optimize import fminbound

from offramp.config import ExitChoice, ExitConfig
from offramp.cost import CostTable
from offramp.evaluate import evaluate, full_quality
from offramp.records import ExitRecords
from offramp.search import DEFAULT_TRADEOFFS, search

RESULTS = Path(__file__).parent / "results" / "search_quality.json"
SIZES = {"small": (12, 3, 500), "medium": (16, 3, 2000), "large": (27, 4, 5000)}
REPORT_SAMPLES = 20_000
OURS: dict[str, tuple[str, str | float | None]] = {
    "same-threshold": ("same-threshold", None),
    "single-pass": ("single-pass", None),
    "iterative": ("iterative", None),
    "exact": ("exact", None),
    "exact, auto": ("exact", "auto"),
}
BRENT = "single-pass, Brent"

Answers = dict[float, ExitConfig]


def synthetic(p: int, c: int, n: int, seed: int) -> tuple[ExitRecords, CostTable]:
    """Records (P, C, N) of a network whose heads differ in size, cost and luck; no head at the input."""
    rng = np.random.default_rng(seed)
    depth, size = np.arange(p)[:, None] / p, np.arange(c) / max(c - 1, 1)
    difficulty = rng.normal(size=n)
    skill = -1.0 + 3.0 * depth**0.7 + 0.8 * size * (1 - depth) + rng.normal(0, 0.15, (p, c))
    margin = (skill[:, :, None] - difficulty + 0.5 * rng.normal(size=(p, c, n))).astype(np.float32)
    right = margin > 0
    known = 1.2 * np.abs(margin) + 0.3 * right + 0.6 * rng.normal(size=margin.shape)
    exists = np.ones((p, c), bool)
    exists[0] = False
    records = ExitRecords(
        confidence=1 / (1 + np.exp(-known)),
        quality=right,
        final_quality=2.1 - difficulty + 0.5 * rng.normal(size=n) > 0,
        exists=exists,
        positions=("input", *(f"p{i}" for i in range(1, p))),
        heads=tuple(f"h{i}" for i in range(c)),
    )
    backbone = np.concatenate([[0], np.cumsum(rng.uniform(0.7, 1.3, p))])
    heads = np.tile((0.015 + 0.165 * size) * backbone[-1] / p, (p, 1))
    heads[0] = 0
    return records, CostTable(backbone, heads, "macs")


def objective(records: ExitRecords, costs: CostTable, config: ExitConfig, lam: float) -> float:
    """J, by evaluation."""
    outcome = evaluate(records, costs, config)
    return lam * (1 - outcome.quality / full_quality(records)) + (1 - lam) * outcome.relative_cost


def brent_single_pass(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """Front to back; each threshold by bounded Brent search between the confidences that arrive."""
    return {lam: ExitConfig(_brent_pass(records, costs, lam)) for lam in tradeoffs}


def _brent_pass(records: ExitRecords, costs: CostTable, lam: float) -> tuple[ExitChoice, ...]:
    chosen: tuple[ExitChoice, ...] = ()
    alive = np.ones(records.samples, bool)
    for p, name in enumerate(records.positions):
        best: tuple[float, int, float] | None = None
        for c in np.flatnonzero(records.exists[p]):
            gain = _gain(records, costs, lam, p, int(c), alive)
            confidence = records.confidence[p, c, alive]
            if not confidence.size:
                continue
            threshold = float(
                np.float32(fminbound(lambda t, g=gain: -g(t), confidence.min(), confidence.max()))
            )
            if gain(threshold) > (best[0] if best else 0.0):
                best = gain(threshold), int(c), threshold
        if best:
            _, head, threshold = best
            chosen += (ExitChoice(name, records.heads[head], threshold),)
            alive &= ~(records.confidence[p, head] > np.float32(threshold))
    return chosen


def _gain(
    records: ExitRecords, costs: CostTable, lam: float, p: int, c: int, alive: npt.NDArray[np.bool_]
) -> Callable[[float], float]:
    """How much J falls by an exit at this threshold, with all later ones off: one pass over the samples."""
    better = lam * (records.quality[p, c] - records.final_quality) / full_quality(records)
    each = (better + (1 - lam) * (1 - costs.backbone[p] / costs.full))[alive]
    entry = (1 - lam) * costs.heads[p, c] / costs.full * np.count_nonzero(alive)
    confidence = records.confidence[p, c, alive]
    return lambda t: float(each[confidence > np.float32(t)].sum() - entry) / records.samples


def compare(name: str, shape: tuple[int, int, int], seed: int) -> dict[str, object]:
    """Every search on one problem: mean J over lambda on both splits, seconds."""
    p, c, n = shape
    both, costs = synthetic(p, c, n + REPORT_SAMPLES, seed)
    found_on, reported_on = both.subset(np.arange(n)), both.subset(np.arange(n, n + REPORT_SAMPLES))
    rows = {}
    for label in (BRENT, *OURS):
        start = time.perf_counter()
        if label == BRENT:
            answers = brent_single_pass(found_on, costs, DEFAULT_TRADEOFFS)
        else:
            method, regularise = OURS[label]
            answers = dict(search(found_on, costs, method=method, regularise=regularise).by_tradeoff)
        seconds = time.perf_counter() - start
        sums = [
            sum(objective(split, costs, config, lam) for lam, config in answers.items())
            for split in (found_on, reported_on)
        ]
        rows[label] = {"search": sums[0], "report": sums[1], "seconds": seconds}
    return {"name": name, "positions": p, "heads": c, "samples": n, "seed": seed, "methods": rows}


def show(result: dict[str, object], console: Console) -> None:
    """One table; seconds also as a multiple of the exact method's."""
    rows = result["methods"]
    table = Table(
        title=f"{result['name']}: P={result['positions']} C={result['heads']} N={result['samples']}"
    )
    for heading in ("method", "sum of J, search", "sum of J, report", "seconds", "of exact's"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for label, row in rows.items():
        ratio = row["seconds"] / rows["exact"]["seconds"]
        table.add_row(
            label, f"{row['search']:.4f}", f"{row['report']:.4f}", f"{row['seconds']:.2f}", f"{ratio:.2f}"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small problem only")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sizes = {"small": SIZES["small"]} if arguments.quick else SIZES
    console, results = Console(), []
    for name, shape in sizes.items():
        results.append(compare(name, shape, arguments.seed))
        show(results[-1], console)
    RESULTS.parent.mkdir(exist_ok=True)
    document = {"tradeoffs": len(DEFAULT_TRADEOFFS), "report_samples": REPORT_SAMPLES, "problems": results}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
