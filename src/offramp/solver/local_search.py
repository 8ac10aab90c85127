"""Out of local optima: coordinate descent from the best candidates, and moves larger than one line.

settle      descend from each goal's best candidate and its neighbours' ones, until nothing is new
escape      switch exits off, alone or in runs, or move one to the next place; then descend again
enumerate   every configuration, on tiny problems
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.line_search import (
    OFF,
    SAME,
    ConfigBatch,
    Line,
    backward,
    by_batch,
    commit_best,
    descend,
    simulate,
    stages,
    without,
)
from offramp.solver.problem import Floats, Ints, Problem, SortedPosition

_TINY = 4096  # configurations enumerated, all positions but one
_TINY_CELLS = 1 << 20  # the same times C * N
_ROUNDS = 20  # of settling; two or three are usual
_ESCAPE_CELLS = 100_000_000  # moves tried * P * C * N: three seconds or so
_GOAL_CELLS = 20_000_000  # the same for each goal


def refine(problem: Problem, goals: Objectives, pool: CandidateSet, cells: int = _GOAL_CELLS) -> Ints:
    """Enumerate a tiny problem; else descend from the best, escape from where that ends, repeat.

    ``cells`` is the effort for each goal: how many moves are tried, times P * C * N.
    """
    pool.complete = _enumerate(problem, goals, pool)
    if not pool.complete:
        tried: set[tuple[int, int]] = set()
        _settle(problem, goals, pool, tried)
        _escape(problem, goals, pool, tried, min(_ESCAPE_CELLS, cells * len(goals.tradeoff)))
    return pool.best(goals)[0]


def descend_from_best(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """The cheap part of ``refine``, some tenths of a percent worse: to compare prices with."""
    _settle(problem, goals, pool, set(), near=(0,))
    return pool.best(goals)[0]


def _settle(
    problem: Problem,
    goals: Objectives,
    pool: CandidateSet,
    tried: set[tuple[int, int]],
    near: tuple[int, ...] = (0, -1, 1),
) -> None:
    """Descend from each goal's best candidate and from its neighbours' ones, until nothing is new."""
    last = len(goals.tradeoff) - 1
    for _ in range(_ROUNDS):
        pick = pool.best(goals)[0].tolist()
        starts = {(g, pick[min(max(g + d, 0), last)]) for g in range(last + 1) for d in near} - tried
        if not starts:
            return
        tried |= starts
        index, found = np.array(sorted(starts)).T
        _descend_into(problem, goals.rows(index, pool.head[found], pool.cut[found]), pool)


def _descend_into(problem: Problem, rows: ConfigBatch, pool: CandidateSet) -> None:
    descend(problem, rows)
    pool.add(rows.head, rows.cut)


def _escape(
    problem: Problem, goals: Objectives, pool: CandidateSet, tried: set[tuple[int, int]], cells: int
) -> None:
    """Leave local optima: a larger move, the best single change after it, descend; until none helps."""
    escaped: set[int] = set()
    widest = max(len(spot.heads) for _, spot in problem.used)
    budget = cells // (len(problem.used) * widest * problem.samples)
    while budget > 0:
        index, head, cut = _escapes(problem, goals, pool, escaped, budget)
        if not index.size:
            return
        budget -= len(index)
        rows = goals.rows(index, head, cut)
        if goals.cap < len(problem.used):  # sweeps alone would fill a free place at the first chance
            by_batch(problem, rows, lambda part: commit_best(problem, part))
        _descend_into(problem, rows, pool)
        _settle(problem, goals, pool, tried)


def _escapes(
    problem: Problem, goals: Objectives, pool: CandidateSet, escaped: set[int], budget: int
) -> tuple[Ints, Ints, Ints]:
    """Moves from the best candidates not escaped from yet, each for the middle one of the goals it serves.

    Returns goal (M,), head (M, P) and cut (M, P). If the budget does not allow all candidates, evenly spread
    ones are taken: what they find spreads to the goals beside them.
    """
    pick = pool.best(goals)[0]
    found = [i for i in dict.fromkeys(pick.tolist()) if i not in escaped]
    moves = {i: list(_moves(problem, pool.head[i], pool.cut[i])) for i in found}
    stride = max(1, math.ceil(sum(map(len, moves.values())) / budget))
    escaped.update(found[::stride])
    served = {i: np.flatnonzero(pick == i) for i in found[::stride]}
    flat = [(goal[goal.size // 2], *move) for i, goal in served.items() for move in moves[i]]
    flat = [flat[i] for i in np.linspace(0, len(flat) - 1, min(budget, len(flat))).astype(int)]
    if not flat:
        return np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64)
    index, head, cut = (np.array(part) for part in zip(*flat, strict=True))
    return index, head, cut


def _moves(problem: Problem, head: Ints, cut: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Variants of one configuration (P,): exits off, one by one and in runs, or moved to the next place."""
    enabled = np.flatnonzero(head != OFF)
    places = [p for p, _ in problem.used]
    for p in enabled.tolist():
        yield without(head, cut, p)
        for run in (enabled[enabled < p], enabled[enabled > p]):
            if run.size > 1:  # a run of one is that exit's own move
                yield without(head, cut, run)
        here = places.index(p)
        for to in (*places[max(here - 1, 0) : here], *places[here + 1 : here + 2]):
            if head[to] == OFF:
                yield _moved(problem, head, cut, p, to)


def _moved(problem: Problem, head: Ints, cut: Ints, p: int, to: int) -> tuple[Ints, Ints]:
    """The exit at p put at ``to``: the same kind of head if it is there, about the same share leaving."""
    source, target = problem.spots[p], problem.spots[to]
    assert source is not None
    assert target is not None
    kind = source.heads[head[p]]
    there = target.heads.index(kind) if kind in target.heads else 0
    size = target.cut_near(there, int(cut[p]))
    head, cut = without(head, cut, p)
    head[to], cut[to] = (there, size) if size else (OFF, 0)
    return head, cut


def thin_out(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """From the best without a cap, drop the exit that raises J least and descend, until the cap is met."""
    if goals.cap < len(problem.used):
        free = Objectives(goals.tradeoff, goals.price, len(problem.spots))
        _settle(problem, free, pool, set())
        _thin(problem, goals, pool, free, pool.best(free)[0])
    return pool.best(goals)[0]


def _thin(problem: Problem, goals: Objectives, pool: CandidateSet, free: Objectives, found: Ints) -> None:
    rows = free.rows(np.arange(len(found)), pool.head[found], pool.cut[found])
    while True:
        count = np.count_nonzero(rows.head != OFF, axis=1)
        active = np.flatnonzero(count > goals.cap)
        if not active.size:
            return
        part = rows.take(active)
        _drop_one(problem, part)
        part.cap = count[active] - 1
        _descend_into(problem, part, pool)
        rows.put(active, part)


def _drop_one(problem: Problem, rows: ConfigBatch) -> None:
    """Switch off the exit whose removal raises J least, in place."""
    row, place = np.nonzero(rows.head != OFF)
    variants = rows.take(row)
    variants.head[np.arange(len(row)), place] = OFF
    variants.cut[np.arange(len(row)), place] = 0
    value = np.concatenate(problem.by_batch(len(variants), lambda part: _value(problem, variants.take(part))))
    order = np.lexsort((place, value, row))
    first = order[np.unique(row[order], return_index=True)[1]]
    rows.put(np.arange(len(rows)), variants.take(first))


def _value(problem: Problem, rows: ConfigBatch) -> Floats:
    """(B,) J with prices; exits that nobody takes are switched off in place."""
    quality, cost, _ = simulate(problem, rows.head, rows.cut)
    exits = np.count_nonzero(rows.head != OFF, axis=1)
    value: Floats = rows.tradeoff * (problem.full - quality) + (1 - rows.tradeoff) * cost
    value += rows.price * exits
    return value


def _enumerate(problem: Problem, goals: Objectives, pool: CandidateSet) -> bool:
    """Every configuration, the longest position by its exact line. Returns False if there are too many."""
    sizes = {p: _size(spot) for p, spot in problem.used}
    if not sizes:
        return True
    star = max(sizes, key=lambda p: sizes[p])
    rest = [p for p in sizes if p != star]
    count = math.prod(sizes[p] for p in rest)
    widest = max(len(spot.heads) for _, spot in problem.used)
    if count > _TINY or count * widest * problem.samples > _TINY_CELLS:
        return False
    options = [_options(spot) for p, spot in problem.used if p != star]
    grid = np.array(list(product(*options))).reshape(count, len(rest), 2)
    head, cut = np.full((count, len(problem.spots)), OFF), np.zeros((count, len(problem.spots)), np.int64)
    head[:, rest], cut[:, rest] = grid[:, :, 0], grid[:, :, 1]
    fits = np.count_nonzero(head != OFF, axis=1) <= goals.cap
    for g in range(len(goals.tradeoff)):
        rows = goals.rows(np.full(np.count_nonzero(fits), g), head[fits], cut[fits])
        for part in problem.by_batch(len(rows), rows.take):
            _best_at(problem, star, part, pool)
    return True


def _size(spot: SortedPosition) -> int:
    """How many options there are."""
    return 1 + (spot.rank.size if spot.ends is None else int(np.count_nonzero(spot.ends == 0)))


def _options(spot: SortedPosition) -> list[tuple[int, int]]:
    """Off, and every head with every cut."""
    cuts = [(h, k + 1) for h in range(len(spot.heads)) for k in range(spot.rank.shape[1])]
    return [(OFF, 0)] + [(h, k) for h, k in cuts if spot.cut_near(h, k) == k]


def _best_at(problem: Problem, star: int, rows: ConfigBatch, pool: CandidateSet) -> None:
    """Complete each row at one position and add the best row."""

    def take(p: int, line: Line) -> None:
        if p == star:
            rows.head[:, p], rows.cut[:, p] = line.head, line.cut

    backward(problem, rows, stages(problem, rows), take)
    value = _value(problem, rows)
    exits = np.count_nonzero(rows.head != OFF, axis=1)
    best = np.lexsort((exits, value > value.min() + SAME))[:1]
    pool.add(rows.head[best], rows.cut[best])
