"""Early exits against the alternatives, on Fashion-MNIST: accuracy on 10,000 test images over average MACs.

    python bench/fashion_mnist story --backbones DIR --sets DIR

reads what the part ``exits`` wrote, one set of records for each seed. Everything is chosen on the 5,000 held-
out images; the test images are only reported on. Compared are the static family (ResNet-8 to 56: what a user
would pick instead), other heads (the paper's pooled ones), other searches on the same records (one common
threshold, a greedy grid), and ours without and with exits at the input. Prints tables, writes
results/fashion_mnist.json and .png.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import offramp
from bench.fashion_mnist.exits import PAPER, SMALLER
from bench.fashion_mnist.fashion import load_fashion
from bench.fashion_mnist.resnet import DEPTHS, load_backbone
from bench.search.recordsets import load
from bench.shared import command, results
from bench.shared.backbones import accuracy, macs
from bench.shared.measures import only
from offramp import CostTable, ExitRecords, Frontier
from offramp.baselines import greedy_grid

LAMBDAS = np.round(np.concatenate([np.linspace(0.5, 0.9, 41), np.linspace(0.905, 1, 20)]), 4).tolist()
BUDGETS = (0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)
STEPS = np.round(np.append(np.arange(0.095, 1, 0.005), 1.0), 4).tolist()  # from ResNet-8 to ResNet-56
DROPS = (0.005, 0.003, 0.001, 0.0)

Find = Callable[[ExitRecords, CostTable], Frontier]


def _search(method: str) -> Find:
    return lambda records, costs: offramp.search(records, costs, method=method)


def _greedy(records: ExitRecords, costs: CostTable) -> Frontier:
    return Frontier.of(greedy_grid(records, costs, LAMBDAS).values())


@dataclass(frozen=True)
class Method:
    """Which exits there are, and how configurations are found."""

    heads: Callable[[str, str], bool]
    find: Find


def _ours(position: str, head: str) -> bool:
    return position != "input" and head != PAPER


def _paper(position: str, head: str) -> bool:
    return position != "input" and head in (PAPER, "linear")


OURS, INPUT = "ours, exits inside", "ours, an exit at the input too"
SAME, GREEDY = "our heads, one threshold", "our heads, greedy grid"
POOLED, PAPER_SAME = "pooled heads, our search", "pooled heads, one threshold"
CASCADE = "ours, ResNet-8 at the input too"
METHODS = {
    PAPER_SAME: Method(_paper, _search("same-threshold")),
    POOLED: Method(_paper, _search("exact")),
    SAME: Method(_ours, _search("same-threshold")),
    GREEDY: Method(_ours, _greedy),
    OURS: Method(_ours, _search("exact")),
    CASCADE: Method(lambda p, h: _ours(p, h) or h == SMALLER, _search("exact")),
    INPUT: Method(lambda p, h: _ours(p, h) or h.startswith("input-"), _search("exact")),
}


def static_family(backbones: Path, data: Path) -> list[dict[str, float]]:
    """Accuracy on the test images and MACs of every depth."""
    test, found = load_fashion(data).test, []
    for depth in DEPTHS:
        model = load_backbone(backbones, depth)
        found.append({"depth": depth, "quality": accuracy(model, test), "macs": macs(model, 1, 28, 28)})
    return [{**each, "cost": each["macs"] / found[-1]["macs"]} for each in found]


def one_seed(folder: Path) -> dict[str, Any]:
    """Every method on one seed's records: its configurations, judged on the report split."""
    (search, costs), (report, _) = load(folder / "search"), load(folder / "report")
    full = float(report.final_quality.mean())
    found = {}
    for name, method in METHODS.items():
        seen, judged = only(search, method.heads), only(report, method.heads)
        frontier = method.find(seen, costs)
        found[name] = {
            "points": [_judge(judged, costs, config) for config in frontier],
            "budgets": [_at(judged, costs, frontier, max_cost=budget) for budget in BUDGETS],
            "steps": [_at(judged, costs, frontier, max_cost=step) for step in STEPS],
            "drops": [_at(judged, costs, frontier, max_drop=drop) for drop in DROPS],
        }
        print(f"  {name}: {len(frontier)} configurations", flush=True)
    return {"full": full, "ways": found}


def _judge(records: ExitRecords, costs: CostTable, config: offramp.ExitConfig) -> tuple[float, float]:
    outcome = offramp.evaluate(records, costs, config)
    return float(outcome.relative_cost), float(outcome.quality)


def _at(
    records: ExitRecords, costs: CostTable, frontier: Frontier, **wanted: float
) -> tuple[float, float] | None:
    try:
        return _judge(records, costs, frontier.at(**wanted))
    except offramp.OfframpError:  # nothing so cheap, or so good
        return None


def above_family(within: list[tuple[float, float]], family: list[dict[str, float]]) -> float:
    """Least accuracy over the family's, interpolated, at budgets from its first to its last member.

    ``within`` are (cost, quality) on the report split of what was chosen for ``STEPS``; where the cost came
    out above the budget, the family is given as much.
    """
    costs, quality = [m["cost"] for m in family], [m["quality"] for m in family]
    pairs = [(max(step, c), q) for step, (c, q) in zip(STEPS, within, strict=True) if step >= costs[0]]
    return min(q - float(np.interp(c, costs, quality)) for c, q in pairs)


def cheapest(points: list[tuple[float, float]], quality: float) -> float | None:
    """Least cost at which this quality is reached on the report split: the curve read off, nothing chosen."""
    return min((c for c, q in points if q >= quality), default=None)


def summary(family: list[dict[str, float]], seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The lines that the benchmark is judged by, per seed."""
    rows, full = {}, [seed["full"] for seed in seeds]
    for name in (OURS, CASCADE, INPUT):
        points = [seed["ways"][name]["points"] for seed in seeds]
        within = [seed["ways"][name]["steps"] for seed in seeds]
        rows[name] = {
            "least margin over the family": [above_family(each, family) for each in within],
            "cost at a drop of 0.1 points": [
                cheapest(p, q - 0.001) for p, q in zip(points, full, strict=True)
            ],
            "cost at a drop of 0.5 points": [
                cheapest(p, q - 0.005) for p, q in zip(points, full, strict=True)
            ],
            "cost of ResNet-20's accuracy": [cheapest(p, family[1]["quality"]) for p in points],
            "chosen for a drop of 0.1 points": [_relative(s, name, "drops", 2) for s in seeds],
            "chosen for a drop of 0.5 points": [_relative(s, name, "drops", 0) for s in seeds],
        }
    return rows


def _relative(seed: dict[str, Any], name: str, kind: str, index: int) -> tuple[float, float] | None:
    """(cost, drop on the report split) of what was chosen on the search split."""
    found = seed["ways"][name][kind][index]
    return found and (found[0], seed["full"] - found[1])


def print_tables(family: list[dict[str, float]], seeds: list[dict[str, Any]], rows: dict[str, Any]) -> None:
    print(
        "\nstatic family: "
        + ", ".join(f"ResNet-{m['depth']} {m['quality']:.2%} at {m['cost']:.1%}" for m in family)
    )
    print("\naccuracy on the report split, best within a budget by the search split; mean over seeds")
    print(f"{'':34}" + "".join(f"{budget:>8.0%}" for budget in BUDGETS))
    for name in METHODS:
        cells = []
        for i in range(len(BUDGETS)):
            found = [seed["ways"][name]["budgets"][i] for seed in seeds]
            known = [each[1] for each in found if each is not None]
            cells.append(f"{np.mean(known):8.2%}" if len(known) == len(seeds) else f"{'-':>8}")
        print(f"{name:34}" + "".join(cells))
    for name, row in rows.items():
        print(f"\n{name}")
        for line, values in row.items():
            print(f"  {line:36}" + "  ".join(_told(value) for value in values))


def _told(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:.2%} ({100 * value[1]:+.2f})"
    return f"{value:.2%}"


def main() -> None:
    parser = command.parser(__doc__)
    command.add_fashion(parser)
    parser.add_argument("--sets", type=Path, required=True, help="folder that the part exits wrote")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "fashion_mnist.json")
    arguments = parser.parse_args()
    family = static_family(arguments.backbones, arguments.data)
    folders = sorted(path.parent for path in arguments.sets.glob("*/report"))
    if not folders:
        raise SystemExit(
            f"{arguments.sets}: expected SEED/search and SEED/report; run: python bench/fashion_mnist exits"
        )
    seeds = []
    for folder in folders:
        print(f"seed {folder.name}", flush=True)
        seeds.append({"seed": folder.name, **one_seed(folder)})
    rows = summary(family, seeds)
    print_tables(family, seeds, rows)
    document = {"family": family, "budgets": BUDGETS, "drops": DROPS, "seeds": seeds, "summary": rows}
    results.write(arguments.out, document)
    from bench.fashion_mnist.picture import draw

    draw(document, arguments.out.with_suffix(".png"))
    print(f"\nwrote {arguments.out} and its picture")
