"""What the report is made from: the configurations, measured on the report split, and how they are called.

Which one the headline names is decided by the figures of the search alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from offramp.core import (
    CostTable,
    ExitConfig,
    ExitRecords,
    Expected,
    Frontier,
    Outcome,
    dial_curves,
    evaluate,
    figures_come_from,
    full_quality,
    points,
    points_interval,
    simulate,
)

HEADLINE_DROP = 0.005  # the headline's configuration may lose half a point, as far as the search knows
FEW = 10  # below this many changed samples a normal interval is not to be trusted
_Z = 1.959964  # two-sided 95 % quantile of the normal distribution

UNITS = {"macs": (" MACs", "MACs"), "seconds": ("s", "time"), "joules": ("J", "energy")}
"""Known units: (symbol, the word for what is spent)."""
_RULES = {
    True: (
        "the best one on the search split (in-sample), where none stays within {} of the full model",
        "the cheapest one that loses at most {} on the search split (in-sample)",
    ),
    False: (
        "the best one, where none is promised to stay within {} of the full model",
        "the cheapest one that is promised to lose at most {} on new samples",
    ),
}


@dataclass(frozen=True)
class Row:
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


class Page:
    """What the page is made from. ``full`` is the full model's mean quality on the report split."""

    def __init__(self, frontier: Frontier, records: ExitRecords, costs: CostTable) -> None:
        self.records, self.costs, self.search = records, costs, frontier.meta
        self.rows = [measured_row(number, config, records, costs) for number, config in enumerate(frontier)]
        good = self.within(HEADLINE_DROP)
        self.chosen = good or self.rows[-1]
        self.in_sample = frontier.in_sample
        self.rule = _RULES[self.in_sample][good is not None].format(f"{100 * HEADLINE_DROP:g} points")
        self.come_from = figures_come_from(frontier)
        self.curves = dial_curves(frontier)
        self.same_costs = math.isclose(self.rows[0].expected.full_cost, costs.full, rel_tol=1e-6)
        self.full = full_quality(records)
        values = (records.quality[records.exists], records.final_quality)
        right = all(((v == 0) | (v == 1)).all() for v in values)  # else it is a score, not an accuracy
        kind = records.quality_kind
        self.measure = "agreement" if kind == "agreement" else "accuracy" if right else "quality"
        self.spent = UNITS.get(costs.unit, ("", f"cost in {costs.unit}"))[1]

    def within(self, drop: float) -> Row | None:
        """What ``frontier.at(max_drop=drop)`` picks: by the search split's figures alone."""
        return next((row for row in self.rows if row.expected.drop <= drop + 1e-12), None)


def measured_row(number: int, config: ExitConfig, records: ExitRecords, costs: CostTable) -> Row:
    """What a configuration does on the report split."""
    outcome = evaluate(records, costs, config)
    lost = records.final_quality - simulate(records, config).quality  # paired: the same samples under both
    margin = _Z * float(lost.std(ddof=1)) / math.sqrt(lost.size) if lost.size > 1 else math.nan
    few = bool(config.choices) and int((lost != 0).sum()) < FEW and not math.isnan(margin)
    assert config.expected is not None  # Frontier accepts no other
    return Row(
        number=number,
        config=config,
        expected=config.expected,
        outcome=outcome,
        drop=float(lost.mean()),
        margin=margin,
        doubtful=few,
    )


def drop_interval(row: Row) -> str:
    """Of the drop on the report split."""
    if math.isnan(row.margin):
        return "not known"
    return points_interval((row.drop - row.margin, row.drop + row.margin))


def gained(interval: tuple[float, float]) -> str:
    """An interval of a drop as one of the change of quality."""
    low, high = interval
    return f"{points(-high, sign=True)} to {points(-low, sign=True)}"


def amount(value: float, unit: str) -> str:
    """``1.2575e8 macs`` as "125.8 M MACs", ``0.0123 seconds`` as "12.3 ms"."""
    if unit not in UNITS:
        return f"{value:.4g} {unit}"
    power = min(max(math.floor(math.log10(value) / 3), -3), 4)
    prefix = ("n", "µ", "m", "", "k", "M", "G", "T")[power + 3]
    return f"{value / 1000**power:.4g} {prefix}{UNITS[unit][0]}".replace("  ", " ")
