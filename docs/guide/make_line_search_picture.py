"""Draws line_search.svg for docs/guide/search.md: one exact line search, on made-up samples.

    python docs/guide/make_line_search_picture.py

Left, what each sample gains by leaving at one exit, most confident first; right, the running sum of these
gains. The numbers are seeded and the same bytes come out each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from offramp.report.figures import CHOSEN as LOSS, INK, LINE as GAIN, PALETTE, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES, TRADEOFF, SEED = 60, 0.8, 396
HEAD = 0.02  # cost of the head over the full model's; every sample that arrives pays it
PEAK = "#009e73"
STYLE = {
    "svg.hashsalt": "line-search",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    **PALETTE,
}

Floats = npt.NDArray[np.float64]


def gains() -> Floats:
    """(N,) what leaving here gains, most confident first: cost saved, and quality won or lost."""
    random = np.random.default_rng(SEED)
    doubt = np.linspace(0, 1, SAMPLES)
    right_here = random.random(SAMPLES) > 0.75 * doubt**2.2
    right_later = random.random(SAMPLES) > 0.08 * doubt
    saved = random.uniform(0.35, 0.7, SAMPLES)  # of the full model's cost
    won = right_here.astype(float) - right_later
    return np.asarray(TRADEOFF * won + (1 - TRADEOFF) * saved)


def draw_gains(axes: Axes, gain: Floats, best: int) -> None:
    """One stem per sample; those that leave are on a tinted ground."""
    at = np.arange(1, SAMPLES + 1)
    axes.axvspan(0.2, best + 0.5, color=PEAK, alpha=0.08, linewidth=0)
    for chosen, colour in ((gain > 0, GAIN), (gain <= 0, LOSS)):
        axes.vlines(at[chosen], 0, gain[chosen], color=colour, linewidth=1.6)
        axes.plot(at[chosen], gain[chosen], "o", color=colour, markersize=3.6)
    axes.axhline(0, color=QUIET, linewidth=0.8)
    axes.set(title="What each sample gains by leaving here", ylabel="gain in units of J", ylim=(-1.02, 1.3))
    axes.text(2, 0.27, "right here and later:\ncost is saved", color=GAIN, fontsize=9.5, va="bottom")
    for way, words, colour in ((1, "right here,\nwrong later", GAIN), (-1, "wrong here,\nright later", LOSS)):
        first = int(np.flatnonzero(way * gain > 0.5)[0])
        side = {"ha": "right", "va": "center", "fontsize": 9.5}
        axes.text(first - 0.2, gain[first] - way * 0.06, words, color=colour, **side)
    axes.text(best / 2, 1.2, "these leave", color=PEAK, ha="center", va="center", fontweight="bold")
    axes.text((best + SAMPLES) / 2, 1.2, "these go on", color=QUIET, ha="center", va="center")


def draw_sum(axes: Axes, gain: Floats, best: int) -> None:
    """The running sum with its peak, and what the head itself costs."""
    total = np.concatenate([[0.0], gain.cumsum()])
    fixed = (1 - TRADEOFF) * HEAD * SAMPLES
    axes.axvspan(0, best, color=PEAK, alpha=0.08, linewidth=0)
    axes.step(np.arange(SAMPLES + 1), total, where="post", color=INK, linewidth=1.5)
    axes.axhline(fixed, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.vlines(best, total.min() - 1, total[best], color=PEAK, linewidth=1.4)
    axes.plot([best], total[best], "o", color=PEAK, markersize=7)
    axes.set(
        title="Their running sum: its peak is the threshold", ylabel="sum of gains", xlim=(0, SAMPLES + 1)
    )
    axes.annotate(
        f"peak: {best} samples leave",
        (best, total[best]),
        (best, total.max() * 1.1),
        color=PEAK,
        fontweight="bold",
        ha="center",
        va="center",
    )
    axes.text(
        SAMPLES * 0.62,
        fixed + 0.04,
        "what the head costs",
        color=QUIET,
        fontsize=9.5,
        ha="right",
        va="bottom",
    )
    axes.set_ylim(min(total.min(), 0) - 0.1, total.max() * 1.25)


def main() -> None:
    """Write the picture beside this file."""
    gain = gains()
    best = int(gain.cumsum().argmax()) + 1
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        draw_gains(left, gain, best)
        draw_sum(right, gain, best)
        for axes in (left, right):
            axes.set_xlabel("samples that arrive, most confident first")
            axes.set_xlim(0, SAMPLES + 1)
        figure.get_layout_engine().set(w_pad=0.12)
        FigureCanvasSVG(figure)
        out = Path(__file__).with_name("line_search.svg")
        figure.savefig(out, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
