"""The report: one HTML page that says what a frontier is worth. No script, no network, no other file.

    search split  -> the configurations, their `expected` figures, and which one the headline names
    report split  -> every other figure: nothing on the page was chosen on it

Same arguments, same bytes. Every name is escaped; the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offramp._version import __version__
from offramp.core import (
    CostTable,
    ExitConfig,
    ExitRecords,
    Expected,
    Frontier,
    Guarantee,
    Outcome,
    evaluate,
    full_quality,
    simulate,
)
from offramp.report import figures
from offramp.report.figures import text
from offramp.report.template import CSS, SHELL
from offramp.storage import write_text

HEADLINE_DROP = 0.005  # the headline's configuration may lose half a point on the search split
FEW = 10  # below this many changed samples a normal interval is not to be trusted
_Z = 1.959964  # two-sided 95 % quantile of the normal distribution

_UNITS = {"macs": (" MACs", "MACs"), "seconds": ("s", "time"), "joules": ("J", "energy")}
"""Known units: (symbol, the word for what is spent)."""
_RULES = (
    "the best one on the search split, where none stays within {} of the full model",
    "the cheapest one that loses at most {} on the search split",
)
_FULL = "the full model&rsquo;s"
_MEANING = {
    "accuracy": "the share of samples with a right answer",
    "agreement": f"the mean agreement of an answer with {_FULL}",
    "quality": "the mean of a score between 0 and 1 per sample",
}


@dataclass(frozen=True)
class _Row:
    """One configuration on the report split.

    ``drop`` is the mean of full quality minus quality; ``margin`` half its 95 % interval (NaN for N < 2),
    which is ``doubtful`` where too few samples stand behind it.
    """

    number: int
    config: ExitConfig
    expected: Expected
    outcome: Outcome
    drop: float
    margin: float
    doubtful: bool


class _Page:
    """What the page is made from. ``full`` is the full model's mean quality on the report split."""

    def __init__(self, frontier: Frontier, records: ExitRecords, costs: CostTable) -> None:
        self.records, self.costs, self.search = records, costs, frontier.meta
        self.rows = [_row(number, config, records, costs) for number, config in enumerate(frontier)]
        # the headline's configuration, by the search split's figures alone
        good = [row for row in self.rows if row.expected.drop <= HEADLINE_DROP + 1e-12]  # as Frontier.at does
        self.chosen = good[0] if good else self.rows[-1]
        self.rule = _RULES[bool(good)].format(f"{100 * HEADLINE_DROP:g} points")
        self.full = full_quality(records)
        values = (records.quality[records.exists], records.final_quality)
        right = all(((v == 0) | (v == 1)).all() for v in values)  # else it is a score, not an accuracy
        kind = records.quality_kind
        self.measure = "agreement" if kind == "agreement" else "accuracy" if right else "quality"
        self.spent = _UNITS.get(costs.unit, ("", f"cost in {costs.unit}"))[1]


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
    write_text(Path(path), render_report(frontier, records, costs, title=title, notes=notes))
    return Path(path)


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
    page = _Page(frontier, records, costs)
    body = (
        f"<header><p class=kicker>{text(title)}</p>\n{_headline(page)}</header>\n"
        f"<main><div class=cards>\n{_figures(page)}{_facts(page, notes or {})}</div>\n"
        f"{_guarantees(page)}{_table(page)}{_details(page)}</main>\n{_footer(page)}"
    )
    return SHELL.format(title=text(title), style=CSS + figures.CSS, body=body)


def _row(number: int, config: ExitConfig, records: ExitRecords, costs: CostTable) -> _Row:
    outcome = evaluate(records, costs, config)
    lost = records.final_quality - simulate(records, config).quality  # paired: the same samples under both
    margin = _Z * float(lost.std(ddof=1)) / math.sqrt(lost.size) if lost.size > 1 else math.nan
    few = bool(config.choices) and int((lost != 0).sum()) < FEW and not math.isnan(margin)
    assert config.expected is not None  # Frontier accepts no other
    return _Row(
        number=number,
        config=config,
        expected=config.expected,
        outcome=outcome,
        drop=float(lost.mean()),
        margin=margin,
        doubtful=few,
    )


def _headline(page: _Page) -> str:
    row, spent, name = page.chosen, text(page.spent), page.measure
    cost, own, full = _percent(row.outcome.relative_cost), _points(row.outcome.quality), _points(page.full)
    if not row.config.choices:
        sentence = f"No early exit pays here: the rule picks the full model itself ({full} points of {name})."
    elif row.drop >= 0:
        sentence = f"At {cost} of {_FULL} {spent}, this model keeps {own} of its {full} points of {name}."
    else:
        sentence = f"At {cost} of {_FULL} {spent}, this model reaches {own} points of {name}, up from {full}."
    keys = {
        cost: f"of {_FULL} {spent}",
        f"{_points(-row.drop, sign=True)} points": f"of {name}; 95% interval {_interval(row, -1)}",
        f"{page.records.samples:,}": "samples that the search has not seen",
    }
    tiles = "".join(f"<li><b>{value}</b> <span>{label}</span></li>" for value, label in keys.items())
    return (
        f"<h1>{sentence}</h1>\n<ul class=keys>{tiles}</ul>\n"
        f"<p class=quiet>This is configuration {row.number}: {page.rule}. Its figures here are from the "
        "report split, which had no part in the choice.</p>\n"
    )


def _figures(page: _Page) -> str:
    records, costs, rows = page.records, page.costs, page.rows
    cost = np.array([100 * row.outcome.relative_cost for row in rows] + [100.0])
    quality = np.array([100 * row.outcome.quality for row in rows] + [100 * page.full])
    reached = records.quality.mean(axis=2, dtype=np.float64)
    paid = (costs.backbone[:-1, None] + costs.heads) / costs.full
    alone = tuple(100 * np.where(records.exists, values, np.nan) for values in (paid, reached))
    shares = np.array([row.outcome.exit_shares for row in rows])
    labels = [f"{row.number} · {100 * row.outcome.relative_cost:.0f}%" for row in rows]
    names, heads = (page.spent, page.measure), records.heads
    return (
        figures.frontier_figure(cost, quality, page.chosen.number, (alone[0], alone[1]), heads, names)
        + figures.depth_figure(records.positions, alone[1], 100 * page.full, heads, page.measure)
        + figures.shares_figure(labels, shares, records.positions, page.chosen.number)
    )


def _facts(page: _Page, notes: Mapping[str, str]) -> str:
    facts = {
        f"Full model, {page.measure}": f"{_points(page.full)}%",
        "Full model, cost": _amount(page.costs.full, page.costs.unit),
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


def _grid(label: str, kind: str, columns: Sequence[str], body: str, spans: str = "") -> str:
    """A table that scrolls by itself; ``body`` follows its head, whose first row may be ``spans``."""
    above = f"<tr class=groups>{spans}</tr>\n" if spans else ""
    names = "".join(f"<th scope=col>{text(name)}</th>" for name in columns)
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{label}"><table class={kind}>\n'
        f"<thead>{above}<tr>{names}</tr></thead>\n{body}\n</table></div>"
    )


def _table(page: _Page) -> str:
    measure, spent, last = page.measure, page.spent, len(page.records.positions)
    own = (spent, measure, "drop", "95% interval of drop", "exits", "mean exit position")
    searched = _points(page.rows[0].expected.full_quality)
    full = ("", "100.0%", _points(page.full), "0.00", "", "0", f"{last}.0", "100.0%", searched, "0.00")
    spans = f"<td colspan=2></td><th scope=colgroup colspan={len(own)}>On the report split</th>"
    spans += "\n<th scope=colgroup colspan=3>Expected, from the search split</th>"
    body = "".join(f"\n{_table_row(row, row is page.chosen)}" for row in page.rows)
    body = f"<tbody>{body}\n</tbody>\n<tfoot><tr><th scope=row>full</th>{_cells(full)}</tr></tfoot>"
    remarks = ""
    if any(row.doubtful for row in page.rows):
        remarks += f"* Fewer than {FEW} samples differ from the full model: too few for this interval. "
    if not math.isclose(page.rows[0].expected.full_cost, page.costs.full, rel_tol=1e-6):
        remarks += "The search used another cost table: its relative costs are not those of this report."
    columns = ("no.", "λ", *own, spent, measure, "drop")
    return f"""<section><h2>All configurations</h2>
{_grid("All configurations", "figures", columns, body, spans)}
<p class=quiet>The number is the index: <code>frontier[{page.chosen.number}]</code> is the highlighted one.
{measure.capitalize()} and drop are in points (hundredths); a negative drop means better than the full model.
Mean exit position counts from 0, the model&rsquo;s input, to {last}, the backbone&rsquo;s own output.
{remarks}</p></section>
"""


def _table_row(row: _Row, chosen: bool) -> str:
    cells = (
        "&ndash;" if row.config.tradeoff is None else f"{row.config.tradeoff:.4g}",
        _percent(row.outcome.relative_cost),
        _points(row.outcome.quality),
        _points(row.drop),
        _interval(row) + "*" * row.doubtful,
        f"{len(row.config.choices)}",
        f"{row.outcome.position.mean():.1f}",
        _percent(row.expected.relative_cost),
        _points(row.expected.quality),
        _points(row.expected.drop),
    )
    return f"<tr{' class=chosen' * chosen}><th scope=row>{row.number}</th>{_cells(cells)}</tr>"


def _cells(values: Sequence[str]) -> str:
    return "".join(f"<td>{value}</td>" for value in values)


def _guarantees(page: _Page) -> str:
    """What was certified, in words and numbers; nothing where nothing was."""
    certified = [(row, row.config.certificate) for row in page.rows if row.config.certificate]
    if not certified:
        return ""
    said = "".join(
        f"<p><b>Configuration {row.number}.</b> {text(each).replace(' = ', '&nbsp;=&nbsp;')}</p>\n"
        for row, each in certified
    )
    body = "".join(
        f"\n<tr><th scope=row>{row.number}</th>{_cells(_guarantee(each.delta, one))}</tr>"
        for row, each in certified
        for one in each.guarantees
    )
    body = f"<tbody>{body}\n</tbody>"
    columns = ("no.", "what is bounded", "bound", "observed", "samples", "delta", "p-value", "test")
    return f"""<section><h2>Guarantees</h2>
{said}{_grid("Guarantees", "guarantees", columns, body)}
<p class=quiet>A guarantee is about new samples of the same distribution, for one configuration at a time.
Where it was made on the report split, that configuration was chosen on it: its other figures here are no
independent evidence.</p></section>
"""


def _guarantee(delta: float, one: Guarantee) -> list[str]:
    numbers = (f"{value:.4g}".replace("-", "\u2212") for value in (one.bound, one.observed + 0.0))
    rest = (f"{one.samples:,}", f"{delta:g}", f"{one.p_value:.2g}", text(one.test))
    return [text(one.risk), *numbers, *rest]


def _details(page: _Page) -> str:
    groups = []
    for row in page.rows:
        lines = [
            (choice.position, choice.head, f"{choice.threshold:.6g}".replace("inf", "∞"))
            for choice in row.config.choices
        ]
        places = [*(page.records.positions.index(position) for position, _, _ in lines), -1]
        lines.append((figures.OWN_OUTPUT, "", ""))
        left = [_percent(float(row.outcome.exit_shares[at])) for at in places]
        cells = [_cells([*map(text, line), share]) for line, share in zip(lines, left, strict=True)]
        number = f'<th scope=rowgroup rowspan="{len(lines)}">{row.number}</th>'
        groups.append(f"<tbody><tr>{number}{'</tr><tr>'.join(cells)}</tr></tbody>")
    columns, body = ("no.", "position", "head", "threshold", "leave"), "\n".join(groups)
    return f"""<details><summary>Enabled exits and thresholds of each configuration</summary>
{_grid("Enabled exits", "exits", columns, body)}</details>
"""


def _footer(page: _Page) -> str:
    unit = "MACs" if page.costs.unit == "macs" else text(page.costs.unit)
    full = text(_amount(page.costs.full, page.costs.unit))
    searched, seen = f"{page.rows[0].expected.samples:,}", f"{page.records.samples:,}"
    return f"""<footer><p><b>Cost</b> is the mean per sample in {unit}: the backbone up to the exit taken plus
every enabled head passed on the way, taken or not. The full model costs {full}.
<b>{page.measure.capitalize()}</b> is {_MEANING[page.measure]}. A sample leaves at the first enabled exit
whose confidence is strictly above its threshold.</p>
<p><b>Splits.</b> Configurations were searched on {searched} samples (search split); their expected figures
come from those and can be optimistic. Everything else was measured on {seen} other samples (report split).
<b>Intervals</b> are 95% intervals of the mean paired difference per sample, by the normal approximation; each
holds for one configuration, not for all at once.</p>
<p>Made with offramp {text(__version__)}.</p></footer>
"""


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _points(fraction: float, sign: bool = False) -> str:
    """Hundredths with two decimals and a real minus sign; never "-0.00"."""
    value = round(100 * fraction, 2) + 0.0
    return f"{value:{'+' if sign and value else ''}.2f}".replace("-", "\u2212")


def _interval(row: _Row, direction: int = 1) -> str:
    if math.isnan(row.margin):
        return "not known"
    ends = (direction * row.drop - row.margin, direction * row.drop + row.margin)
    return " to ".join(_points(end, sign=direction < 0) for end in ends)


def _amount(value: float, unit: str) -> str:
    """``1.2575e8 macs`` as "125.8 M MACs", ``0.0123 seconds`` as "12.3 ms"."""
    if unit not in _UNITS:
        return f"{value:.4g} {unit}"
    power = min(max(math.floor(math.log10(value) / 3), -3), 4)
    prefix = ("n", "µ", "m", "", "k", "M", "G", "T")[power + 3]
    return f"{value / 1000**power:.4g} {prefix}{_UNITS[unit][0]}".replace("  ", " ")
