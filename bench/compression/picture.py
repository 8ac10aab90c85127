"""Accuracy over time: a column per kind of compression, a row per batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.compression.compare import BOTH, EXITS, FULL, SMALL
from bench.shared.figures import PALETTE, panels, percent_axis

TITLES = {"int8": "transformer, int8 linear layers", "pruned": "ResNet-56, pruned channels"}
COLOURS = {FULL: "#333333", SMALL: "#e0862b", EXITS: "#7bb8a4", BOTH: "#1f5fbf"}
SIZES = ("1", "64")
TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1)


def draw(kinds: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: Path) -> None:
    """All kinds that were timed."""
    shape, size = (len(SIZES), len(kinds)), (5.5 * len(kinds), 7)
    with panels(path, shape, size, settings={**PALETTE, "font.size": 9}) as (_, axes):
        for column, (kind, tables) in enumerate(kinds.items()):
            for axis, size in zip(axes[:, column], SIZES, strict=True):
                _panel(axis, kind, [row for row in tables[size] if row["config"] is not None])
                axis.set_title(f"{TITLES[kind]}, batch {size}", loc="left", fontsize=10)
            axes[-1, column].set_xlabel("time per image, % of the full model")
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy on 10,000 test images, %")


def _panel(axis: Axes, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = {FULL: "full model", SMALL: f"{kind} alone", EXITS: "exits alone", BOTH: f"{kind} + exits"}
    for way, name in names.items():
        points = sorted({(row["time"], 100 * row["accuracy"]) for row in rows if row["way"] == way})
        if points:
            style = "s" if way in (FULL, SMALL) else "o-"
            axis.plot(*zip(*points, strict=True), style, color=COLOURS[way], ms=5, lw=1.5, label=name)
    percent_axis(axis, TICKS)
    axis.grid(color="#eceef1", linewidth=0.7)
    axis.legend(frameon=False, loc="lower right")
