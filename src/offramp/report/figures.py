"""Figures of the report: arrays in, HTML <figure> with inline SVG out. Needs matplotlib (extra ``plot``).

Text stays text, ids carry the figure's name (several share a page), and the same arrays give the same bytes
whatever the caller's matplotlib settings are. The pyplot state is not touched. Legends are HTML: they wrap.
"""

from __future__ import annotations

import html
import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offramp.errors import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Legend = Iterable[tuple[str, str, str]]
"""Entries: colour, mark (one character), name."""

MAX_BARS, SELECTED_BARS = 25, 16
WIDTH = 3.9  # inches; on a phone (320 px left for a figure) 9.5 pt then come out as 10.8 px
INK, QUIET, RULE = "#1f2937", "#5b6472", "#d9dde3"
LINE, CHOSEN, OUTPUT = "#0b4f8a", "#c2410c", "#c4c8ce"

# Okabe and Ito's colours (without the yellow, too faint on white) and two of Paul Tol's; each head type also
# has its own marker, so that no distinction rests on colour alone.
_COLOURS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#882255", "#999933", "#44aa99")
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"))

PALETTE = {
    "text.color": INK,
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), QUIET),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), RULE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
}
"""Matplotlib settings that every picture of the project shares."""

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


def text(value: object) -> str:
    """Any text as HTML text; characters that do not print (controls, text direction) become U+FFFD."""
    return html.escape(_printable(str(value)))


def _printable(value: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in value)


def require_matplotlib() -> None:
    """Check for the extra before any work is done; a ``MissingExtraError`` if matplotlib is not installed."""
    with needs_extra("plot", "a report needs matplotlib; install it"):
        import matplotlib  # noqa: F401 (only whether it is there)


def frontier_figure(
    cost: Floats,
    quality: Floats,
    chosen: int,
    alone: tuple[Floats, Floats],
    heads: Sequence[str],
    names: tuple[str, str],
) -> str:
    """Quality over cost, in percent, (M+1,): of M configurations, ``chosen`` ringed, and last the full model.

    ``alone`` is cost and quality (P, C) of each exit taken by every sample, NaN where there is none;
    ``heads`` are C names, ``names`` what cost and quality are called.
    """
    x, y = alone
    xlim, ylim = _around(cost, 40.0, 0.1, 0.06), _around(quality, 2.0, 0.2, 0.12)
    count = int(np.isfinite(y).sum())
    shown = (x >= xlim[0]) & (x <= xlim[1]) & (y >= ylim[0]) & (y <= ylim[1])

    def draw(axes: Axes) -> None:
        for head in range(len(heads)):
            colour, marker, _ = _mark(head)
            at = shown[:, head]
            size = 4 if count <= 60 else 2.8
            axes.plot(x[at, head], y[at, head], marker, color=colour, markersize=size, alpha=0.85)
        size, width = (4.5, 1.6) if cost.size <= 60 else (2.8, 1.1)  # hundreds of them stay a line
        axes.plot(cost[:-1], quality[:-1], "o-", color=LINE, markersize=size, linewidth=width)
        axes.plot(cost[-1:], quality[-1:], "*", color=INK, markersize=11)
        ring: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.8}
        axes.plot(cost[[chosen]], quality[[chosen]], "o", color=CHOSEN, **ring)
        axes.locator_params(axis="x", nbins=7)
        axes.set(xlim=xlim, ylim=ylim, ylabel=f"{names[1]} (%)")
        axes.set_xlabel(f"{_short(names[0], 24)} (% of the full model)")

    title = f"{names[1]} against cost"
    own = [(LINE, "●", "configurations"), (CHOSEN, "○", f"configuration {chosen}"), (INK, "★", "full model")]
    caption = "Up and to the left is better. Small marks are single exits that every sample takes."
    if hidden := count - int(shown.sum()):
        caption += f" {hidden} of the {count} lie outside this window."
    return _figure("frontier", title, 3.0, draw, [*own, *_legend(heads)], caption)


def _around(values: Floats, least: float, below: float, above: float) -> tuple[float, float]:
    """Limits with air around all values, at least ``least`` apart; ``below`` and ``above`` are fractions."""
    top, span = float(values.max()), max(float(np.ptp(values)), least)
    return max(0.0, top - (1 + below) * span), top + above * span


def shares_figure(labels: Sequence[str], shares: Floats, positions: Sequence[str], chosen: int) -> str:
    """Stacked bars: where the samples leave, one per configuration (M), ``chosen`` of them emphasised.

    ``shares`` are fractions (M, P+1), last the backbone's own output; ``positions`` are P names. Of
    more than ``MAX_BARS`` an evenly spread selection is shown, ``chosen`` always among them.
    """
    caption = "One bar per configuration, with its cost; early positions are light, late ones dark."
    picked = np.arange(len(labels))
    if len(labels) > MAX_BARS:
        picked = np.linspace(0, len(labels) - 1, SELECTED_BARS).round().astype(int)
        picked[np.abs(picked - chosen).argmin()] = chosen
        caption += f" {len(picked)} of {len(labels)} are shown, evenly spread; the table has all."
    labels, shares = [labels[int(at)] for at in picked], shares[picked]
    used = np.flatnonzero(shares[:, :-1].sum(axis=0)).tolist()
    colours = [*_sequence(len(used)), OUTPUT]
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
    return _figure("shares", title, 0.7 + 0.23 * len(labels), draw, legend, caption)


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
            colour, marker, _ = _mark(head)
            size = 4.5 if len(positions) <= 20 else 2.6
            axes.plot(alone[:, head], marker=marker, color=colour, markersize=size, linewidth=1.4)
        axes.set(xlim=(-0.5, len(positions) - 0.5), ylabel=f"{name} (%)")
        slant: dict[str, Any] = {"rotation": 40, "ha": "right", "va": "center", "rotation_mode": "anchor"}
        axes.set_xticks(ticks, [_short(positions[at]) for at in ticks], **slant)
        axes.margins(y=0.08)

    title = f"{name} against depth"
    if np.isnan(alone).all():
        return _figure("depth", title, 3.0, None, [], "These records hold no exits.")
    caption = "Each exit on its own, on all samples. A gap means that there is no such head."
    legend = [(INK, "╌", "full model"), *_legend(heads)]
    return _figure("depth", title, 3.0, draw, legend, caption)


def _mark(head: int) -> tuple[str, str, str]:
    """Colour, matplotlib marker and the same marker as a character, of the head type with this index."""
    return _COLOURS[head % len(_COLOURS)], *_MARKERS[head % len(_MARKERS)]


def _legend(heads: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(_mark(at)[0], _mark(at)[2], name) for at, name in enumerate(heads)]


def _sequence(count: int) -> list[str]:
    """``count`` colours from light (early) to dark (late), told apart by lightness alone."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["YlGnBu"](level)) for level in np.linspace(0.22, 0.95, count)]


def _on(colour: str) -> str:
    """Dark or white, whichever reads better on ``colour``."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else INK


def _short(name: str, limit: int = 16) -> str:
    """A name that fits under an axis; the end is the telling part of a module's path."""
    name = _printable(name)
    return name if len(name) <= limit else "…" + name[1 - limit :]


def _figure(
    name: str, title: str, height: float, draw: Callable[[Axes], None] | None, legend: Legend, caption: str
) -> str:
    """A card with a picture, unless there is nothing to draw."""
    items = "".join(
        f'<li><i style="color:{colour}">{mark}</i>{text(name)}</li>' for colour, mark, name in legend
    )
    picture = "" if draw is None else _svg(name, height, title, draw)
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
    root.attrib |= {"role": "img", "aria-label": label, "stroke-linejoin": "round"}
    return ET.tostring(root, encoding="unicode")
