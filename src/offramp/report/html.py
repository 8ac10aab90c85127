"""The report: one HTML page that says what a frontier is worth. No script, no network, no other file.

    search split  -> the configurations, their `expected` figures (promised for new samples, or in-sample and
                     called so), and which one the headline names
    report split  -> every other figure: nothing on the page was chosen on it

Same arguments, same bytes. Every name is escaped; the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offramp._version import __version__
from offramp.core import (
    CostTable,
    ExitRecords,
    Frontier,
    Guarantee,
    check_arguments,
    escaped as text,
    percent,
    points,
    points_interval,
    single_exits,
)
from offramp.errors import StorageError
from offramp.report import figures
from offramp.report.doubts import Doubt, doubt_about
from offramp.report.kept import kept_section
from offramp.report.page import FEW, Page, Row, amount, drop_interval, gained
from offramp.report.template import CSS, SHELL, cells, grid
from offramp.storage import storage_errors, write_text

_MANIFEST = "manifest.json"  # of artifacts and exports
_HOW_EXPECTED = {
    True: "the figures called in-sample come from those and are optimistic.",
    False: "the figures promised for new samples were cross-fitted on those.",
}
_FULL = "the full model&rsquo;s"
_MEANING = {
    "accuracy": "the share of samples with a right answer",
    "agreement": f"the mean agreement of an answer with {_FULL}",
    "quality": "the mean of a score between 0 and 1 per sample",
}


def write_report(
    path: str | Path,
    frontier: Frontier,
    records: ExitRecords,
    costs: CostTable,
    *,
    title: str = "Early-exit report",
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write the report to an HTML file, whole or not at all; missing folders are made.

    ``records`` are of the report split: samples that neither training nor search has seen. ``notes`` are what
    a reader should know (model, data, device), as label and text. What is returned is the path.

    Raises:
        InputError: no samples, or frontier, records and costs are not of the same network.
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    check_arguments(
        "write_report",
        {
            "path": (path, (str, Path)),
            "frontier": (frontier, Frontier),
            "records": (records, ExitRecords),
            "costs": (costs, CostTable),
        },
    )
    _check_no_part(Path(path))
    write_text(Path(path), render_report(frontier, records, costs, title=title, notes=notes))
    return Path(path)


def _check_no_part(path: Path) -> None:
    """Refuse to write over a part of an artifact or an export: ``StorageError``."""
    with storage_errors(path):
        described = path.absolute().parent / _MANIFEST
        if not described.is_file() or not path.exists():
            return
        names = re.findall(r'"([^"/]+)"\s*:\s*{\s*"bytes"', described.read_text(errors="replace"))
        parts = [part for name in (_MANIFEST, *names) if (part := described.with_name(name)).is_file()]
        if any(part.samefile(path) for part in parts):
            raise StorageError(f"{path} is a part of the artifact in {path.parent}; choose another file")


def render_report(
    frontier: Frontier,
    records: ExitRecords,
    costs: CostTable,
    *,
    title: str = "Early-exit report",
    notes: Mapping[str, str] | None = None,
) -> str:
    """The page that ``write_report`` writes, as text; it raises the same but ``StorageError``."""
    figures.require_matplotlib()
    page = Page(frontier, records, costs)
    body = (
        f"<header><p class=kicker>{text(title)}</p>\n{_headline(page)}</header>\n"
        f"<main><div class=cards>\n{_figures(page)}{_facts(page, notes or {})}</div>\n"
        f"{_guarantees(page)}{kept_section(page)}{_table(page)}{_details(page)}</main>\n{_footer(page)}"
    )
    return SHELL.format(title=text(title), style=CSS + figures.CSS, body=body)


def _headline(page: Page) -> str:
    row, spent, name = page.chosen, text(page.spent), page.measure
    doubt = doubt_about(page.records)
    cost, own, full = percent(row.outcome.relative_cost), points(row.outcome.quality), points(page.full)
    if doubt is not None:
        sentence = "Early exits beat the full model: do the preprocessing and the classes fit it?"
    elif not row.config.choices:
        sentence = f"No early exit pays here: the rule picks the full model itself ({full} points of {name})."
    elif row.drop >= 0:
        sentence = f"At {cost} of {_FULL} {spent}, this model keeps {own} of its {full} points of {name}."
    else:
        sentence = f"At {cost} of {_FULL} {spent}, this model reaches {own} points of {name}, up from {full}."
    ends = (row.drop - row.margin, row.drop + row.margin)
    measured = "not known" if math.isnan(row.margin) else gained(ends)
    keys = [
        (cost, f"of {_FULL} {spent}"),
        (f"{points(-row.drop, sign=True)} points", f"of {name}; 95% interval {measured}"),
        (f"{page.records.samples:,}", "samples that the search has not seen"),
    ]
    if not page.in_sample:
        promised, within = points(-row.expected.drop, sign=True), row.expected.drop_interval
        interval = "" if within is None else f"; 95% interval {gained(within)}"
        keys.insert(2, (f"{promised} points", f"promised for new samples{interval}"))
    tiles = "".join(f"<li><b>{value}</b> <span>{label}</span></li>" for value, label in keys)
    return (
        f"<h1>{sentence}</h1>\n{_question(doubt)}<ul class=keys>{tiles}</ul>\n"
        f"<p class=quiet>This is configuration {row.number}: {page.rule}. Its figures here are from the "
        "report split, which had no part in the choice.</p>\n"
    )


def _question(doubt: Doubt | None) -> str:
    """What makes the headline ask; nothing where it does not."""
    if doubt is None:
        return ""
    said = text(str(doubt).partition(": do the ")[0])
    return (
        f"<p><b>{said[:1].upper()}{said[1:]}.</b> Heads learn from the samples as they come; the model does "
        "not. If its quality here is not the one you know, look at the preprocessing and the order of the "
        "classes before anything else on this page.</p>\n"
    )


def _figures(page: Page) -> str:
    records, costs, rows = page.records, page.costs, page.rows
    cost = np.array([100 * row.outcome.relative_cost for row in rows] + [100.0])
    quality = np.array([100 * row.outcome.quality for row in rows] + [100 * page.full])
    paid, reached = (100 * values for values in single_exits(records, costs))
    shares = np.array([row.outcome.exit_shares for row in rows])
    labels = [f"{row.number} · {100 * row.outcome.relative_cost:.0f}%" for row in rows]
    names, heads = (page.spent, page.measure), records.heads
    return (
        figures.frontier_figure(
            cost, quality, page.chosen.number, (paid, reached), heads, names, _searched(page)
        )
        + figures.depth_figure(records.positions, reached, 100 * page.full, heads, page.measure)
        + figures.shares_figure(labels, shares, records.positions, page.chosen.number)
    )


def _searched(page: Page) -> figures.SearchCurve | None:
    """What the search said, moved to the full model's quality on the report split: drops are compared.

    None where relative costs of the search are not those of the report.
    """
    if not page.same_costs:
        return None
    moved, curves = 100 * (page.full - page.rows[0].expected.full_quality), page.curves
    return figures.SearchCurve(
        cost=curves["cost"],
        quality=curves["quality"] + moved,
        interval=curves["interval"] + moved,
        in_sample=page.in_sample,
    )


def _facts(page: Page, notes: Mapping[str, str]) -> str:
    facts = {
        f"Full model, {page.measure}": f"{points(page.full)}%",
        "Full model, cost": amount(page.costs.full, page.costs.unit),
        "Configurations": f"{len(page.rows)}",
        "Report split": f"{page.records.samples:,} samples",
        "Search split": f"{page.rows[0].expected.samples:,} samples",
    }
    parts = (facts, notes, _plain("search", page.search), _plain("cost", page.costs.meta or {}))
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for part in parts for k, v in part.items())
    return f"<section class=card><h2>At a glance</h2><dl>{items}</dl></section>\n"


def _plain(label: str, meta: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a meta mapping that are one word or number."""
    words = {k: v for k, v in meta.items() if isinstance(v, (str, int, float)) and v is not False}
    return {f"{label}: {k}": str(v) for k, v in words.items()}


def _table(page: Page) -> str:
    measure, spent, last = page.measure, page.spent, len(page.records.positions)
    own = (spent, measure, "drop", "95% interval of drop", "exits", "mean exit position")
    said = (spent, measure, "drop", *([] if page.in_sample else ["95% interval of drop"]))
    searched = points(page.rows[0].expected.full_quality)
    full = ["", "100.0%", points(page.full), "0.00", "", "0", f"{last}.0", "100.0%", searched, "0.00"]
    full += [""] * (not page.in_sample)
    group = "On the search split (in-sample)" if page.in_sample else "Promised for new samples, by the search"
    spans = f"<td colspan=2></td><th scope=colgroup colspan={len(own)}>On the report split</th>"
    spans += f"\n<th scope=colgroup colspan={len(said)}>{group}</th>"
    body = "".join(f"\n{_table_row(row, row is page.chosen, page.in_sample)}" for row in page.rows)
    body = f"<tbody>{body}\n</tbody>\n<tfoot><tr><th scope=row>full</th>{cells(full)}</tr></tfoot>"
    remarks = ""
    if any(row.doubtful for row in page.rows):
        remarks += f"* Fewer than {FEW} samples differ from the full model: too few for this interval. "
    if not page.same_costs:
        remarks += "The search used another cost table: its relative costs are not those of this report."
    columns = ("no.", "λ", *own, *said)
    return f"""<section><h2>All configurations</h2>
{grid("All configurations", "figures", columns, body, spans)}
<p class=quiet>The number is the index: <code>frontier[{page.chosen.number}]</code> is the highlighted one.
{measure.capitalize()} and drop are in points (hundredths); a negative drop means better than the full model.
Mean exit position counts from 0, the model&rsquo;s input, to {last}, the backbone&rsquo;s own output.
{remarks}</p></section>
"""


def _table_row(row: Row, chosen: bool, in_sample: bool) -> str:
    values = (
        "&ndash;" if row.config.tradeoff is None else f"{row.config.tradeoff:.4g}",
        percent(row.outcome.relative_cost),
        points(row.outcome.quality),
        points(row.drop),
        drop_interval(row) + "*" * row.doubtful,
        f"{len(row.config.choices)}",
        f"{row.outcome.position.mean():.1f}",
        percent(row.expected.relative_cost),
        points(row.expected.quality),
        points(row.expected.drop),
        *([] if in_sample else [points_interval(row.expected.drop_interval)]),
    )
    return f"<tr{' class=chosen' * chosen}><th scope=row>{row.number}</th>{cells(values)}</tr>"


def _guarantees(page: Page) -> str:
    """What was certified, in words and numbers; nothing where nothing was."""
    certified = [(row, row.config.certificate) for row in page.rows if row.config.certificate]
    if not certified:
        return ""
    said = "".join(
        f"<p><b>Configuration {row.number}.</b> {text(each).replace(' = ', '&nbsp;=&nbsp;')}</p>\n"
        for row, each in certified
    )
    body = "".join(
        f"\n<tr><th scope=row>{row.number}</th>{cells(_guarantee(each.delta, one))}</tr>"
        for row, each in certified
        for one in each.guarantees
    )
    body = f"<tbody>{body}\n</tbody>"
    columns = ("no.", "what is bounded", "bound", "observed", "samples", "delta", "p-value", "test")
    return f"""<section><h2>Guarantees</h2>
{said}{grid("Guarantees", "guarantees", columns, body)}
<p class=quiet>A guarantee is about new samples of the same distribution, for one configuration at a time.
Where it was made on the report split, that configuration was chosen on it: its other figures here are no
independent evidence.</p></section>
"""


def _guarantee(delta: float, one: Guarantee) -> list[str]:
    numbers = (f"{value:.4g}".replace("-", "\u2212") for value in (one.bound, one.observed + 0.0))
    rest = (f"{one.samples:,}", f"{delta:g}", f"{one.p_value:.2g}", text(one.test))
    return [text(one.risk), *numbers, *rest]


def _details(page: Page) -> str:
    groups = []
    for row in page.rows:
        lines = [
            (choice.position, choice.head, f"{choice.threshold:.6g}".replace("inf", "∞"))
            for choice in row.config.choices
        ]
        places = [*(page.records.positions.index(position) for position, _, _ in lines), -1]
        lines.append((figures.OWN_OUTPUT, "", ""))
        left = [percent(float(row.outcome.exit_shares[at])) for at in places]
        shown = [cells([*map(text, line), share]) for line, share in zip(lines, left, strict=True)]
        number = f'<th scope=rowgroup rowspan="{len(lines)}">{row.number}</th>'
        groups.append(f"<tbody><tr>{number}{'</tr><tr>'.join(shown)}</tr></tbody>")
    columns, body = ("no.", "position", "head", "threshold", "leave"), "\n".join(groups)
    return f"""<details><summary>Enabled exits and thresholds of each configuration</summary>
{grid("Enabled exits", "exits", columns, body)}</details>
"""


def _footer(page: Page) -> str:
    unit = "MACs" if page.costs.unit == "macs" else text(page.costs.unit)
    full = text(amount(page.costs.full, page.costs.unit))
    seen, how = f"{page.records.samples:,}", _HOW_EXPECTED[page.in_sample]
    searched = f"{page.rows[0].expected.samples:,}"
    return f"""<footer><p><b>Cost</b> is the mean per sample in {unit}: the backbone up to the exit taken plus
every enabled head passed on the way, taken or not. The full model costs {full}.
<b>{page.measure.capitalize()}</b> is {_MEANING[page.measure]}. A sample leaves at the first enabled exit
whose confidence is strictly above its threshold.</p>
<p><b>Splits.</b> Configurations were searched on {searched} samples (search split); {how}
Everything else was measured on {seen} other samples (report split).
<b>Intervals</b> are 95% intervals of the mean paired difference per sample, by the normal approximation; each
holds for one configuration, not for all at once.</p>
<p>Made with offramp {text(__version__)}.</p></footer>
"""
