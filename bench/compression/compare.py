"""The full model, compressed alone, exits alone, both; at the same allowed drop in accuracy.

The drop is allowed under the full, uncompressed model, on the search split; there configurations are chosen,
and the same split decides whether a compressed model alone keeps within it. Figures are of the report
split. Arrays only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import offramp
from bench.compression.networks import Made
from bench.shared.measures import figures
from offramp import ExitConfig, Frontier

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
        One row per method and drop; where nothing keeps within a drop, ``config`` is None and there are no
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
    searched = offramp.evaluate(made.search, made.costs, config).quality
    return {
        "way": way,
        "config": config.to_json(),
        **figures(made.report, made.costs, config, full.report.final_quality),
        "drop_on_search": float(full.search.final_quality.mean(dtype=np.float64)) - searched,
        "macs": offramp.evaluate(made.report, made.macs, config).cost / full.macs.full,
    }
