"""One panel per record set and variant: J on the report split less that of one common threshold.

Rows are record sets, columns what was changed in them. Below the line at 0 a method is better than one common
threshold for all exits. The unit is the full model's J, 1 - lambda: J itself comes near 0 where much quality
is bought and a small model at the input adds some. Linear to 2 % either way, logarithmic beyond.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

from bench.search.methods import DEFAULT, EXACT, PUBLISHED, SAME
from bench.shared.figures import panels

SHOWN = {
    "single-exit": ("best single exit", "#b0b0b0", "-"),
    "patience": ("patience", "#8c564b", "-"),
    "entropy": ("entropy, common threshold", "#e377c2", "-"),
    "greedy-grid": ("greedy grid", "#ff7f0e", "-"),
    "brent-single-pass": ("single pass, Brent", "#9467bd", "-"),
    PUBLISHED: ("iterative, Brent", "#2ca02c", "-"),
    EXACT: ("exact, not regularised", "#1f77b4", "-"),
    DEFAULT: ("default: exact, auto", "black", "-"),
}
LINEAR, TICKS = 2, (-20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50)
COLOURS = 64


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """All results but those of special runs in one figure, 1200 pixels wide."""
    shown = {result["name"]: result for result in results if SAME in result["methods"] and result["usual"]}
    if not shown:
        return
    sets = sorted({name.split(",")[0] for name in shown}, key=lambda name: (name == "generated", name))
    variants = sorted({name.partition(",")[2] for name in shown}, key=lambda v: (len(v), v))
    height = 1.1 + 2.6 * len(sets)
    options = {"sharex": True, "sharey": "row", "settings": {}, "tight": False}
    with panels(path, (len(sets), len(variants)), (12, height), **options) as (figure, axes):
        for row, name in enumerate(sets):
            for column, variant in enumerate(variants):
                axis = axes[row, column]
                result = shown.get(name + ("," + variant if variant else ""))
                if result is None:
                    axis.set_visible(False)
                    continue
                _panel(axis, result)
                axis.set_title(f"{name}: {variant.strip() or 'as recorded'}", fontsize=9)
        for axis in axes[:, 0]:
            axis.set_ylabel("J minus that of one common\nthreshold, % of the full model's", fontsize=8)
        for axis in axes[-1]:
            axis.set_xlabel("lambda: speed to quality", fontsize=8)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(SHOWN) // 2, fontsize=9, frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.55 / height))
    image = Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)  # with a palette: a third of the bytes


def _panel(axis: Axes, result: dict[str, Any]) -> None:
    below = np.array(result["methods"][SAME]["by_tradeoff"]["report"])
    full = 1 - np.array(result["tradeoffs"])
    axis.axhline(0, color="#444444", linewidth=0.8)
    for label, (told, color, style) in SHOWN.items():
        if label not in result["methods"]:
            continue
        row = result["methods"][label]
        percent = 100 * (np.array(row["by_tradeoff"]["report"]) - below) / full
        width = 2.4 if label == DEFAULT else 1.3
        axis.plot(percent, style, label=told, color=color, linewidth=width, marker=".", markersize=4)
    axis.set_yscale("symlog", linthresh=LINEAR)
    axis.yaxis.set_major_locator(FixedLocator(TICKS))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:+.0f}")
    axis.set_xticks(range(len(below)), [f"{lam:g}".lstrip("0") for lam in result["tradeoffs"]])
    axis.tick_params(labelsize=7.5)
    axis.grid(alpha=0.25, linewidth=0.6)
