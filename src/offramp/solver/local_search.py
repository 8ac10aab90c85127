"""Out of local optima: coordinate descent from the best candidates, and moves larger than one line.

settle      descend from each objective's best candidate and its neighbours' ones, until nothing is new
escape      switch exits off, alone or in runs, or move one to the next place; then descend again
enumerate   every configuration, on tiny problems
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.effort import EFFORT
from offramp.solver.line_search import (
    OFF,
    SAME,
    ConfigBatch,
    Line,
    backward,
    by_batch,
    commit_best,
    simulate,
    stages,
    without,
)
from offramp.solver.problem import Floats, Ints, Problem, SortedPosition


def refine(objectives: Objectives, candidates: CandidateSet, cells: int | None = None) -> Ints:
    """Enumerate a tiny problem; else descend from the best, escape from where that ends, repeat.

    ``cells`` bounds how many moves are tried for each objective, times P * C * N.
    """
    candidates.complete = _enumerate(objectives, candidates)
    if not candidates.complete:
        tried: set[tuple[int, int]] = set()
        _settle(objectives, candidates, tried)
        cells = (cells or EFFORT.objective_cells) * len(objectives.tradeoff)
        _escape(objectives, candidates, tried, min(EFFORT.escape_cells, cells))
    return candidates.best(objectives)[0]


def descend_from_best(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """The cheap part of ``refine``, some tenths of a percent worse: to compare prices with."""
    _settle(objectives, candidates, set(), near=(0,))
    return candidates.best(objectives)[0]


def _settle(
    objectives: Objectives,
    candidates: CandidateSet,
    tried: set[tuple[int, int]],
    near: tuple[int, ...] = (0, -1, 1),
) -> None:
    """Descend from each objective's best candidate and from its neighbours' ones, until nothing is new."""
    last = len(objectives.tradeoff) - 1
    for _ in range(EFFORT.rounds):
        pick = candidates.best(objectives)[0].tolist()
        starts = {(g, pick[min(max(g + d, 0), last)]) for g in range(last + 1) for d in near} - tried
        if not starts:
            return
        tried |= starts
        index, found = np.array(sorted(starts)).T
        candidates.descend(candidates.rows(objectives, index, found))


def _escape(
    objectives: Objectives,
    candidates: CandidateSet,
    tried: set[tuple[int, int]],
    cells: int,
) -> None:
    """Leave local optima: a larger move, the best single change after it, descend; until none helps."""
    problem = candidates.problem
    escaped: set[int] = set()
    widest = max(len(position.heads) for _, position in problem.used)
    budget = cells // (len(problem.used) * widest * problem.samples)
    while budget > 0:
        index, head, prefix = _escapes(objectives, candidates, escaped, budget)
        if not index.size:
            return
        budget -= len(index)
        rows = objectives.rows(index, head, prefix)
        if objectives.cap < len(problem.used):  # sweeps alone would fill a free place at the first chance
            by_batch(problem, rows, lambda part: commit_best(problem, part))
        candidates.descend(rows)
        _settle(objectives, candidates, tried)


def _escapes(
    objectives: Objectives, candidates: CandidateSet, escaped: set[int], budget: int
) -> tuple[Ints, Ints, Ints]:
    """Moves from the best candidates not escaped from yet, for the middle one of the objectives each serves.

    Returns objective (M,), head and prefix (M, P); of too many candidates evenly spread ones are taken.
    """
    problem = candidates.problem
    pick = candidates.best(objectives)[0]
    found = [i for i in dict.fromkeys(pick.tolist()) if i not in escaped]
    moves = {i: list(_moves(problem, candidates.head[i], candidates.prefix[i])) for i in found}
    stride = max(1, math.ceil(sum(map(len, moves.values())) / budget))
    escaped.update(found[::stride])
    served = {i: np.flatnonzero(pick == i) for i in found[::stride]}
    flat = [(goal[goal.size // 2], *move) for i, goal in served.items() for move in moves[i]]
    flat = [flat[i] for i in np.linspace(0, len(flat) - 1, min(budget, len(flat))).astype(int)]
    if not flat:
        return np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64)
    index, head, prefix = (np.array(part) for part in zip(*flat, strict=True))
    return index, head, prefix


def _moves(problem: Problem, head: Ints, prefix: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Variants of one configuration (P,): exits off, one by one and in runs, or moved to the next place."""
    enabled = np.flatnonzero(head != OFF)
    places = [p for p, _ in problem.used]
    for p in enabled.tolist():
        yield without(head, prefix, p)
        for run in (enabled[enabled < p], enabled[enabled > p]):
            if run.size > 1:  # a run of one is that exit's own move
                yield without(head, prefix, run)
        here = places.index(p)
        for to in (*places[max(here - 1, 0) : here], *places[here + 1 : here + 2]):
            if head[to] == OFF:
                yield _moved(problem, head, prefix, p, to)


def _moved(problem: Problem, head: Ints, prefix: Ints, p: int, to: int) -> tuple[Ints, Ints]:
    """The exit at p put at ``to``: the same kind of head if it is there, about the same share leaving."""
    source, target = problem.positions[p], problem.positions[to]
    assert source is not None
    assert target is not None
    kind = source.heads[head[p]]
    there = target.heads.index(kind) if kind in target.heads else 0
    size = target.prefix_near(there, int(prefix[p]))
    head, prefix = without(head, prefix, p)
    head[to], prefix[to] = (there, size) if size else (OFF, 0)
    return head, prefix


def thin_out(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """From the best without a cap, drop the exit that raises J least and descend, until the cap is met."""
    problem = candidates.problem
    if objectives.cap < len(problem.used):
        free = Objectives(objectives.tradeoff, objectives.price, len(problem.positions))
        _settle(free, candidates, set())
        _thin(objectives, candidates, free, candidates.best(free)[0])
    return candidates.best(objectives)[0]


def _thin(objectives: Objectives, candidates: CandidateSet, free: Objectives, found: Ints) -> None:
    problem = candidates.problem
    rows = candidates.rows_of(free, found)
    while True:
        count = np.count_nonzero(rows.head != OFF, axis=1)
        active = np.flatnonzero(count > objectives.cap)
        if not active.size:
            return
        part = rows.take(active)
        _drop_one(problem, part)
        part.cap = count[active] - 1
        candidates.descend(part)
        rows.put(active, part)


def _drop_one(problem: Problem, rows: ConfigBatch) -> None:
    """Switch off the exit whose removal raises J least, in place."""
    row, place = np.nonzero(rows.head != OFF)
    variants = rows.take(row)
    variants.head[np.arange(len(row)), place] = OFF
    variants.prefix[np.arange(len(row)), place] = 0
    value = np.concatenate(problem.by_batch(len(variants), lambda part: _value(problem, variants.take(part))))
    order = np.lexsort((place, value, row))
    first = order[np.unique(row[order], return_index=True)[1]]
    rows.put(np.arange(len(rows)), variants.take(first))


def _value(problem: Problem, rows: ConfigBatch) -> Floats:
    """(B,) J with prices; exits that nobody takes are switched off in place."""
    quality, cost, _ = simulate(problem, rows.head, rows.prefix)
    exits = np.count_nonzero(rows.head != OFF, axis=1)
    value: Floats = rows.tradeoff * (problem.full - quality) + (1 - rows.tradeoff) * cost
    value += rows.price * exits
    return value


def _enumerate(objectives: Objectives, candidates: CandidateSet) -> bool:
    """Every configuration, the longest position by its exact line. Returns False if there are too many."""
    problem = candidates.problem
    sizes = {p: _size(position) for p, position in problem.used}
    if not sizes:
        return True
    star = max(sizes, key=lambda p: sizes[p])
    rest = [p for p in sizes if p != star]
    count = math.prod(sizes[p] for p in rest)
    widest = max(len(position.heads) for _, position in problem.used)
    if count > EFFORT.enumerated or count * widest * problem.samples > EFFORT.enumerated_cells:
        return False
    options = [_options(position) for p, position in problem.used if p != star]
    grid = np.array(list(product(*options))).reshape(count, len(rest), 2)
    head = np.full((count, len(problem.positions)), OFF)
    prefix = np.zeros_like(head)
    head[:, rest], prefix[:, rest] = grid[:, :, 0], grid[:, :, 1]
    fits = np.count_nonzero(head != OFF, axis=1) <= objectives.cap
    for g in range(len(objectives.tradeoff)):
        rows = objectives.rows(np.full(np.count_nonzero(fits), g), head[fits], prefix[fits])
        for part in problem.by_batch(len(rows), rows.take):
            _best_at(problem, star, part, candidates)
    return True


def _size(position: SortedPosition) -> int:
    """How many options there are."""
    return 1 + (position.rank.size if position.ends is None else int(np.count_nonzero(position.ends == 0)))


def _options(position: SortedPosition) -> list[tuple[int, int]]:
    """Off, and every head with every prefix."""
    prefixes = [(h, k + 1) for h in range(len(position.heads)) for k in range(position.rank.shape[1])]
    return [(OFF, 0)] + [(h, k) for h, k in prefixes if position.prefix_near(h, k) == k]


def _best_at(problem: Problem, star: int, rows: ConfigBatch, candidates: CandidateSet) -> None:
    """Complete each row at one position and add the best row."""

    def take(p: int, line: Line) -> None:
        if p == star:
            rows.head[:, p], rows.prefix[:, p] = line.head, line.prefix

    backward(problem, rows, stages(problem, rows), take)
    value = _value(problem, rows)
    exits = np.count_nonzero(rows.head != OFF, axis=1)
    best = np.lexsort((exits, value > value.min() + SAME))[:1]
    candidates.add(rows.head[best], rows.prefix[best])
