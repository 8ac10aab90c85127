"""Drawing on a matplotlib Axes: arrays in, nothing out. Needs matplotlib (extra ``plot``).

``Frontier.plot``, ``ExitRecords.plot`` and the report draw with the same colours and marks. pyplot is touched
only by ``own_axes``, which makes the figure that a notebook shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offramp.core.display import evenly, printable
from offramp.errors import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Window = tuple[tuple[float, float], tuple[float, float]]
"""Limits of x, and of y."""

INK, QUIET, RULE = "#1f2937", "#5b6472", "#d9dde3"
LINE, CHOSEN = "#0b4f8a", "#c2410c"
IN_SAMPLE = "search samples (in-sample)"

# Okabe and Ito's colours (without the yellow, too faint on white) and two of Paul Tol's; each head type also
# has its own marker, so that no distinction rests on colour alone.
_COLOURS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#882255", "#999933", "#44aa99")
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"))
MOST_NAMED = 10  # lines that a legend names; more do not fit

PALETTE = {
    "text.color": INK,
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), QUIET),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), RULE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
}
"""Matplotlib settings that every picture of the project shares."""


def own_axes() -> Axes:
    """The axes of a new pyplot figure, as pandas and scikit-learn make one where they are given none.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("plot", "a plot needs matplotlib; install it"):
        from matplotlib import pyplot
    _, axes = pyplot.subplots(layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eceef1", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def mark(head: int) -> tuple[str, str, str]:
    """Colour, matplotlib marker and the same marker as a character, of the head type with this index."""
    return _COLOURS[head % len(_COLOURS)], *_MARKERS[head % len(_MARKERS)]


def sequence(count: int) -> list[str]:
    """``count`` colours from light (early) to dark (late), told apart by lightness alone."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["YlGnBu"](level)) for level in np.linspace(0.22, 0.95, count)]


def around(values: Floats, least: float, below: float, above: float) -> tuple[float, float]:
    """Limits with air around all values, at least ``least`` apart; ``below`` and ``above`` are fractions."""
    top, span = float(values.max()), max(float(np.ptp(values)), least)
    return max(0.0, top - (1 + below) * span), top + above * span


def window(cost: Floats, quality: Floats) -> Window:
    """Limits of both axes around the configurations, in percent: exits far below them stay outside."""
    return around(cost, 40.0, 0.1, 0.06), around(quality[np.isfinite(quality)], 2.0, 0.2, 0.12)


def draw_single_exits(
    axes: Axes, cost: Floats, quality: Floats, view: Window, heads: Sequence[str] = ()
) -> None:
    """Small marks at cost and quality (P, C) of exits that every sample takes; NaN where there is none.

    What lies outside the view is not drawn. C head names are labels, of those of which any is drawn.
    """
    (left, right), (low, high) = view
    shown = (cost >= left) & (cost <= right) & (quality >= low) & (quality <= high)
    size = 4 if np.isfinite(quality).sum() <= 60 else 2.8
    for head in range(quality.shape[1]):
        colour, marker, _ = mark(head)
        x, y = (values[shown[:, head], head] for values in (cost, quality))
        there, label = int(np.isfinite(quality[:, head]).sum()), None
        if heads and x.size:
            part = "" if x.size == there else f" ({x.size} of {there} in view)"
            label = label_of(f"{heads[head]} alone{part}")
        axes.plot(x, y, marker, color=colour, markersize=size, alpha=0.85, label=label)


def draw_configurations(axes: Axes, cost: Floats, quality: Floats, label: str | None = None) -> None:
    """The line of M configurations, at cost and quality (M,)."""
    size, width = (4.5, 1.6) if cost.size <= 60 else (2.8, 1.1)  # hundreds of them stay a line
    axes.plot(cost, quality, "o-", color=LINE, markersize=size, linewidth=width, label=label)


def draw_band(axes: Axes, cost: Floats, interval: Floats, label: str | None = None) -> None:
    """The band between the ends of intervals (M, 2); a gap where they are NaN."""
    low, high = interval.T
    axes.fill_between(
        cost, low, high, where=np.isfinite(low).tolist(), color=LINE, alpha=0.16, linewidth=0, label=label
    )


def draw_in_sample(axes: Axes, cost: Floats, quality: Floats, label: str | None = IN_SAMPLE) -> None:
    """A thin dashed line: what the configurations reached on the samples that they were chosen on."""
    axes.plot(cost, quality, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label=label)


def draw_full_model(axes: Axes, cost: float, quality: float, label: str | None = None) -> None:
    """A star."""
    axes.plot([cost], [quality], "*", color=INK, markersize=11, linestyle="none", label=label)


def draw_ring(axes: Axes, cost: float, quality: float, label: str | None = None) -> None:
    """A ring around a configuration."""
    ring: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.8}
    axes.plot([cost], [quality], "o", color=CHOSEN, linestyle="none", label=label, **ring)


def draw_confidences(
    axes: Axes, lines: Sequence[tuple[str, Floats, Floats]], own: tuple[str, Floats, Floats] | None
) -> None:
    """Quality over confidence, one line per position from light (early) to dark (late).

    Lines are (name, confidence, quality) by bin; ``own`` is the full model's, dashed. Of more than
    ``MOST_NAMED`` evenly spread ones are named and the others thin.
    """
    named = evenly(len(lines), MOST_NAMED)
    many = len(lines) > MOST_NAMED
    for at, ((name, x, y), colour) in enumerate(zip(lines, sequence(len(lines)), strict=True)):
        thick = at in named
        axes.plot(
            *(x, y),
            color=colour,
            marker="o" if thick else None,
            markersize=3.5,
            linewidth=1.6 if thick else 0.7,
            label=label_of(name) if thick else None,
        )
    if own is not None:
        name, x, y = own
        axes.plot(x, y, color=INK, linewidth=1.4, linestyle=(0, (4, 3)), label=name)
    legend(axes, f"{len(named)} of {len(lines)} positions named" if many else "position")


def diagonal(axes: Axes) -> None:
    """Where quality equals confidence, on axes from 0 to 1."""
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1.2, zorder=0.5)


def label_of(name: str) -> str:
    """A name as a legend takes it: matplotlib hides labels that start with an underscore."""
    name = printable(name)
    return f" {name}" if name.startswith("_") else name


def set_labels(axes: Axes, x: str, y: str, title: str | None = None) -> None:
    """Labels in which a dollar is a dollar."""
    axes.set_xlabel(printable(x), parse_math=False)
    axes.set_ylabel(printable(y), parse_math=False)
    if title is not None:
        axes.set_title(printable(title), parse_math=False)


def legend(axes: Axes, title: str | None = None) -> None:
    """A small legend where there is most room, of labels in which a dollar is a dollar."""
    made = axes.legend(fontsize="small", title=title, title_fontsize="small", framealpha=0.85)
    for each in made.get_texts():
        each.set_parse_math(False)
