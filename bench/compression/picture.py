"""Accuracy over time: a column per kind of compression, a row per batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from compare import BOTH, EXITS, FULL, SMALL
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from offramp.plots import PALETTE

TITLES = {"int8": "transformer, int8 linear layers", "pruned": "ResNet-56, pruned channels"}
COLOURS = {FULL: "#333333", SMALL: "#e0862b", EXITS: "#7bb8a4", BOTH: "#1f5fbf"}
SIZES = ("1", "64")
TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1)


def draw(kinds: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: Path) -> None:
    """All kinds that were timed."""
    with mpl.rc_context({**PALETTE, "font.size": 9}):
        figure, axes = plt.subplots(
            len(SIZES), len(kinds), figsize=(5.5 * len(kinds), 7), dpi=100, squeeze=False
        )
        for column, (kind, tables) in enumerate(kinds.items()):
            for axis, size in zip(axes[:, column], SIZES, strict=True):
                _panel(axis, kind, [row for row in tables[size] if row["config"] is not None])
                axis.set_title(f"{TITLES[kind]}, batch {size}", loc="left", fontsize=10)
            axes[-1, column].set_xlabel("time per image, % of the full model")
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy on 10,000 test images, %")
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


def _panel(axis: Axes, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = {FULL: "full model", SMALL: f"{kind} alone", EXITS: "exits alone", BOTH: f"{kind} + exits"}
    for way, name in names.items():
        points = sorted({(row["time"], 100 * row["accuracy"]) for row in rows if row["way"] == way})
        if points:
            style = "s" if way in (FULL, SMALL) else "o-"
            axis.plot(*zip(*points, strict=True), style, color=COLOURS[way], ms=5, lw=1.5, label=name)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
    axis.grid(color="#eceef1", linewidth=0.7)
    axis.legend(frameon=False, loc="lower right")
