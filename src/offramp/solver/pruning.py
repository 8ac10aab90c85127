"""Few, right exits, with steady thresholds: what holds on samples that the search did not see.

The optimum on N samples switches on nearly every exit, each for a gain that N samples cannot tell from
selection bias. A threshold is where a running sum peaks, which jumps about from sample to sample: it is
averaged by rank over bootstrap resamples (bagging; Breiman, 1996).
"""

from __future__ import annotations

import math

import numpy as np

from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.effort import EFFORT
from offramp.solver.kernels import OFF, SAME
from offramp.solver.line_search import ConfigBatch, own_line, per_sample, without
from offramp.solver.problem import Floats, Ints, Problem

SELECTION_BIAS = 2.0
"""Price of an exit times N: about what the best of many thresholds gains in J by selection bias alone."""

PRICE_PATH = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Prices times N, rising, at which ``path`` looks for fewer exits."""


def path(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """Candidates with fewer and fewer exits: from each objective's best, at rising prices."""
    pick = candidates.best(objectives)[0]
    for price in PRICE_PATH:
        costlier = objectives.priced(price / candidates.problem.samples)
        candidates.descend(candidates.rows(costlier, pick))
        pick = candidates.best(costlier)[0]
    return candidates.best(objectives)[0]


def parsimonious(objectives: Objectives, candidates: CandidateSet, seed: int, average: bool = True) -> Ints:
    """The best candidates at the objectives' price: their significant exits, at averaged thresholds."""
    problem = candidates.problem
    picks = candidates.best(objectives)[0]
    rows = candidates.rows(objectives, picks)
    before = rows.head.copy()
    known: Known = {}
    for i, lam in enumerate(rows.tradeoff.tolist()):
        rows.head[i], rows.prefix[i] = significant_exits(problem, lam, rows.head[i], rows.prefix[i], known)
    changed = np.flatnonzero((rows.head != before).any(axis=1))
    part = rows.take(changed)
    part.descend(own_line, weight=np.ones(problem.samples, np.int64))
    rows.put(changed, part)
    if average:
        _average(problem, rows, seed)
    return candidates.add(rows.head, rows.prefix)


def needed_only(objectives: Objectives, candidates: CandidateSet, picks: Ints, best: CandidateSet) -> Ints:
    """The picks (G,) without exits that can go while J stays within one standard error of the best J known.

    What J is compared with are the best candidates of ``best``.
    """
    problem = candidates.problem
    head, prefix = candidates.head[picks], candidates.prefix[picks]
    references = zip(objectives.tradeoff.tolist(), best.best(objectives)[0].tolist(), strict=True)
    for i, (lam, j) in enumerate(references):
        reference = per_sample(problem, best.head[j], best.prefix[j]).objective(lam)
        while (p := _needless(problem, lam, head[i], prefix[i], reference)) is not None:
            head[i], prefix[i] = without(head[i], prefix[i], p)
    return candidates.add(head, prefix, candidates.common[picks])


def _needless(problem: Problem, tradeoff: float, head: Ints, prefix: Ints, reference: Floats) -> int | None:
    """The last exit without which J is within one standard error of that of the reference."""
    found = per_sample(problem, head, prefix)
    above = found.objective(tradeoff) - reference
    for e in range(len(found.places) - 1, -1, -1):  # fewest samples pass there
        worse = above + (1 - tradeoff) * found.spared[e] - tradeoff * found.lost[e]
        if worse.mean() <= worse.std() / math.sqrt(problem.samples) + SAME:
            return int(found.places[e])
    return None


Known = dict[bytes, dict[int, tuple[Floats, Floats]]]
"""By configuration and exit: how quality and cost change without it, mean (2,) and covariance (2, 2)."""


def significant_exits(
    problem: Problem, tradeoff: float, head: Ints, prefix: Ints, known: Known | None = None
) -> tuple[Ints, Ints]:
    """Switch off, the least significant first, exits without which J is worse by at most one standard error.

    The configuration is ``head`` and ``prefix`` (P,); the standard error is that of the mean of N paired
    differences. ``known`` keeps what does not depend on lambda for other calls.
    """
    known = {} if known is None else known
    weights = np.array([-tradeoff, 1 - tradeoff])
    while True:
        key = head.tobytes() + prefix.tobytes()
        if key not in known:
            found = per_sample(problem, head, prefix)
            known[key] = {}
            for p, lost, spared in zip(found.places.tolist(), found.lost, found.spared, strict=True):
                both = np.stack([lost, spared])
                known[key][p] = both.mean(axis=1), np.cov(both, bias=True)
        least, dropped = 1.0, OFF
        for p, (mean, covariance) in known[key].items():
            worse = float(weights @ mean)
            error = math.sqrt(max(float(weights @ covariance @ weights), 0.0) / problem.samples)
            loss = worse / error if error > 0 else math.copysign(math.inf, worse - SAME)
            if loss <= least:
                least, dropped = loss, p
        if dropped == OFF:
            return head, prefix
        head, prefix = without(head, prefix, dropped)


def _average(problem: Problem, rows: ConfigBatch, seed: int) -> None:
    """Replace each prefix by its mean over resamples and the whole, in place."""
    total = rows.prefix.astype(np.float64)
    random, order = np.random.default_rng(seed), problem.canonical()
    for _ in range(EFFORT.resamples):
        weight = np.empty(problem.samples, np.int64)
        drawn = random.integers(0, problem.samples, problem.samples)
        weight[order] = np.bincount(drawn, minlength=problem.samples)
        part = rows.take(slice(None))
        part.descend(own_line, EFFORT.resample_sweeps, weight)
        total += part.prefix
    mean = np.rint(total / (EFFORT.resamples + 1)).astype(np.int64)
    for p, position in problem.used:
        for i in np.flatnonzero(rows.head[:, p] != OFF).tolist():
            fitting = position.prefix_near(int(rows.head[i, p]), int(mean[i, p]))
            rows.prefix[i, p] = fitting or rows.prefix[i, p]
