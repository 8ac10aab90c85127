"""The picture of bench/honesty: asked against kept, and what keeping the promise costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.honesty.draw import ORACLE, OURS
from bench.shared.figures import panels

COLOURS = {
    OURS: ("#0b4f8a", "o", "promised (ours)"),
    "in-sample": ("#c2410c", "s", "search samples' own figures"),
    "cross-fitted": ("#5b6472", "^", "cross-fitted, cheapest"),
    "isotonic": ("#7b3fa0", "D", "isotonic"),
    "certified 0.9": ("#0f766e", "v", "certify, delta 0.1"),
    ORACLE: ("#1f2937", "x", "oracle"),
}


def draw_picture(document: dict[str, Any], path: Path) -> None:
    """Means over pools, a column for each number of samples: drop kept above, cost below."""
    counts = sorted({int(n) for pool in document.values() for n in pool["samples"]})
    with panels(path, (2, len(counts)), (3.1 * len(counts), 6.4), sharex=True, sharey="row") as (_, axes):
        for column, samples in enumerate(counts):
            rows = [p["samples"][str(samples)] for p in document.values() if str(samples) in p["samples"]]
            asks = 100 * np.array(next(iter(document.values()))["asks"])
            kept, cost = axes[0, column], axes[1, column]
            equal = np.geomspace(0.08, 2.5)  # a curve: the axis of asks is logarithmic
            kept.plot(equal, equal, color="#c4c8ce", linewidth=1.4, zorder=0)
            for way, (colour, marker, label) in COLOURS.items():
                found = [row["ways"][way] for row in rows if way in row["ways"]]
                if not found:
                    continue
                style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "label": label}
                style |= {"linewidth": 2.0 if way == OURS else 1.0}
                if way != ORACLE:  # it keeps the ask by definition
                    kept.plot(asks, 100 * np.mean([each["kept"] for each in found], axis=0), **style)
                cost.plot(asks, 100 * np.mean([each["cost"] for each in found], axis=0), **style)
            kept.set(xscale="log", title=f"{samples:,} search samples", ylim=(-0.3, 3.6))
            cost.set(xlabel="asked (points)", ylim=(0, 100))
            cost.set_xticks(asks, [f"{ask:g}" for ask in asks])
            cost.minorticks_off()
        axes[0, 0].set_ylabel("kept on new samples (points)")
        axes[1, 0].set_ylabel("cost (% of the full model)")
        axes[1, -1].legend(frameon=False, fontsize=8)
