"""Records like a network's, and frontiers whose figures are promised for new samples or in-sample."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import expected, full_quality, simulate
from offramp.core.frontier import Frontier
from offramp.core.records import ExitRecords

POSITIONS = ("input", *(f"layer{block}.{unit}" for block in (1, 2, 3) for unit in (0, 1, 2)))
HEADS = ("linear", "mlp", "conv")


def dial_records(samples=3000, seed=0, positions=POSITIONS, heads=HEADS, final_confidence=True):
    """Deeper and bigger heads are better, and confidence knows something about it."""
    rng = np.random.default_rng(seed)
    P, C = len(positions), len(heads)
    depth = np.linspace(-1.1, 1.35, P)[:, None, None] + 0.14 * np.arange(C)[None, :, None]
    ease = rng.normal(size=samples)
    margin = depth + ease + 0.3 * rng.normal(size=(P, C, samples))
    confidence = 1 / (1 + np.exp(-2.2 * margin - 1.2 * rng.normal(size=margin.shape)))
    own = ease + 1.66 + 0.2 * rng.normal(size=samples)
    exists = np.ones((P, C), bool)
    exists[0] = False
    return ExitRecords(
        confidence=confidence,
        quality=margin > 0,
        final_quality=own > 0,
        exists=exists,
        positions=positions,
        heads=heads,
        final_confidence=1 / (1 + np.exp(-2 * own)) if final_confidence else None,
        quality_kind="labels",
    )


def dial_costs(positions=POSITIONS, heads=HEADS, unit="macs", full=125.7e6):
    P, C = len(positions), len(heads)
    table = np.outer(np.linspace(1.0, 0.6, P), np.linspace(0.002, 0.02, C)) * full
    return CostTable(np.linspace(0, full, P + 1), table * (np.arange(P) > 0)[:, None], unit)


def common_thresholds(records, costs, count=14, head=None, positions=None):
    """One threshold for all positions, from strict to lax, with figures of these records; and no exits."""
    places, kind = positions or records.positions[2::2], head or records.heads[-1]
    configs = [ExitConfig()]
    for threshold in 1 - np.geomspace(0.01, 0.6, count - 1):
        choices = [ExitChoice(place, kind, float(threshold)) for place in places]
        configs.append(ExitConfig(choices, tradeoff=0.5 + 0.5 * float(threshold)))
    return [replace(each, expected=expected(records, costs, each)) for each in configs]


def in_sample_frontier(records, costs, **options):
    return Frontier.of(common_thresholds(records, costs, **options))


def honest_frontier(records, costs, **options):
    """Figures that allow for the choice: a little less, and an interval around that; the full model last."""
    full, found = full_quality(records), []
    for config in common_thresholds(records, costs, **options):
        own = config.expected
        lost = records.final_quality - simulate(records, config).quality
        spread = float(lost.std()) / math.sqrt(records.samples)
        drop = max(own.drop, 0.0) + 0.5 * spread + 2e-4 if config.choices else 0.0
        figures = replace(
            own,
            quality=full - drop,
            in_sample_quality=own.quality,
            drop_interval=(drop - 2 * spread, drop + 2 * spread),
        )
        found.append(replace(config, expected=figures))
    return Frontier.of(found)
