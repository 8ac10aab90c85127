"""Few, right exits, with steady thresholds: what holds on samples that the search did not see.

The optimum on N samples switches on nearly every exit, each for a gain that N samples cannot tell from luck.

    path        rising prices per exit, each search starting from where the last one ended
    deserving   an exit stays if J without it is worse by more than one standard error (paired, per sample)
    average     thresholds found on bootstrap resamples, averaged by rank (bagging; Breiman, 1996): a
                threshold is where a running sum peaks, which jumps about from sample to sample
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.line_search import (
    OFF,
    SAME,
    ConfigBatch,
    Line,
    descend,
    own_cumulative_gain,
    per_sample,
    without,
)
from offramp.solver.problem import Bools, Floats, Ints, Problem

SELECTION_BIAS = 2.0
"""Price of an exit times N: about what the best of many thresholds gains in J on N samples by luck alone."""

PRICE_GRID = (SELECTION_BIAS / 2, SELECTION_BIAS, 2 * SELECTION_BIAS)
"""Prices times N that cross-validation compares."""

_RESAMPLES = 10
_SWEEPS = 2  # of a resample, from the optimum on all samples


def path(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """Candidates with fewer and fewer exits: from each goal's best, at rising prices up to the last rung."""
    pick = pool.best(goals)[0]
    for rung in (PRICE_GRID[0] / 4, PRICE_GRID[0] / 2, *PRICE_GRID):
        costlier = Objectives(goals.tradeoff, np.full(len(pick), rung / problem.samples), goals.cap)
        rows = costlier.rows(np.arange(len(pick)), pool.head[pick], pool.cut[pick])
        descend(problem, rows)
        pool.add(rows.head, rows.cut)
        pick = pool.best(costlier)[0]
    return pool.best(goals)[0]


def parsimonious(
    problem: Problem, goals: Objectives, pool: CandidateSet, seed: int, average: bool = True
) -> Ints:
    """The best candidates at the goals' price, of their exits the deserving ones, at averaged thresholds."""
    picks = pool.best(goals)[0]
    rows = goals.rows(np.arange(len(picks)), pool.head[picks], pool.cut[picks])
    before = rows.head.copy()
    _prune(problem, rows)
    changed = np.flatnonzero((rows.head != before).any(axis=1))
    part = rows.take(changed)
    descend(problem, part, partial(_weighted_line, weight=np.ones(problem.samples)))
    rows.put(changed, part)
    if average:
        _average(problem, rows, seed)
    return pool.add(rows.head, rows.cut)


def needed_only(
    problem: Problem, goals: Objectives, pool: CandidateSet, picks: Ints, best: CandidateSet
) -> Ints:
    """The picks without exits that can go while J stays within one standard error of the best J known.

    Args:
        problem: of both pools.
        goals: G aims.
        pool: of the picks.
        picks: (G,).
        best: a pool whose best candidates are what J is compared with.
    """
    head, cut = pool.head[picks], pool.cut[picks]
    for i, (lam, j) in enumerate(zip(goals.tradeoff.tolist(), best.best(goals)[0].tolist(), strict=True)):
        reference = _loss(problem, lam, best.head[j], best.cut[j])
        while (p := _needless(problem, lam, head[i], cut[i], reference)) is not None:
            head[i], cut[i] = without(head[i], cut[i], p)
    return pool.add(head, cut, pool.common[picks])


def _needless(problem: Problem, tradeoff: float, head: Ints, cut: Ints, reference: Floats) -> int | None:
    """The last exit without which J is within one standard error of that of the reference."""
    for p in np.flatnonzero(head != OFF)[::-1].tolist():  # fewest samples pass there
        worse = _loss(problem, tradeoff, *without(head, cut, p)) - reference
        if worse.mean() <= worse.std() / math.sqrt(problem.samples) + SAME:
            return int(p)
    return None


def _loss(problem: Problem, tradeoff: float, head: Ints, cut: Ints) -> Floats:
    """(N,) J of each sample, up to a constant."""
    quality, cost = per_sample(problem, head, cut)
    return (1 - tradeoff) * cost - tradeoff * quality


def _prune(problem: Problem, rows: ConfigBatch) -> None:
    """Keep deserving exits, in place."""
    known: Known = {}
    for i, lam in enumerate(rows.tradeoff.tolist()):
        rows.head[i], rows.cut[i] = significant_exits(problem, lam, rows.head[i], rows.cut[i], known)


Known = dict[bytes, dict[int, tuple[Floats, Floats]]]
"""By configuration and exit: how quality and cost change without it, mean (2,) and covariance (2, 2)."""


def significant_exits(
    problem: Problem, tradeoff: float, head: Ints, cut: Ints, known: Known | None = None
) -> tuple[Ints, Ints]:
    """Switch off, the least missed first, exits without which J is worse by at most one standard error.

    Args:
        problem: N samples; the standard error is that of the mean of N paired differences.
        tradeoff: lambda.
        head: (P,).
        cut: (P,).
        known: what other calls found out, which does not depend on lambda; added to.
    """
    known = {} if known is None else known
    weights = np.array([-tradeoff, 1 - tradeoff])
    while True:
        key = head.tobytes() + cut.tobytes()
        if key not in known:
            known[key] = _changes(problem, head, cut)
        least, missed = 1.0, OFF
        for p, (mean, covariance) in known[key].items():
            worse = float(weights @ mean)
            error = math.sqrt(max(float(weights @ covariance @ weights), 0.0) / problem.samples)
            miss = worse / error if error > 0 else math.copysign(math.inf, worse - SAME)
            if miss <= least:
                least, missed = miss, p
        if missed == OFF:
            return head, cut
        head, cut = without(head, cut, missed)


def _changes(problem: Problem, head: Ints, cut: Ints) -> dict[int, tuple[Floats, Floats]]:
    quality, cost = per_sample(problem, head, cut)
    changes = {}
    for p in np.flatnonzero(head != OFF).tolist():
        other_quality, other_cost = per_sample(problem, *without(head, cut, p))
        both = np.stack([other_quality - quality, other_cost - cost])
        changes[p] = both.mean(axis=1), np.cov(both, bias=True)
    return changes


def _average(problem: Problem, rows: ConfigBatch, seed: int) -> None:
    """Replace each cut by its mean over resamples and the whole, in place."""
    total = rows.cut.astype(np.float64)
    random, order = np.random.default_rng(seed), problem.canonical()
    for _ in range(_RESAMPLES):
        weight = np.empty(problem.samples)
        drawn = random.integers(0, problem.samples, problem.samples)
        weight[order] = np.bincount(drawn, minlength=problem.samples)
        part = rows.take(slice(None))
        descend(problem, part, partial(_weighted_line, weight=weight), _SWEEPS)
        total += part.cut
    mean = np.rint(total / (_RESAMPLES + 1)).astype(np.int64)
    for p, spot in problem.used:
        for i in np.flatnonzero(rows.head[:, p] != OFF).tolist():
            fitting = spot.cut_near(int(rows.head[i, p]), int(mean[i, p]))
            rows.cut[i, p] = fitting or rows.cut[i, p]


def _weighted_line(
    problem: Problem, p: int, rows: ConfigBatch, alive: Bools, continue_cost: Floats, *, weight: Floats
) -> Line:
    """The best threshold of each row's own head, samples counting ``weight`` times; no exit goes off."""
    cut, improvement = rows.cut[:, p].copy(), np.zeros(len(rows))
    for i in np.flatnonzero(rows.head[:, p] != OFF).tolist():
        cumulative_gain = own_cumulative_gain(problem, p, rows, i, alive[i] * weight, continue_cost[i])
        end = int(cumulative_gain.argmax())
        improvement[i] = (cumulative_gain[end] - cumulative_gain[cut[i] - 1]) / (
            problem.unit * problem.samples
        )
        cut[i] = end + 1
    return Line(rows.head[:, p].copy(), cut, improvement)
