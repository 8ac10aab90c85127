"""Search methods, and the steps they are made of: each puts candidate configurations into a pool.

single_pass      front to back, never revisited (DyCE, arXiv 2403.01695)
back_to_front    its mirror
iterative        the best single change anywhere, until none helps (the same)
same_threshold   one threshold for all exits
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.common_threshold import curve, threshold_between
from offramp.solver.line_search import (
    OFF,
    ConfigBatch,
    Line,
    backward,
    by_batch,
    commit_best,
    descend,
    finals,
    forward,
    simulate,
    stages,
)
from offramp.solver.problem import Floats, Ints, Problem

_GRID = 200  # common thresholds tried where only some exits are allowed


def single_pass(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """Positions front to back, later ones off: one forward sweep whose going on is the full model."""
    rows = goals.all_off(len(problem.spots))

    def sweep(part: ConfigBatch) -> None:
        def take(p: int, line: Line) -> None:
            part.head[:, p], part.cut[:, p] = line.head, line.cut

        last = finals(problem, part.tradeoff)
        forward(problem, part, dict.fromkeys(range(len(problem.spots)), last), take)

    by_batch(problem, rows, sweep)
    return pool.add(rows.head, rows.cut)


def back_to_front(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """The mirror of ``single_pass``: positions back to front, as if every sample arrived; then descend.

    A strong early exit that takes most samples leaves nothing to find behind it; here it comes last.
    """
    rows = goals.all_off(len(problem.spots))

    def sweep(part: ConfigBatch) -> None:
        def take(p: int, line: Line) -> None:
            part.head[:, p], part.cut[:, p] = line.head, line.cut

        free = replace(part, cap=np.full(len(part), len(problem.spots)))
        backward(problem, free, stages(problem, free), take)

    by_batch(problem, rows, sweep)
    descend(problem, rows)
    return pool.add(rows.head, rows.cut)


def iterative(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """The best single change anywhere, until none helps."""
    rows = goals.all_off(len(problem.spots))

    def climb(part: ConfigBatch) -> None:
        active = np.arange(len(part))
        while active.size:
            step = part.take(active)
            moved = commit_best(problem, step)
            part.put(active, step)
            active = active[moved]

    by_batch(problem, rows, climb)
    return pool.add(rows.head, rows.cut)


def same_threshold(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """One threshold for all exits: each head wherever it exists, and each position's best head."""
    sets = _common_heads(problem)
    if goals.cap < len(problem.used):
        assigned, thresholds = np.repeat(sets, _GRID + 1, axis=0), _grid(problem, len(sets))
        head, cut = _at_common(problem, assigned, thresholds)
        problem.by_batch(len(head), lambda part: _limit(problem, head[part], cut[part], goals.cap))
        pool.add(head, cut, thresholds)
        return pool.best(goals)[0]
    for heads in sets:
        enabled = [(p, spot) for p, spot in problem.used if heads[p] != OFF]
        if not enabled:
            continue
        own = [int(heads[p]) for p, _ in enabled]
        paid = np.cumsum([spot.cost[c] for (_, spot), c in zip(enabled, own, strict=True)])
        values, quality, cost = curve(
            np.stack([spot.confidence[c] for (_, spot), c in zip(enabled, own, strict=True)]),
            np.stack([*(spot.quality[c] for (_, spot), c in zip(enabled, own, strict=True)), problem.final]),
            np.append([spot.backbone for _, spot in enabled], 1.0) + np.append(paid, paid[-1]),
        )
        if quality.size:
            lam = goals.tradeoff[:, None]
            ends = np.unique((lam * (problem.full - quality) + (1 - lam) * cost).argmin(axis=1)).tolist()
            thresholds = np.array([threshold_between(values[i], values[i + 1]) for i in ends])
            pool.add(*_at_common(problem, np.tile(heads, (len(ends), 1)), thresholds), thresholds)
    return pool.best(goals)[0]


def _at_common(problem: Problem, head: Ints, thresholds: Floats) -> tuple[Ints, Ints]:
    """Heads and cuts (B, P) of line-ups (B, P), each with its one threshold (B,)."""
    cut = np.zeros_like(head)
    for p, spot in problem.used:
        for c in np.unique(head[:, p][head[:, p] != OFF]).tolist():
            rising, rows = np.sort(spot.confidence[c]), head[:, p] == c
            limit = thresholds[rows].astype(np.float32)
            cut[rows, p] = problem.samples - np.searchsorted(rising, limit, side="right")
    return np.where(cut > 0, head, OFF), cut


def _grid(problem: Problem, sets: int) -> Floats:
    """Quantiles of all confidences there are, and -inf, for each set of heads: (sets * (_GRID + 1),)."""
    parts = [spot.confidence[np.isfinite(spot.confidence)] for _, spot in problem.used]
    known = np.unique(np.concatenate([np.zeros(1, np.float32), *parts]))
    picked = known[np.linspace(0, known.size - 1, _GRID).round().astype(int)]
    return np.tile(np.append(np.float32(-np.inf), picked).astype(np.float64), sets)


def _common_heads(problem: Problem) -> Ints:
    """(A, P) which head sits where: each kind of head wherever it exists, and each position's best one."""
    kinds = sorted({kind for _, spot in problem.used for kind in spot.heads})
    rows = np.full((len(kinds) + 1, len(problem.spots)), OFF)
    for p, spot in problem.used:
        for row, kind in enumerate(kinds):
            rows[row, p] = spot.heads.index(kind) if kind in spot.heads else OFF
        rows[-1, p] = spot.quality.mean(axis=1).argmax()
    return rows


def _limit(problem: Problem, head: Ints, cut: Ints, cap: int) -> None:
    """Keep the ``cap`` exits that most samples take, in place."""
    _, _, leavers = simulate(problem, head, cut)
    places = np.argsort(np.argsort(-leavers, axis=1, kind="stable"), axis=1)
    head[places >= cap], cut[places >= cap] = OFF, 0
