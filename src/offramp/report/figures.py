"""Figures of the report: arrays in, HTML <figure> with inline SVG out. Needs matplotlib (extra ``plot``).

Text stays text, ids carry the figure's name (several share a page), and the same arrays give the same bytes
whatever the caller's matplotlib settings are. The pyplot state is not touched. Legends are HTML: they wrap.
"""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offramp.core import escaped as text, evenly, plots, printable, short
from offramp.errors import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Legend = Iterable[tuple[str, str, str]]
"""Entries: colour, mark (one character), name."""

MAX_BARS, SELECTED_BARS = 25, 16
WIDTH = 3.9  # inches; on a phone (320 px left for a figure) 9.5 pt then come out as 10.8 px
INK, QUIET, LINE, CHOSEN, PALETTE = plots.INK, plots.QUIET, plots.LINE, plots.CHOSEN, plots.PALETTE
OUTPUT, BAND = "#c4c8ce", "#8fb0cf"

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.formatter.useoffset": False,
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    **PALETTE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.7,
    "savefig.transparent": True,
}

OWN_OUTPUT = "backbone's own output"
CSS = """
.card{margin:0;padding:18px min(22px,4vw);background:#fff;border:1px solid #e5e7ea;border-radius:10px}
.card svg{display:block;width:calc(100% + 10px);height:auto;max-width:470px;margin:8px -5px}
.card svg text{font-family:inherit!important}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:0;padding:0;list-style:none;font-size:.86rem}
.legend i{display:inline-block;width:1.15em;margin-right:.3em;font-style:normal;text-align:center}
"""
"""Style of what this module returns; it goes into the page once."""


def require_matplotlib() -> None:
    """Check for the extra before any work is done; a ``MissingExtraError`` if matplotlib is not installed."""
    with needs_extra("plot", "a report needs matplotlib; install it"):
        import matplotlib  # noqa: F401 (only whether it is there)


class SearchCurve(NamedTuple):
    """What the search said of M configurations, in percent.

    Cost (M,) relative to the full model's, quality (M,), and its 95 % intervals (M, 2), NaN where there are
    none; whether these are figures of the samples searched on.
    """

    cost: Floats
    quality: Floats
    interval: Floats
    in_sample: bool


def frontier_figure(
    cost: Floats,
    quality: Floats,
    chosen: int,
    alone: tuple[Floats, Floats],
    heads: Sequence[str],
    names: tuple[str, str],
    searched: SearchCurve | None = None,
) -> str:
    """Quality over cost, in percent, (M+1,): of M configurations, ``chosen`` ringed, and last the full model.

    ``alone`` is cost and quality (P, C) of each exit taken by every sample, NaN where there is none;
    ``heads`` are C names, ``names`` what cost and quality are called; ``searched`` is drawn beside what was
    measured.
    """
    x, y = alone
    every = [quality] if searched is None else [quality, searched.quality, searched.interval.ravel()]
    reached = np.concatenate(every)
    xlim, ylim = plots.window(cost, reached)
    count = int(np.isfinite(y).sum())
    shown = (x >= xlim[0]) & (x <= xlim[1]) & (y >= ylim[0]) & (y <= ylim[1])

    def draw(axes: Axes) -> None:
        plots.draw_single_exits(axes, x, y, (xlim, ylim))
        if searched is not None:
            _draw_searched(axes, searched)
        plots.draw_configurations(axes, cost[:-1], quality[:-1])
        plots.draw_full_model(axes, float(cost[-1]), float(quality[-1]))
        plots.draw_ring(axes, float(cost[chosen]), float(quality[chosen]))
        axes.locator_params(axis="x", nbins=7)
        axes.set(xlim=xlim, ylim=ylim, ylabel=f"{names[1]} (%)")
        axes.set_xlabel(f"{short(names[0], 24)} (% of the full model)")

    own = [(LINE, "●", "configurations"), (CHOSEN, "○", f"configuration {chosen}"), (INK, "★", "full model")]
    caption = "Up and to the left is better. Small marks are single exits that every sample takes."
    if hidden := count - int(shown.sum()):
        caption += f" {hidden} of the {count} lie outside this window."
    if searched is not None:
        own.append(_searched_entry(searched))
        source = "on the search samples (in-sample)" if searched.in_sample else "promised for new samples"
        line = "Dashed" if searched.in_sample else "The band"
        caption += f" {line}: the full model\u2019s {names[1]} here, less the drop {source}."
    title = f"{names[1]} against cost"
    label = (
        f"{title}: {len(quality) - 1} configurations from {quality[0]:.1f}% at {cost[0]:.1f}% of the cost to "
        f"{quality[-2]:.1f}% at {cost[-2]:.1f}%; full model {quality[-1]:.1f}%"
    )
    return _figure("frontier", title, 3.0, draw, [*own, *_legend(heads)], caption, label)


def _draw_searched(axes: Axes, searched: SearchCurve) -> None:
    if searched.in_sample:
        plots.draw_in_sample(axes, searched.cost, searched.quality, None)
        return
    plots.draw_band(axes, searched.cost, searched.interval)
    axes.plot(searched.cost, searched.quality, color=BAND, linewidth=1.2)


def _searched_entry(searched: SearchCurve) -> tuple[str, str, str]:
    if searched.in_sample:
        return QUIET, "╌", plots.IN_SAMPLE
    return BAND, "■", "promised, with 95% interval"


def kept_figure(wanted: Floats, kept: Floats, margin: Floats, name: str) -> str:
    """Drop of quality measured over drop asked for, both (A,) in points, with 95 % intervals.

    ``margin`` (A,) are half of those, NaN where not known; ``name`` is what quality is called. On the
    diagonal exactly as much was lost as was allowed. Both axes are linear to half a point and logarithmic
    beyond.
    """
    edges = [0.1, 0.2, 0.5, 1, 2, 5]

    def draw(axes: Axes) -> None:
        bars = np.nan_to_num(margin)
        axes.errorbar(wanted, kept, bars, fmt="o", color=LINE, markersize=4, elinewidth=1.3, capsize=2.5)
        low, high = float((kept - bars).min()), float((kept + bars).max())
        ends = np.array([wanted.min() / 1.5, wanted.max() * 1.3])
        axes.plot(ends, ends, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xscale("symlog", linthresh=0.5)
        axes.set_yscale("symlog", linthresh=0.5)
        low, high = min(low, 0.0), max(high, ends[1])
        axes.set(xlim=(0.0, ends[1]), ylim=(low - 0.1, high * 1.1))
        axes.set_xticks(edges, [f"{each:g}" for each in edges])
        ticks = [
            each for each in (-5, -2, -1, -0.5, 0, *edges[2:], 10, 20, 50) if low - 0.1 <= each <= high * 1.1
        ]
        axes.set_yticks(ticks, [f"{each:g}".replace("-", "\u2212") for each in ticks])
        axes.minorticks_off()
        axes.set(xlabel="drop asked for (points)", ylabel="drop measured (points)")

    title = "drop measured against drop asked for"
    held = int((kept <= wanted + 1e-9).sum())
    label = f"{title}: the drop measured is at most the drop asked for at {held} of {len(wanted)}"
    legend = [(LINE, "●", f"drop of {name}, 95% interval"), (INK, "╌", "as much as was asked for")]
    caption = "Below the dashed line less was lost than allowed. Linear to 0.5 points, logarithmic beyond."
    return _figure("kept", title, 3.0, draw, legend, caption, label)


def shares_figure(labels: Sequence[str], shares: Floats, positions: Sequence[str], chosen: int) -> str:
    """Stacked bars: where the samples leave, one per configuration (M), ``chosen`` of them emphasised.

    ``shares`` are fractions (M, P+1), last the backbone's own output; ``positions`` are P names. Of
    more than ``MAX_BARS`` an evenly spread selection is shown, ``chosen`` always among them.
    """
    caption = "One bar per configuration, with its cost; early positions are light, late ones dark."
    picked = np.arange(len(labels))
    if len(labels) > MAX_BARS:
        picked = np.array(evenly(len(labels), SELECTED_BARS, chosen))
        caption += f" {len(picked)} of {len(labels)} are shown, evenly spread; the table has all."
    labels, shares = [labels[int(at)] for at in picked], shares[picked]
    used = np.flatnonzero(shares[:, :-1].sum(axis=0)).tolist()
    colours = [*plots.sequence(len(used)), OUTPUT]
    columns = list(zip([*used, len(positions)], colours, strict=True))

    def draw(axes: Axes) -> None:
        rows, left = np.arange(len(labels)), np.zeros(len(labels))
        for position, colour in columns:
            width = 100 * shares[:, position]
            axes.barh(rows, width, 0.74, left, color=colour, edgecolor="white", linewidth=0.6 * (width > 0))
            for row in rows[width >= 11]:  # the number does not fit into less
                label = axes.text(left[row] + width[row] / 2, row, f"{width[row]:.0f}", color=_on(colour))
                label.set(ha="center", va="center_baseline", fontsize=8.5)
            left += width
        axes.set(xlim=(0, 100), ylim=(len(labels) - 0.4, -0.6), xlabel="share of samples (%)")
        axes.set_yticks(rows, labels)
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for row in rows[picked == chosen]:
            axes.get_yticklabels()[row].set(color=CHOSEN, fontweight="bold")

    title = "Where samples leave"
    names = [*(positions[at] for at in used), OWN_OUTPUT]
    legend = [(colour, "■", name) for colour, name in zip(colours, names, strict=True)]
    label = f"{title}: one bar for each of {len(labels)} configurations"
    return _figure("shares", title, 0.7 + 0.23 * len(labels), draw, legend, caption, label)


def depth_figure(
    positions: Sequence[str], alone: Floats, full: float, heads: Sequence[str], name: str
) -> str:
    """Quality of each exit alone over its position, one line per head type; the full model dashed.

    ``alone`` is (P, C) in percent, NaN where there is no such head; ``full``, in percent, of the full model;
    ``name`` is what quality is called.
    """
    ticks = range(0, len(positions), -(-len(positions) // 10))  # at most ten labels fit

    def draw(axes: Axes) -> None:
        axes.axhline(full, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        for head in range(len(heads)):
            colour, marker, _ = plots.mark(head)
            size = 4.5 if len(positions) <= 20 else 2.6
            axes.plot(alone[:, head], marker=marker, color=colour, markersize=size, linewidth=1.4)
        axes.set(xlim=(-0.5, len(positions) - 0.5), ylabel=f"{name} (%)")
        slant: dict[str, Any] = {"rotation": 40, "ha": "right", "va": "center", "rotation_mode": "anchor"}
        axes.set_xticks(ticks, [short(positions[at]) for at in ticks], **slant)
        axes.margins(y=0.08)

    title = f"{name} against depth"
    if np.isnan(alone).all():
        return _figure("depth", title, 3.0, None, [], "These records hold no exits.", title)
    caption = "Each exit on its own, on all samples. A gap means that there is no such head."
    legend = [(INK, "╌", "full model"), *_legend(heads)]
    best, where = float(np.nanmax(alone)), positions[int(np.nanargmax(alone)) // alone.shape[1]]
    label = f"{title}: the best exit on its own reaches {best:.1f}%, at {where}; the full model {full:.1f}%"
    return _figure("depth", title, 3.0, draw, legend, caption, label)


def _legend(heads: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(plots.mark(at)[0], plots.mark(at)[2], name) for at, name in enumerate(heads)]


def _on(colour: str) -> str:
    """Dark or white, whichever reads better on ``colour``."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else INK


def _figure(
    name: str,
    title: str,
    height: float,
    draw: Callable[[Axes], None] | None,
    legend: Legend,
    caption: str,
    label: str,
) -> str:
    """A card with a picture, unless there is nothing to draw; ``label`` is read aloud in its place."""
    items = "".join(
        f'<li><i style="color:{colour}" aria-hidden=true>{mark}</i>{text(name)}</li>'
        for colour, mark, name in legend
    )
    picture = "" if draw is None else _svg(name, height, label[0].upper() + label[1:], draw)
    return (
        f"<figure class=card><h2>{text(title[0].upper() + title[1:])}</h2><ul class=legend>{items}</ul>\n"
        f"{picture}\n<figcaption class=quiet>{text(caption)}</figcaption></figure>\n"
    )


def _svg(name: str, height: float, label: str, draw: Callable[[Axes], None]) -> str:
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    settings = {**_STYLE, "svg.hashsalt": name}
    with style.context(settings, after_reset=True), warnings.catch_warnings():
        # The browser draws the text: a glyph that matplotlib's own font lacks only makes its width a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        figure.set_canvas(FigureCanvasSVG(figure))
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    # a stand-alone document, made fit to sit in a page beside others
    root = ET.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        # A <style> would reach the whole page, not just its picture; the metadata say nothing.
        parent[:] = [child for child in parent if not child.tag.endswith(("}style", "}metadata"))]
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            own = value.replace("url(#", f"url(#{name}-")
            if key == "id":
                own = f"{name}-{value}"
            elif key.endswith("}href"):
                own = f"#{name}-{value.removeprefix('#')}"
            element.set(key.partition("}")[2] or key, own)
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.attrib |= {"role": "img", "aria-label": printable(label), "stroke-linejoin": "round"}
    return ET.tostring(root, encoding="unicode")
