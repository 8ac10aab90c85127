"""Three panels: against the smaller models, against other searches, against other heads.

A line is the mean over seeds of the accuracy on the test images at a given average cost (between two
configurations, linear); the band spans the seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bench.fashion_mnist.story import CASCADE, GREEDY, INPUT, OURS, PAPER_SAME, POOLED, SAME
from bench.shared.figures import PALETTE, panels, percent_axis

PANELS = (
    ("Against the smaller models", (OURS, CASCADE, INPUT), True),
    ("Same heads and records, other searches", (SAME, GREEDY, OURS), False),
    ("Same backbone and search, other heads", (PAPER_SAME, POOLED, OURS), False),
)
COLOURS = {
    OURS: "#1f5fbf", INPUT: "#0b8a5c", CASCADE: "#7bb8a4", SAME: "#e0862b",
    GREEDY: "#b6465f", POOLED: "#8a6bb8", PAPER_SAME: "#b0b0b0",
}  # fmt: skip
COSTS = np.geomspace(0.015, 1, 120)
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1)


def draw(document: dict[str, Any], path: Path) -> None:
    """The picture of one run's results."""
    settings = {**PALETTE, "font.size": 8.5, "axes.titlesize": 9.5}
    with panels(path, (1, 3), (12, 3.9), settings=settings, dpi=110, sharey=True) as (_, axes):
        for axis, (title, methods, family) in zip(axes[0], PANELS, strict=True):
            axis.set_title(title, loc="left")
            if family:
                _family(axis, document["family"])
            for name in methods:
                _curve(axis, [seed["ways"][name]["points"] for seed in document["seeds"]], name)
            _frame(axis, float(np.mean([seed["full"] for seed in document["seeds"]])))
        axes[0, 0].set_ylabel("accuracy on 10,000 test images, %")


def _family(axis: Axes, family: list[dict[str, float]]) -> None:
    x, y = [m["cost"] for m in family], [100 * m["quality"] for m in family]
    axis.plot(x, y, "o--", color="#333333", ms=4, lw=1, label="smaller ResNets")
    for member, cost, quality in zip(family, x, y, strict=True):
        axis.annotate(
            f"{member['depth']}", (cost, quality), (3, -10), textcoords="offset points", color="#333333"
        )


def _curve(axis: Axes, seeds: list[list[tuple[float, float]]], name: str) -> None:
    lines = np.array([_at_costs(points) for points in seeds])
    known = np.isfinite(lines).all(0)
    axis.plot(COSTS[known], 100 * lines[:, known].mean(0), color=COLOURS[name], lw=1.6, label=name)
    low, high = 100 * lines[:, known].min(0), 100 * lines[:, known].max(0)
    axis.fill_between(COSTS[known], low, high, color=COLOURS[name], alpha=0.18, lw=0)


def _at_costs(points: list[tuple[float, float]]) -> np.ndarray:
    cost, quality = np.array(sorted(map(tuple, points))).T
    return np.interp(COSTS, cost, quality, left=np.nan, right=quality[-1])


def _empty(axis: Axes) -> bool:
    """Whether no curve runs through the lower right of the panel."""
    low, top = axis.get_ylim()
    third = low + (top - low) / 3
    drawn = (np.asarray(line.get_xydata()) for line in axis.get_lines())
    return not any(((xy[:, 0] > 0.1) & (xy[:, 1] > low) & (xy[:, 1] < third)).any() for xy in drawn)


def _frame(axis: Axes, full: float) -> None:
    axis.axhline(100 * full, color="#999999", lw=0.8, ls=":")
    percent_axis(axis, TICKS)
    axis.set_xlim(COSTS[0], 1.05)
    axis.set_ylim(88.5, 94.1)
    axis.set_xlabel("average MACs, % of ResNet-56, heads counted")
    axis.legend(frameon=False, loc="lower right" if _empty(axis) else "center left")
