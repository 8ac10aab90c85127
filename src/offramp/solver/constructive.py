"""Constructive starts of a search: each puts candidate configurations into a candidate set.

single_pass      front to back, never revisited (DyCE, arXiv 2403.01695); back_to_front is its mirror
iterative        the best single change anywhere, until none helps (DyCE)
same_threshold   one threshold for all exits
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.common_threshold import curve, threshold_between
from offramp.solver.effort import EFFORT
from offramp.solver.kernels import OFF
from offramp.solver.line_search import ConfigBatch, simulate
from offramp.solver.problem import Floats, Ints, Problem


def single_pass(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """Positions front to back, later ones off: one forward sweep whose going on is the full model."""
    rows = candidates.all_off(objectives)
    rows.take_forward()
    return candidates.add(rows.head, rows.prefix)


def back_to_front(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """The mirror of ``single_pass``: positions back to front, as if every sample arrived; then descend.

    A strong early exit that takes most samples leaves nothing to find behind it; here it comes last.
    """
    rows = candidates.all_off(replace(objectives, cap=len(candidates.problem.positions)))
    rows.take_backward()
    rows.cap[:] = objectives.cap
    return candidates.descend(rows)


def iterative(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """The best single change anywhere, until none helps."""

    def climb(part: ConfigBatch) -> None:
        active = np.arange(len(part))
        while active.size:
            step = part.take(active)
            moved = step.commit_best()
            part.put(active, step)
            active = active[moved]

    rows = candidates.all_off(objectives)
    rows.by_batch(climb)
    return candidates.add(rows.head, rows.prefix)


def same_threshold(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """One threshold for all exits: each head wherever it exists, and each position's best head."""
    problem = candidates.problem
    sets = _common_heads(problem)
    if objectives.cap < len(problem.used):
        thresholds = np.tile(_grid(problem), len(sets))
        head, prefix = _at_common(problem, np.repeat(sets, EFFORT.grid + 1, axis=0), thresholds)
        parts = problem.by_batch(len(head), lambda part: simulate(problem, head[part], prefix[part])[2])
        places = np.argsort(np.argsort(-np.concatenate(parts), axis=1, kind="stable"), axis=1)
        head[places >= objectives.cap], prefix[places >= objectives.cap] = (
            OFF,
            0,
        )  # few take these
        candidates.add(head, prefix, thresholds)
        return candidates.best(objectives)[0]
    for heads in sets:
        own = [(position, int(heads[p])) for p, position in problem.used if heads[p] != OFF]
        if not own:
            continue
        paid = np.cumsum([position.cost[c] for position, c in own])
        values, quality, cost = curve(
            np.stack([position.confidence[c] for position, c in own]),
            np.stack([*(position.quality[c] for position, c in own), problem.final]),
            np.append([position.backbone for position, _ in own], 1.0) + np.append(paid, paid[-1]),
        )
        if quality.size:
            lam = objectives.tradeoff[:, None]
            ends = np.unique((lam * (problem.full - quality) + (1 - lam) * cost).argmin(axis=1)).tolist()
            thresholds = np.array([threshold_between(values[i], values[i + 1]) for i in ends])
            candidates.add(*_at_common(problem, np.tile(heads, (len(ends), 1)), thresholds), thresholds)
    return candidates.best(objectives)[0]


def _at_common(problem: Problem, head: Ints, thresholds: Floats) -> tuple[Ints, Ints]:
    """Heads and prefix lengths (B, P) of sets of heads (B, P), each with its one threshold (B,)."""
    prefix = np.zeros_like(head)
    for p, position in problem.used:
        for c in np.unique(head[:, p][head[:, p] != OFF]).tolist():
            rising, rows = np.sort(position.confidence[c]), head[:, p] == c
            limit = thresholds[rows].astype(np.float32)
            prefix[rows, p] = problem.samples - np.searchsorted(rising, limit, side="right")
    return np.where(prefix > 0, head, OFF), prefix


def _grid(problem: Problem) -> Floats:
    """-inf and quantiles of all confidences there are, (grid + 1,)."""
    known = np.concatenate([[np.float32(0)], *(position.confidence.ravel() for _, position in problem.used)])
    known = np.unique(known[np.isfinite(known)])
    picked = known[np.linspace(0, known.size - 1, EFFORT.grid).round().astype(int)]
    return np.append(np.float32(-np.inf), picked).astype(np.float64)


def _common_heads(problem: Problem) -> Ints:
    """(A, P) which head sits where: each kind of head wherever it exists, and each position's best one.

    Of equally good ones that is the cheapest.
    """
    kinds = sorted({kind for _, position in problem.used for kind in position.heads})
    rows = np.full((len(kinds) + 1, len(problem.positions)), OFF)
    for p, position in problem.used:
        for row, kind in enumerate(kinds):
            rows[row, p] = position.heads.index(kind) if kind in position.heads else OFF
        quality = (position.quality * problem.unit).astype(np.int64).sum(axis=1)  # exact: ties are ties
        rows[-1, p] = np.lexsort((position.cost, -quality))[0]
    return rows
