"""Asked against kept: for drops that one may ask for, what the frontier picks and what that lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offramp.core import percent, points
from offramp.report import figures
from offramp.report.page import FEW, Page, Row, drop_interval
from offramp.report.template import cells, grid

WANTED = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
"""Drops asked for, one after the other, to compare with what was kept."""


def kept_section(page: Page) -> str:
    """For each of several drops asked for, what was picked, and what was lost on the report split."""
    picked = [page.within(wanted) for wanted in WANTED]
    lines = map(_line, WANTED, picked)
    body = f"<tbody>{''.join(lines)}\n</tbody>"
    said = "in-sample drop" if page.in_sample else "promised drop"
    columns = ("asked for", "no.", page.spent, said, "measured drop", "95% interval", "kept?")
    label = "Drops asked for, and what was kept of them"
    return f"""<section><h2>Asked against kept</h2>
<p class=quiet>For each drop of {page.measure} that one may ask for,
<code>frontier.at(max_drop=&hellip;)</code> picks the cheapest configuration by the figures
{page.come_from}. What that one lost is measured on the report split,
which had no part in it. All in points.{_remarks(page, picked)}</p>
<div class=pair>{grid(label, "kept", columns, body)}
{_picture(page, picked)}</div></section>
"""


def _line(wanted: float, row: Row | None) -> str:
    values: Sequence[str] = ("none", *["&ndash;"] * 5)
    if row is not None:
        values = (
            f"{row.number}",
            percent(row.outcome.relative_cost),
            points(row.expected.drop),
            points(row.drop),
            drop_interval(row) + "*" * row.doubtful,
            _verdict(row, wanted),
        )
    return f"\n<tr><th scope=row>{100 * wanted:g}</th>{cells(values)}</tr>"


def _verdict(row: Row, wanted: float) -> str:
    """Whether no more was lost than asked for, on these samples."""
    if row.drop <= wanted + 1e-12:
        return "yes"
    return "within the interval" if row.drop - row.margin <= wanted else "no"


def _remarks(page: Page, picked: Sequence[Row | None]) -> str:
    remarks = ""
    if None in picked:
        best, kind = page.rows[-1].expected.drop, "in-sample" if page.in_sample else "as promised"
        remarks += f" The best configuration loses {points(best)} {kind}."
    if any(row is not None and row.doubtful for row in picked):
        remarks += f" * Fewer than {FEW} samples differ from the full model: too few for this interval."
    return remarks


def _picture(page: Page, picked: Sequence[Row | None]) -> str:
    shown = [(wanted, row.drop, row.margin) for wanted, row in zip(WANTED, picked, strict=True) if row]
    if not shown:
        return ""
    wanted, kept, margin = 100 * np.array(shown).T
    return figures.kept_figure(wanted, kept, margin, page.measure)
