"""Tables for a terminal, and the same figures as plain data for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from offramp.core import (
    CostTable,
    ExitConfig,
    ExitRecords,
    Frontier,
    config_to_dict,
    evaluate,
    full_quality,
    printable,
)

LEGEND = "* no other row is as cheap and as good; points: against the full model"
"""What a ``frontier_table`` does not say by itself."""


def frontier_rows(frontier: Frontier, records: ExitRecords, costs: CostTable) -> list[dict[str, Any]]:
    """One entry per configuration, in the frontier's order, with its figures on ``records``.

    ``promised_drop`` is None where the frontier's figures are in-sample.
    """
    full = full_quality(records)
    pairs = zip(frontier, evaluate(records, costs, frontier), strict=True)
    return [
        {
            "index": index,
            "relative_cost": outcome.relative_cost,
            "quality": outcome.quality,
            "drop": full - outcome.quality,
            "promised_drop": _promised(config),
            "exit_shares": outcome.exit_shares.tolist(),
            **config_to_dict(config),
        }
        for index, (config, outcome) in enumerate(pairs)
    ]


def _promised(config: ExitConfig) -> float | None:
    """The drop expected on new samples; None where the figures are in-sample."""
    figures = config.expected
    return None if figures is None or figures.in_sample else figures.drop


def non_dominated(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """For each row, whether no other costs at most as much and is at least as good: none dominates it."""
    return [
        not any(
            other is not row
            and other["relative_cost"] <= row["relative_cost"]
            and other["quality"] >= row["quality"]
            for other in rows
        )
        for row in rows
    ]


def frontier_table(rows: Sequence[dict[str, Any]], records: ExitRecords, unit: str, most: int = 16) -> Table:
    """A table of configurations with exits, at most ``most`` of them, evenly chosen, and the full model.

    A star marks rows that no other row dominates. Points are the difference to the full model, measured and,
    where the frontier's figures are not in-sample, promised.
    """
    promised = any(row["promised_drop"] is not None for row in rows)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("#", unit, "quality", "points", *(["promised"] if promised else []), "exits"):
        table.add_column(Text(printable(name)), justify="right", no_wrap=True, min_width=max(6, len(name)))
    table.add_column("where samples leave", no_wrap=True)
    shown = thinned(with_exits(rows), most)
    for row, best in zip(shown, non_dominated(shown), strict=True):
        table.add_row(
            f"{row['index']}{'*' if best else ' '}",
            f"{row['relative_cost']:.1%}",
            f"{row['quality']:.2%}",
            _gained(row["drop"]),
            *([_gained(row["promised_drop"])] if promised else []),
            str(len(row["choices"])),
            Text(shares(row["exit_shares"], records.positions)),
        )
    table.add_row("full ", "100.0%", f"{full_quality(records):.2%}", "", *([""] if promised else []), "0", "")
    return table


def _gained(drop: float | None) -> str:
    """A drop as the difference to the full model, in points."""
    return "" if drop is None else f"{0.0 - 100 * drop:+.2f}"


def with_exits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are not the full model itself."""
    return [row for row in rows if row["choices"]]


def thinned(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` rows: the first, the last, and between them ones evenly spread along the curve.

    Length along the curve is measured in expected cost and quality, both scaled to the range of the rows, so
    that what is shown does not depend on how the rows did on the split that is shown.
    """
    if len(rows) <= most:
        return list(rows)
    points = np.array([[row["expected"][name] for name in ("cost", "quality")] for row in rows])
    scaled = points / np.maximum(np.ptp(points, axis=0), 1e-12)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(scaled, axis=0).T))])
    wanted = np.linspace(0, along[-1], most)
    return [rows[i] for i in sorted({int(np.abs(along - at).argmin()) for at in wanted})]


def shares(values: Sequence[float], positions: Sequence[str], most: int = 3) -> str:
    """The largest shares by name, in order of depth."""
    names = (*positions, "output")
    largest = sorted(range(len(values)), key=lambda i: -values[i])[:most]
    return ", ".join(f"{printable(names[i])} {values[i]:.0%}" for i in sorted(largest) if values[i] >= 0.005)
