"""Accuracy on the report split over the share of MACs spent: one panel per data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.shared.figures import panels

OURS, LAYERS, COMMON, STATIC = "#0b4f8a", "#009e73", "#e69f00", "#5b6472"
TITLES = {"spam": "SpamAssassin e-mails, 2 classes", "sentences": "rated sentences, 3 classes"}


def draw(results: dict[str, Any], path: Path) -> None:
    """All data sets side by side, 1200 pixels wide."""
    size = (6 * len(results), 4.2)
    with panels(path, (1, len(results)), size) as (_, axes):
        for axis, kind in zip(axes[0], sorted(results, key=list(TITLES).index), strict=True):
            _panel(axis, results[kind])
            axis.set_title(TITLES[kind], fontsize=11)
        axes[0, 0].legend(loc="lower right", frameon=False, fontsize=9)


def _panel(axis: Axes, result: dict[str, Any]) -> None:
    full = result["accuracy"]["report"]
    axis.axhline(100 * (full - 0.005), color="#d9dde3", linewidth=1, zorder=0)
    for i, found in enumerate(result["seeds"]):
        for curve, colour, label in (
            (found["all"]["same_threshold"], COMMON, "one common threshold"),
            (found["layers"]["frontier"], LAYERS, "Offramp, exits after layers only"),
            (found["all"]["frontier"], OURS, "Offramp, exits from the embeddings on"),
        ):
            share, accuracy = zip(*sorted(curve), strict=True)
            percent = [100 * each for each in share], [100 * each for each in accuracy]
            axis.plot(*percent, ".-", color=colour, linewidth=1.3, alpha=0.8, label=None if i else label)
    static = [*((member["macs"], member["accuracy"]) for member in result["family"]), (1.0, full)]
    share, accuracy = zip(*static, strict=True)
    percent = [100 * each for each in share], [100 * each for each in accuracy]
    axis.plot(
        *percent, "s--", color=STATIC, markersize=6, linewidth=1, label="static: fewer layers; full model"
    )
    axis.set_ylim(100 * (min(full, *accuracy) - 0.03), 100 * (full + 0.01))
    axis.set_xlim(0, 103)
    axis.set_xlabel("MACs, % of the full model")
    axis.set_ylabel("accuracy on the report split, %")
    axis.grid(color="#eceef1", linewidth=0.7)
