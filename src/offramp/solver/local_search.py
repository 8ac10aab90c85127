"""Out of local optima: descent from the best candidates, and moves larger than one line.

refine     descend, escape from where that ends, repeat; every configuration of a tiny problem
thin_out   from the best without a cap, exits off until the cap is met
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.effort import EFFORT
from offramp.solver.kernels import OFF, SAME
from offramp.solver.line_search import ConfigBatch, Line, simulate, without
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
        candidates.descend(candidates.rows(objectives, found, index))


def _escape(
    objectives: Objectives, candidates: CandidateSet, tried: set[tuple[int, int]], cells: int
) -> None:
    """Leave local optima: a larger move, the best single change after it, descend; until none helps."""
    problem = candidates.problem
    escaped: set[int] = set()
    budget = cells // (len(problem.used) * problem.widest * problem.samples)
    while budget > 0:
        moves = _escapes(objectives, candidates, escaped, budget)
        if not moves:
            return
        budget -= len(moves)
        rows = candidates.batch(objectives, *(np.array(part) for part in zip(*moves, strict=True)))
        if objectives.cap < len(problem.used):  # sweeps alone would fill a free place at the first chance
            rows.by_batch(ConfigBatch.commit_best)
        candidates.descend(rows)
        _settle(objectives, candidates, tried)


def _escapes(
    objectives: Objectives, candidates: CandidateSet, escaped: set[int], budget: int
) -> list[tuple[int, Ints, Ints]]:
    """Moves from the best candidates not escaped from yet, for the middle one of the objectives each serves.

    Objective, head (P,) and prefix (P,) of each; of too many candidates evenly spread ones are taken.
    """
    pick = candidates.best(objectives)[0]
    found = [i for i in dict.fromkeys(pick.tolist()) if i not in escaped]
    moves = {i: list(_moves(candidates.problem, candidates.head[i], candidates.prefix[i])) for i in found}
    stride = max(1, math.ceil(sum(map(len, moves.values())) / budget))
    escaped.update(found[::stride])
    served = {i: np.flatnonzero(pick == i).tolist() for i in found[::stride]}
    flat = [(goal[len(goal) // 2], *move) for i, goal in served.items() for move in moves[i]]
    return [flat[i] for i in np.linspace(0, len(flat) - 1, min(budget, len(flat))).astype(int)]


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
    target, kind = problem.positions[to], problem.positions[p].heads[head[p]]
    there = target.heads.index(kind) if kind in target.heads else 0
    size = target.prefix_near(there, int(prefix[p]))
    head, prefix = without(head, prefix, p)
    head[to], prefix[to] = (there, size) if size else (OFF, 0)
    return head, prefix


def thin_out(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """From the best without a cap, drop the exit that raises J least and descend, until the cap is met."""
    problem = candidates.problem
    if objectives.cap < len(problem.used):
        free = replace(objectives, cap=len(problem.positions))
        _settle(free, candidates, set())
        rows = candidates.rows(free, candidates.best(free)[0])
        while (active := np.flatnonzero(rows.exits() > objectives.cap)).size:
            part = _drop_one(rows.take(active))
            part.cap = part.exits()
            candidates.descend(part)
            rows.put(active, part)
    return candidates.best(objectives)[0]


def _drop_one(rows: ConfigBatch) -> ConfigBatch:
    """The rows, each without the exit whose removal raises J least."""
    row, place = np.nonzero(rows.head != OFF)
    variants = rows.take(row)
    variants.head[np.arange(len(row)), place] = OFF
    variants.prefix[np.arange(len(row)), place] = 0
    value = np.concatenate(rows.problem.by_batch(len(row), lambda part: _value(variants.take(part))))
    order = np.lexsort((place, value, row))
    return variants.take(order[np.unique(row[order], return_index=True)[1]])


def _value(rows: ConfigBatch) -> Floats:
    """(B,) J with prices; exits that nobody takes are switched off in place."""
    quality, cost, _ = simulate(rows.problem, rows.head, rows.prefix)
    value: Floats = rows.tradeoff * (rows.problem.full - quality) + (1 - rows.tradeoff) * cost
    value += rows.price * rows.exits()
    return value


def _enumerate(objectives: Objectives, candidates: CandidateSet) -> bool:
    """Every configuration, the longest position by its exact line. Returns False if there are too many."""
    problem = candidates.problem
    options = {p: _options(position) for p, position in problem.used}
    if not options:
        return True
    star = max(options, key=lambda p: len(options[p]))
    rest = [p for p in options if p != star]
    count = math.prod(len(options[p]) for p in rest)
    if count > EFFORT.enumerated or count * problem.widest * problem.samples > EFFORT.enumerated_cells:
        return False
    grid = np.array(list(product(*(options[p] for p in rest)))).reshape(count, len(rest), 2)
    head = np.full((count, len(problem.positions)), OFF)
    prefix = np.zeros_like(head)
    head[:, rest], prefix[:, rest] = grid[:, :, 0], grid[:, :, 1]
    fits = np.count_nonzero(head != OFF, axis=1) <= objectives.cap
    for g in range(len(objectives.tradeoff)):
        index = np.full(np.count_nonzero(fits), g)
        rows = candidates.batch(objectives, index, head[fits], prefix[fits])
        for part in problem.by_batch(len(rows), rows.take):
            _best_at(star, part, candidates)
    return True


def _options(position: SortedPosition) -> Ints:
    """Head and prefix of all settings: off, and every head with every prefix at which a threshold fits."""
    fits = np.ones(position.rank.shape, bool) if position.ends is None else position.ends == 0
    return np.vstack([[[OFF, 0]], np.argwhere(fits) + np.array([0, 1])])


def _best_at(star: int, rows: ConfigBatch, candidates: CandidateSet) -> None:
    """Complete each row at one position and add the best row."""

    def take(p: int, line: Line) -> None:
        if p == star:
            rows.set_line(p, line)

    rows.backward(rows.stages(), take)
    value = _value(rows)
    best = np.lexsort((rows.exits(), value > value.min() + SAME))[:1]
    candidates.add(rows.head[best], rows.prefix[best])
