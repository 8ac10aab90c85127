"""A population of known truth: a large finite set of samples, so that its means are exact and draws are free.

Draws with replacement are independent samples of the distribution that is uniform on the population.
"""

from __future__ import annotations

import numpy as np

from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.core.records import ExitRecords
from offramp.guarantees.certify import certify

POSITIONS, HEADS = 8, 2


def draw(samples, seed):
    """Records of a network whose full model is right on 94 % and whose exits grow better with depth."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=samples)
    depth, size = np.arange(1, POSITIONS + 1)[:, None] / (POSITIONS + 1), np.arange(HEADS)
    skill = -0.9 + 2.9 * depth**0.7 + 0.35 * size * (1 - depth)
    noise = 0.5 * rng.normal(size=(POSITIONS, HEADS, samples))
    margin = skill[:, :, None] - difficulty + noise
    known = 1.4 * np.abs(margin) + 0.35 * (margin > 0) + 0.4 * rng.normal(size=margin.shape)
    nothing = np.zeros((1, HEADS, samples))
    return ExitRecords(
        confidence=np.concatenate([nothing, 1 / (1 + np.exp(-known))]),
        quality=np.concatenate([nothing, margin > 0]),
        final_quality=2.0 - difficulty + 0.5 * rng.normal(size=samples) > 0,
        exists=np.array([[False] * HEADS] + [[True] * HEADS] * POSITIONS),
        positions=("input", *(f"p{i}" for i in range(1, POSITIONS + 1))),
        heads=("small", "large"),
        meta={"quality": "labels"},
    )


def costs():
    backbone = np.linspace(0, 1, POSITIONS + 2)
    heads = np.tile([0.004, 0.02], (POSITIONS + 1, 1))
    heads[0] = 0
    return CostTable(backbone, heads, "macs")


def resample(population, samples, rng):
    """Independent samples of the distribution that is uniform on the population."""
    return population.subset(rng.integers(population.samples, size=samples))


def trial(population, frontier, table, samples, cells, resamples, seed=0):
    """Certify ``resamples`` draws at every (max_drop, delta) of ``cells``, the same draws for each.

    Returns, by cell: how often the configuration certified loses more than max_drop on the population, and
    the mean of its true relative cost (1, the full model's, where none was) over that of the cheapest
    configuration that truly loses at most max_drop.
    """
    full = float(population.final_quality.mean(dtype=float))
    outcomes = evaluate(population, table, frontier)
    truth = {c.choices: (full - o.quality, o.relative_cost) for c, o in zip(frontier, outcomes, strict=True)}
    found = {cell: [] for cell in cells}
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = resample(population, samples, rng)
        for drop, delta in cells:
            answer = certify(frontier, drawn, table, max_drop=drop, delta=delta)
            found[drop, delta].append(truth[answer.choices] if answer else (0.0, 1.0))
    result = {}
    for (limit, delta), answers in found.items():
        best = min(cost for lost, cost in truth.values() if lost <= limit)
        violations = sum(lost > limit for lost, _ in answers)
        result[limit, delta] = violations, float(np.mean([cost for _, cost in answers])) / best
    return result
