"""Search methods, and the steps they are made of: each puts candidate configurations into a pool.

single_pass      front to back, never revisited (DyCE, arXiv 2403.01695)
iterative        the best single change anywhere, until none helps (the same)
same_threshold   one threshold for all exits
thin_out         down to the exits allowed, if fewer are allowed than there are places
refine           coordinate descent with exact lines from the best candidates, and escapes from where it ends

J is linear in a configuration's quality and cost, so what any goal finds is a candidate for all: the pool
remembers every configuration met, and refine lets each goal pick its best. The first two answer alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from offramp.lines import (
    OFF,
    SAME,
    Floats,
    Ints,
    Line,
    Problem,
    Rows,
    Spot,
    backward,
    batches,
    commit_best,
    descend,
    finals,
    forward,
    simulate,
    stages,
)

_GRID = 200  # common thresholds tried
_TINY = 4096  # configurations enumerated, all positions but one
_TINY_CELLS = 1 << 20  # the same times C * N
_ROUNDS = 20  # of settling; two or three are usual
_ESCAPE_CELLS = 100_000_000  # moves tried * P * C * N: three seconds or so


@dataclass(frozen=True, eq=False)
class Goals:
    """G aims: minimise J at ``tradeoff`` (G,) plus ``price`` (G,) per exit, at most ``cap`` exits."""

    tradeoff: Floats
    price: Floats
    cap: int

    def rows(self, index: Ints, head: Ints, cut: Ints) -> Rows:
        """Configurations (B, P), each minimising the goal that ``index`` (B,) names."""
        cap = np.full(len(index), self.cap)
        return Rows(head.copy(), cut.copy(), self.tradeoff[index], self.price[index], cap)

    def all_off(self, positions: int) -> Rows:
        """One row per goal: the full model."""
        off = np.full((len(self.tradeoff), positions), OFF)
        return self.rows(np.arange(len(off)), off, np.zeros_like(off))


class Pool:
    """Every configuration met, with its quality and cost: J is linear in those, so any goal may pick any."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        positions = len(problem.spots)
        self.head = np.zeros((0, positions), np.int64)
        self.cut = np.zeros((0, positions), np.int64)
        self.quality, self.cost, self.common = np.zeros(0), np.zeros(0), np.zeros(0)
        self._place: dict[bytes, int] = {}
        self.add(np.full((1, positions), OFF), np.zeros((1, positions), np.int64))

    def add(self, head: Ints, cut: Ints, common: Floats | None = None) -> Ints:
        """Take in configurations (B, P); ``common`` (B,) is their one threshold, NaN if they differ.

        Returns their places in the pool, (B,).
        """
        common = np.full(len(head), np.nan) if common is None else common
        starts = range(0, len(head), self.problem.batch)
        parts = [slice(start, start + self.problem.batch) for start in starts]
        return np.concatenate([self._add(head[p].copy(), cut[p].copy(), common[p]) for p in parts])

    def _add(self, head: Ints, cut: Ints, common: Floats) -> Ints:
        quality, cost, _ = simulate(self.problem, head, cut)
        before = len(self._place)
        keys = [h.tobytes() + c.tobytes() for h, c in zip(head, cut, strict=True)]
        place = np.array([self._place.setdefault(key, len(self._place)) for key in keys])
        fresh = np.unique(place, return_index=True)[1]
        fresh = fresh[place[fresh] >= before]
        self.head, self.cut = np.vstack([self.head, head[fresh]]), np.vstack([self.cut, cut[fresh]])
        self.quality, self.cost = np.append(self.quality, quality[fresh]), np.append(self.cost, cost[fresh])
        self.common = np.append(self.common, common[fresh])
        return place

    def best(self, goals: Goals) -> tuple[Ints, Floats]:
        """For each goal the best candidate (G,) and its J (G,); at equal J the one with the fewest exits."""
        exits = np.count_nonzero(self.head != OFF, axis=1)
        lam = goals.tradeoff[:, None]
        value = lam * (self.problem.full - self.quality) + (1 - lam) * self.cost
        value = value + goals.price[:, None] * exits + np.where(exits > goals.cap, np.inf, 0.0)
        lowest = value.min(axis=1, keepdims=True)
        pick = np.where(value <= lowest + SAME, exits, exits.max() + 1).argmin(axis=1)
        return pick, value[np.arange(len(pick)), pick]


Step = Callable[[Problem, Goals, Pool], Ints]
"""Adds candidates to the pool and returns which one it would answer for each goal, (G,)."""


def single_pass(problem: Problem, goals: Goals, pool: Pool) -> Ints:
    """Positions front to back, later ones off: one forward sweep whose going on is the full model."""
    rows = goals.all_off(len(problem.spots))
    for batch in batches(problem, rows):
        part = rows.take(batch)
        last = finals(problem, part.tradeoff)

        def take(p: int, line: Line, part: Rows = part) -> None:
            part.head[:, p], part.cut[:, p] = line.head, line.cut

        forward(problem, part, dict.fromkeys(range(len(problem.spots)), last), take)
        rows.put(batch, part)
    return pool.add(rows.head, rows.cut)


def iterative(problem: Problem, goals: Goals, pool: Pool) -> Ints:
    """The best single change anywhere, until none helps."""
    rows = goals.all_off(len(problem.spots))
    for batch in batches(problem, rows):
        part = rows.take(batch)
        active = np.arange(len(part))
        while active.size:
            step = part.take(active)
            moved = commit_best(problem, step)
            part.put(active, step)
            active = active[moved]
        rows.put(batch, part)
    return pool.add(rows.head, rows.cut)


def same_threshold(problem: Problem, goals: Goals, pool: Pool) -> Ints:
    """One threshold for all exits: each head wherever it exists, and each position's best head."""
    thresholds = _common_thresholds(problem)
    heads = _common_heads(problem)
    head = np.repeat(heads, len(thresholds), axis=0)
    cut = np.zeros_like(head)
    for p, spot in problem.used:
        ladder = -np.sort(-spot.confidence, axis=1)
        above = np.stack([np.searchsorted(-row, -thresholds, side="left") for row in ladder])
        cut[:, p] = np.where(heads[:, p, None] == OFF, 0, above[heads[:, p]]).ravel()
    common = np.tile(thresholds.astype(np.float64), len(heads))
    for start in range(0, len(head), problem.batch):
        part = slice(start, start + problem.batch)
        _limit(problem, head[part], cut[part], goals.cap)
    pool.add(head, cut, common)
    return pool.best(goals)[0]


def _common_thresholds(problem: Problem) -> npt.NDArray[np.float32]:
    """(T,) all confidences there are, or a quantile grid of them, and -inf."""
    parts = [spot.confidence[np.isfinite(spot.confidence)] for _, spot in problem.used]
    known = np.unique(np.concatenate([np.zeros(0, np.float32), *parts]))
    if known.size > _GRID:
        known = known[np.linspace(0, known.size - 1, _GRID).round().astype(int)]
    return np.append(np.float32(-np.inf), known)


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


def refine(problem: Problem, goals: Goals, pool: Pool) -> Ints:
    """Enumerate a tiny problem; else descend from the best, escape from where that ends, repeat."""
    if not _enumerate(problem, goals, pool):
        tried: set[tuple[int, int]] = set()
        _settle(problem, goals, pool, tried)
        _escape(problem, goals, pool, tried)
    return pool.best(goals)[0]


def descend_from_best(problem: Problem, goals: Goals, pool: Pool) -> Ints:
    """The cheap part of ``refine``, some tenths of a percent worse: to compare prices with."""
    _settle(problem, goals, pool, set(), near=(0,))
    return pool.best(goals)[0]


def _settle(
    problem: Problem,
    goals: Goals,
    pool: Pool,
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


def _descend_into(problem: Problem, rows: Rows, pool: Pool) -> None:
    descend(problem, rows)
    pool.add(rows.head, rows.cut)


def _escape(problem: Problem, goals: Goals, pool: Pool, tried: set[tuple[int, int]]) -> None:
    """Leave local optima: a larger move, the best single change after it, descend; until none helps."""
    escaped: set[int] = set()
    widest = max(len(spot.heads) for _, spot in problem.used)
    budget = _ESCAPE_CELLS // (len(problem.used) * widest * problem.samples)
    while budget > 0:
        index, head, cut = _escapes(problem, goals, pool, escaped, budget)
        if not index.size:
            return
        budget -= len(index)
        rows = goals.rows(index, head, cut)
        if goals.cap < len(problem.used):  # sweeps alone would fill a free place at the first chance
            for batch in batches(problem, rows):
                part = rows.take(batch)
                commit_best(problem, part)
                rows.put(batch, part)
        _descend_into(problem, rows, pool)
        _settle(problem, goals, pool, tried)


def _escapes(
    problem: Problem, goals: Goals, pool: Pool, escaped: set[int], budget: int
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
    if not flat:
        return np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64)
    index, head, cut = (np.array(part) for part in zip(*flat, strict=True))
    return index, head, cut


def _moves(problem: Problem, head: Ints, cut: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Variants of one configuration (P,): exits off, one by one and in runs, or moved to the next place."""
    enabled = np.flatnonzero(head != OFF)
    places = [p for p, _ in problem.used]
    for p in enabled.tolist():
        yield _without(head, cut, [p])
        for run in (enabled[enabled < p], enabled[enabled > p]):
            if run.size > 1:  # a run of one is that exit's own move
                yield _without(head, cut, run)
        here = places.index(p)
        for to in (*places[max(here - 1, 0) : here], *places[here + 1 : here + 2]):
            if head[to] == OFF:
                yield _moved(problem, head, cut, p, to)


def _without(head: Ints, cut: Ints, off: Ints | list[int]) -> tuple[Ints, Ints]:
    head, cut = head.copy(), cut.copy()
    head[off], cut[off] = OFF, 0
    return head, cut


def _moved(problem: Problem, head: Ints, cut: Ints, p: int, to: int) -> tuple[Ints, Ints]:
    """The exit at p put at ``to``: the same kind of head if it is there, about the same share leaving."""
    source, target = problem.spots[p], problem.spots[to]
    assert source is not None
    assert target is not None
    kind = source.heads[head[p]]
    there = target.heads.index(kind) if kind in target.heads else 0
    size = target.cut_near(there, int(cut[p]))
    head, cut = _without(head, cut, [p])
    head[to], cut[to] = (there, size) if size else (OFF, 0)
    return head, cut


def thin_out(problem: Problem, goals: Goals, pool: Pool) -> Ints:
    """From the best without a cap, drop the exit that raises J least and descend, until the cap is met."""
    if goals.cap < len(problem.used):
        free = Goals(goals.tradeoff, goals.price, len(problem.spots))
        _settle(problem, free, pool, set())
        _thin(problem, goals, pool, free, pool.best(free)[0])
    return pool.best(goals)[0]


def _thin(problem: Problem, goals: Goals, pool: Pool, free: Goals, found: Ints) -> None:
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


def _drop_one(problem: Problem, rows: Rows) -> None:
    """Switch off the exit whose removal raises J least, in place."""
    row, place = np.nonzero(rows.head != OFF)
    variants = rows.take(row)
    variants.head[np.arange(len(row)), place] = OFF
    variants.cut[np.arange(len(row)), place] = 0
    value = np.concatenate([_value(problem, variants.take(batch)) for batch in batches(problem, variants)])
    order = np.lexsort((place, value, row))
    first = order[np.unique(row[order], return_index=True)[1]]
    rows.put(np.arange(len(rows)), variants.take(first))


def _value(problem: Problem, rows: Rows) -> Floats:
    """(B,) J with prices; exits that nobody takes are switched off in place."""
    quality, cost, _ = simulate(problem, rows.head, rows.cut)
    exits = np.count_nonzero(rows.head != OFF, axis=1)
    value: Floats = rows.tradeoff * (problem.full - quality) + (1 - rows.tradeoff) * cost
    value += rows.price * exits
    return value


def _enumerate(problem: Problem, goals: Goals, pool: Pool) -> bool:
    """Every configuration, the longest position by its exact line. Returns False if there are too many."""
    options = {p: _options(spot) for p, spot in problem.used}
    if not options:
        return True
    star = max(options, key=lambda p: len(options[p]))
    rest = [p for p in options if p != star]
    count = math.prod(len(options[p]) for p in rest)
    widest = max(len(spot.heads) for _, spot in problem.used)
    if count > _TINY or count * widest * problem.samples > _TINY_CELLS:
        return False
    grid = np.array(list(product(*(options[p] for p in rest)))).reshape(count, len(rest), 2)
    head, cut = np.full((count, len(problem.spots)), OFF), np.zeros((count, len(problem.spots)), np.int64)
    head[:, rest], cut[:, rest] = grid[:, :, 0], grid[:, :, 1]
    fits = np.count_nonzero(head != OFF, axis=1) <= goals.cap
    for g in range(len(goals.tradeoff)):
        rows = goals.rows(np.full(np.count_nonzero(fits), g), head[fits], cut[fits])
        for batch in batches(problem, rows):
            _best_at(problem, star, rows.take(batch), pool)
    return True


def _options(spot: Spot) -> list[tuple[int, int]]:
    """Off, and every head with every cut."""
    cuts = [(h, k + 1) for h in range(len(spot.heads)) for k in range(spot.rank.shape[1])]
    return [(OFF, 0)] + [(h, k) for h, k in cuts if spot.cut_near(h, k) == k]


def _best_at(problem: Problem, star: int, rows: Rows, pool: Pool) -> None:
    """Complete each row at one position and add the best row."""

    def take(p: int, line: Line) -> None:
        if p == star:
            rows.head[:, p], rows.cut[:, p] = line.head, line.cut

    backward(problem, rows, stages(problem, rows), take)
    value = _value(problem, rows)
    exits = np.count_nonzero(rows.head != OFF, axis=1)
    best = np.lexsort((exits, value > value.min() + SAME))[:1]
    pool.add(rows.head[best], rows.cut[best])


METHODS: dict[str, tuple[Step, ...]] = {
    "exact": (single_pass, iterative, same_threshold, thin_out, refine),
    "single-pass": (single_pass,),
    "iterative": (iterative,),
    "same-threshold": (same_threshold,),
}
DRAFT: tuple[Step, ...] = (single_pass, same_threshold, thin_out, descend_from_best)
