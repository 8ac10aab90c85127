"""Four ways to spend less: the full model, compressed alone, exits alone, both; at the same allowed drop.

The drop is allowed under the full, uncompressed model, on the search split; there configurations are chosen,
and whether a compressed model alone keeps within it is told by the same split. Figures are of the report
split. Arrays only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from networks import Made

import offramp
from offramp.certify import answers_under
from offramp.config import ExitConfig, Frontier

FULL, SMALL, EXITS, BOTH = "full", "compressed", "exits", "both"
DROPS = (0.0025, 0.005, 0.01, 0.02)  # in accuracy, allowed on the search split

Row = dict[str, Any]


def cheapest(frontier: Frontier, least: float) -> ExitConfig | None:
    """The cheapest configuration of at least this quality on the search split; None if there is none."""
    good = (config for config in frontier if config.expected is not None and config.expected.quality >= least)
    return next(good, None)


def compare(full: Made, small: Made, drops: Iterable[float] = DROPS) -> list[Row]:
    """The table of one kind of compression.

    Args:
        full: the uncompressed model with exits.
        small: the compressed one, recorded on the same images, searched with costs of the same unit.
        drops: allowed on the search split.

    Returns:
        One row per way and drop; where nothing keeps within a drop, ``config`` is None and there are no
        figures.
    """
    rows = [row(FULL, full, full, ExitConfig()), row(SMALL, small, full, ExitConfig())]
    reference = float(full.search.final_quality.mean(dtype=np.float64))
    for drop in drops:
        for way, made in ((EXITS, full), (BOTH, small)):
            config = cheapest(made.frontier, reference - drop)
            found = {"way": way, "config": None} if config is None else row(way, made, full, config)
            rows.append({**found, "allowed": drop})
    return rows


def row(way: str, made: Made, full: Made, config: ExitConfig) -> Row:
    """Figures of one configuration: accuracies, drops under the full model, MACs as a share of its."""
    outcome = offramp.evaluate(made.report, made.costs, config)
    lost = full.report.final_quality - answers_under(made.report, made.costs, config).quality
    searched = offramp.evaluate(made.search, made.costs, config).quality
    return {
        "way": way,
        "config": config.to_json(),
        "exits": [f"{choice.position} {choice.head} > {choice.threshold:.4f}" for choice in config.choices],
        "drop_on_search": float(full.search.final_quality.mean(dtype=np.float64)) - searched,
        "accuracy": outcome.quality,
        "drop": float(lost.mean()),
        "interval": float(1.96 * lost.std(ddof=1) / np.sqrt(len(lost))),
        "macs": offramp.evaluate(made.report, made.macs, config).cost / full.macs.full,
        "exit_shares": outcome.exit_shares.round(4).tolist(),
    }
