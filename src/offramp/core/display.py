"""How data looks to people: numbers and names as text, small HTML tables, data frames.

Tables of a notebook are read aloud too: each has a caption, its headings say what they head, and
every name is escaped. The same formats serve the report.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from offramp.errors import needs_extra

if TYPE_CHECKING:
    from pandas import DataFrame

UNKNOWN = "\N{EN DASH}"
MOST_ROWS = 12
"""Rows of a table in a notebook; of more, this many evenly spread ones are shown."""

_CAPTION = "caption-side:top;text-align:left;font-weight:600;white-space:normal"
_LEFT = "text-align:left"


def printable(value: object) -> str:
    """Any value as text; characters that do not print (controls, text direction) become U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(value))


def escaped(value: object) -> str:
    """Any value as HTML text, made ``printable``."""
    return html.escape(printable(value))


def short(name: str, limit: int = 16) -> str:
    """A name of at most ``limit`` characters; the end is the telling part of a module's path."""
    name = printable(name)
    return name if len(name) <= limit else "…" + name[1 - limit :]


def counted(count: int, unit: str) -> str:
    """A number with its unit: "1 sample", "1,200 samples"."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def percent(fraction: float) -> str:
    """A fraction as "43.1%"; a dash where it is not known."""
    return UNKNOWN if math.isnan(fraction) else f"{100 * fraction:.1f}%"


def points(fraction: float, sign: bool = False) -> str:
    """Hundredths with two decimals and a real minus sign; never "-0.00"; ``sign`` shows a plus too."""
    value = round(100 * fraction, 2) + 0.0
    return f"{value:{'+' if sign and value else ''}.2f}".replace("-", "\u2212")


def points_interval(interval: tuple[float, float] | None) -> str:
    """Both ends of an interval of fractions in points, or a dash."""
    return UNKNOWN if interval is None else " to ".join(map(points, interval))


def evenly(count: int, most: int = MOST_ROWS, always: int | None = None) -> list[int]:
    """At most ``most`` evenly spread indices below ``count``: first, last, and ``always`` are among them.

    ``most`` is at least 3.
    """
    if count <= most:
        return list(range(count))
    picked = np.linspace(0, count - 1, most).round().astype(int)
    if always is not None and always not in picked:
        picked[1 + np.abs(picked[1:-1] - always).argmin()] = always
    return sorted({int(at) for at in picked})


def html_table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, total: int | None = None
) -> str:
    """A table for a notebook: the first column heads the rows; every value is escaped.

    ``total`` is how many rows there are, where not all of them are given.
    """
    heads = "".join(f'<th scope="col">{escaped(name)}</th>' for name in columns)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{escaped(value)}</td>" for value in others)
        lines.append(f'<tr><th scope="row" style="{_LEFT}">{escaped(first)}</th>{cells}</tr>')
    note = "" if total is None or total == len(lines) else f"; {len(lines)} of {total:,} rows"
    return (
        f'<table style="min-width:26em"><caption style="{_CAPTION}">{escaped(caption + note)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table>"
    )


def data_frame(rows: Sequence[Mapping[str, Any]], index: str) -> DataFrame:
    """A pandas DataFrame with one row per mapping, numbered from 0 in an index of that name.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    with needs_extra("notebook", "a data frame needs pandas; install it"):
        import pandas
    return pandas.DataFrame(list(rows), index=pandas.RangeIndex(len(rows), name=index))
