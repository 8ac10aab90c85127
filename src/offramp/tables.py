"""Tables for a terminal, and the same figures as plain data for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from offramp.config import ExitConfig, Frontier, config_to_dict
from offramp.cost import CostTable
from offramp.evaluate import Outcome, evaluate, full_quality
from offramp.records import ExitRecords


def frontier_rows(frontier: Frontier, records: ExitRecords, costs: CostTable) -> list[dict[str, Any]]:
    """One entry per configuration, cheapest first, with its figures on ``records``.

    ``best_so_far`` says whether it beats every cheaper one on these records, so that none dominates it.
    """
    full, best = full_quality(records), float("-inf")
    rows = []
    for index, (config, outcome) in enumerate(zip(frontier, evaluate(records, costs, frontier), strict=True)):
        rows.append(_row(index, config, outcome, full, outcome.quality > best))
        best = max(best, outcome.quality)
    return rows


def _row(index: int, config: ExitConfig, outcome: Outcome, full: float, best_so_far: bool) -> dict[str, Any]:
    return {
        "index": index,
        "relative_cost": outcome.relative_cost,
        "quality": outcome.quality,
        "drop": full - outcome.quality,
        "best_so_far": best_so_far,
        "exit_shares": outcome.exit_shares.tolist(),
        **config_to_dict(config),
    }


def frontier_table(rows: Sequence[dict[str, Any]], records: ExitRecords, unit: str, most: int = 16) -> Table:
    """A table of configurations with exits, at most ``most`` of them, evenly chosen, and the full model."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("#", unit, "quality", "points", "exits"):
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    table.add_column("where samples leave", no_wrap=True)
    for row in thinned(with_exits(rows), most):
        table.add_row(
            f"{row['index']}{'*' if row['best_so_far'] else ' '}",
            f"{row['relative_cost']:.1%}",
            f"{row['quality']:.2%}",
            f"{-100 * row['drop']:+.2f}",
            str(len(row["choices"])),
            shares(row["exit_shares"], records.positions),
        )
    table.add_row("full ", "100.0%", f"{full_quality(records):.2%}", "", "0", "")
    return table


def with_exits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are not the full model itself."""
    return [row for row in rows if row["choices"]]


def thinned(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` rows: the first, the last, and evenly spread ones between."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def shares(values: Sequence[float], positions: Sequence[str], most: int = 3) -> str:
    """The largest shares by name, in order of depth."""
    names = (*positions, "output")
    largest = sorted(range(len(values)), key=lambda i: -values[i])[:most]
    return ", ".join(f"{names[i]} {values[i]:.0%}" for i in sorted(largest) if values[i] >= 0.005)
