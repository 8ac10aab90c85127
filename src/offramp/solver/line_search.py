"""Exact lines: the best exit at one position with everything else fixed, for many configurations at once.

A sample that arrives at a position gains W - L by leaving there: W is what going on costs it, L what leaving
costs, both in units of the objective J. With samples sorted by confidence, the best threshold is the best
prefix of the running sum of these gains. One sort (done once per head), one cumulative sum: the global
optimum of that line, over all thresholds and heads of the position.

Sweeps are lines at every position, back to front or front to back. Letters: B rows, P positions, C heads at a
position, N samples. A prefix of k means "the k most confident samples leave".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.solver import kernels
from offramp.solver.effort import EFFORT
from offramp.solver.kernels import OFF, SAME
from offramp.solver.problem import Bools, Floats, Ints, Problem, SortedPosition

Stages = npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Line:
    """The best choice at a position for each row: head (or OFF), prefix length, how much J falls by it."""

    head: Ints
    prefix: Ints
    improvement: Floats


def best_line(rows: ConfigBatch, p: int, alive: Bools, continue_cost: Floats) -> Line:
    """The best head and threshold at position ``p``, or off, with everything else as it is.

    ``alive`` (B, N) says which samples arrive, ``continue_cost`` (B, N) what one costs if it goes on from
    here, in units of J.
    """
    problem, position = rows.problem, rows.problem.positions[p]
    cumulative_gain = _prefix_gains(position, rows.tradeoff[:, None], alive, continue_cost, problem.unit)
    step = 1 / (problem.unit * problem.samples)
    entry_cost = (1 - rows.tradeoff)[:, None] * position.cost * np.count_nonzero(alive, axis=1)[:, None]
    fixed = entry_cost / problem.samples + rows.price[:, None]  # (B, C): what having the exit costs
    ends = cumulative_gain.argmax(axis=2)
    gains = np.take_along_axis(cumulative_gain, ends[:, :, None], axis=2)[:, :, 0] * step - fixed
    every, head, own = np.arange(len(rows)), gains.argmax(axis=1), rows.head[:, p]
    on = own >= 0
    now = cumulative_gain[every, own, rows.prefix[:, p] - 1] * step - fixed[every, own]
    now = np.where(on, now, 0.0)
    gain = gains[every, head]
    enable = (gain > SAME) & (rows.exits() - on < rows.cap)
    prefix = np.where(enable, ends[every, head] + 1, 0)
    return Line(np.where(enable, head, OFF), prefix, np.where(enable, gain, 0.0) - now)


def own_line(
    rows: ConfigBatch, p: int, alive: Bools, continue_cost: Floats, weight: Ints | None = None
) -> Line:
    """``best_line`` among the thresholds of the head that each row has here; where it is off it stays off.

    With ``weight`` (N,), how often each sample counts, no exit goes off either.
    """
    problem, position = rows.problem, rows.problem.positions[p]
    head, prefix, improvement = rows.head[:, p].copy(), rows.prefix[:, p].copy(), np.zeros(len(rows))
    step = 1 / (problem.unit * problem.samples)
    for i in np.flatnonzero(head >= 0).tolist():
        own, lam = head[i], rows.tradeoff[i]
        gains = (lam * problem.unit * position.quality[own]).astype(np.int64)
        gains += ((continue_cost[i] - (1 - lam) * position.backbone) * problem.unit).astype(np.int64)
        gains *= alive[i] if weight is None else alive[i] * weight
        cumulative_gain = gains.take(position.ordered(own)).cumsum()
        if position.ends is not None:
            cumulative_gain += position.ends[own]
        end = int(cumulative_gain.argmax())
        fixed = (1 - lam) * position.cost[own] * np.count_nonzero(alive[i]) / problem.samples + rows.price[i]
        gain, now = cumulative_gain[end] * step - fixed, cumulative_gain[prefix[i] - 1] * step - fixed
        stays = gain > SAME or weight is not None
        head[i], prefix[i] = (own, end + 1) if stays else (OFF, 0)
        improvement[i] = (gain if stays else 0.0) - now
    return Line(head, prefix, improvement)


def _prefix_gains(
    position: SortedPosition, tradeoff: Floats, alive: Bools, continue_cost: Floats, unit: float
) -> Ints:
    """(B, C, N): the sum of gains, times unit, if the samples up to here, most confident first, leave."""
    going = ((continue_cost - (1 - tradeoff) * position.backbone) * unit).astype(np.int64)
    gains = ((tradeoff * unit)[:, None, :] * position.quality).astype(np.int64)
    gains += going[:, None, :]
    gains *= alive[:, None, :]
    b, c, n = gains.shape
    ranked = gains.reshape(b, c * n).take(position.order, axis=1).reshape(b, c, n)
    np.cumsum(ranked, axis=2, out=ranked)
    if position.ends is not None:
        ranked += position.ends
    return ranked


FindLine = Callable[["ConfigBatch", int, Bools, Floats], Line]
"""``best_line`` or ``own_line``."""

Visit = Callable[[int, Line], None]
"""What a sweep does with the best line at a position."""


@dataclass(eq=False)
class ConfigBatch:
    """B configurations, each with what it minimises. Sweeps change ``head`` and ``prefix`` in place."""

    problem: Problem
    head: Ints  # (B, P) index into the heads of the position, or OFF
    prefix: Ints  # (B, P) how many of the most confident samples would leave there; 0 where off
    tradeoff: Floats  # (B,) lambda
    price: Floats  # (B,) added to J for each enabled exit
    cap: Ints  # (B,) at most so many enabled exits

    def take(self, index: Ints | slice) -> ConfigBatch:
        """Rows picked by index, as a copy."""
        names = [field.name for field in fields(self)[1:]]
        picked: dict[str, Any] = {name: np.array(getattr(self, name)[index]) for name in names}
        return replace(self, **picked)

    def put(self, index: Ints | slice, rows: ConfigBatch) -> None:
        """Write configurations back to where ``take`` found them."""
        self.head[index], self.prefix[index] = rows.head, rows.prefix

    def set_line(self, p: int, line: Line) -> None:
        """Take the choice of a line at a position, for every row."""
        self.head[:, p], self.prefix[:, p] = line.head, line.prefix

    def __len__(self) -> int:
        return len(self.head)

    def enabled(self, p: int) -> bool:
        """Has any row an exit here?"""
        return bool((self.head[:, p] >= 0).any())

    def exits(self) -> Ints:
        """(B,) how many exits are enabled."""
        count: Ints = np.count_nonzero(self.head != OFF, axis=1)
        return count

    def leaving(self, p: int) -> Bools:
        """(B, N): which samples would leave if they arrived."""
        rank = self.problem.positions[p].rank[self.head[:, p]]
        return rank < self.prefix[:, p, None]  # where off that is 0: nobody

    def by_batch(self, work: Callable[[ConfigBatch], object]) -> None:
        """Do ``work``, which changes rows in place, on batches that are quick to work on together."""

        def one(part: slice) -> None:
            batch = self.take(part)
            work(batch)
            self.put(part, batch)

        self.problem.by_batch(len(self), one)

    def finals(self) -> Floats:
        """(B, N): what the backbone's own output costs each sample, in units of J."""
        return (1 - self.tradeoff)[:, None] - self.tradeoff[:, None] * self.problem.final

    def stages(self) -> Stages:
        """(B, N): the position at which each sample leaves; P for the backbone's output."""
        stage = np.full((len(self), self.problem.samples), self.head.shape[1], np.int16)
        for p, _ in reversed(self.problem.used):
            if self.enabled(p):
                np.putmask(stage, self.leaving(p), p)
        return stage

    def backward(self, stage: Stages, visit: Visit, find: FindLine = best_line) -> dict[int, Floats]:
        """Lines from the last position to the first; ``visit`` may change the rows at that position.

        Returns what going on from each position costs, (B, N) each, under the rows as they are now.
        """
        continue_cost: dict[int, Floats] = {}
        cost, cost_weight = self.finals(), (1 - self.tradeoff)[:, None]
        for p, position in reversed(self.problem.used):
            continue_cost[p] = cost
            if find is best_line or self.enabled(p):
                visit(p, find(self, p, stage >= p, cost))
            if self.enabled(p):
                head, on = self.head[:, p], self.head[:, p] >= 0
                left = cost_weight * position.backbone - self.tradeoff[:, None] * position.quality[head]
                entry_cost = cost_weight[:, 0] * position.cost[head] * on
                cost = np.where(self.leaving(p), left, cost) + entry_cost[:, None]
        return continue_cost

    def forward(self, continue_cost: dict[int, Floats], visit: Visit, find: FindLine = best_line) -> Stages:
        """The mirror: lines from the first position to the last. Returns ``stages`` as they are then."""
        stage = np.full((len(self), self.problem.samples), self.head.shape[1], np.int16)
        alive = np.ones(stage.shape, bool)
        for p, _ in self.problem.used:
            if find is best_line or self.enabled(p):
                visit(p, find(self, p, alive, continue_cost[p]))
            if self.enabled(p):
                leaves = alive & self.leaving(p)
                np.putmask(stage, leaves, p)
                alive &= ~leaves
        return stage

    def descend(
        self, find: FindLine = best_line, sweeps: int | None = None, weight: Ints | None = None
    ) -> None:
        """Sweep back and forth until no single position can be improved, in place.

        ``weight`` (N,) goes to ``own_line``.
        """
        sweeps = sweeps or EFFORT.sweeps
        if kernels.available():
            own = kernels.OWN if weight is None else kernels.WEIGHTED
            self.sweep(kernels.BEST if find is best_line else own, sweeps, weight)
        else:
            line = find if weight is None else partial(own_line, weight=weight)
            self.by_batch(lambda part: part._descend(line, sweeps))

    def sweep(self, mode: int, sweeps: int = 1, weight: Ints | None = None) -> None:
        """Run the compiled sweep of one of its modes on every row, in place."""
        run, weights = kernels.compiled(kernels.sweep), np.zeros(0, np.int64) if weight is None else weight

        def work(part: slice) -> None:
            rows = self.head[part], self.prefix[part], self.tradeoff[part], self.price[part], self.cap[part]
            run(self.problem.sorted, *rows, weights, mode, sweeps)

        self.problem.by_batch(len(self), work)

    def take_forward(self) -> None:
        """Take the best line of each position, front to back, as if going on were the full model."""
        if kernels.available():
            self.sweep(kernels.FORWARD)
        else:
            going = range(self.head.shape[1])
            self.by_batch(lambda part: part.forward(dict.fromkeys(going, part.finals()), part.set_line))

    def take_backward(self) -> None:
        """Take the best line of each position, back to front, as if every sample arrived."""
        if kernels.available():
            self.sweep(kernels.BACKWARD)
        else:
            last = np.full((1, self.problem.samples), self.head.shape[1], np.int16)
            self.by_batch(lambda part: part.backward(last.repeat(len(part), axis=0), part.set_line))

    def _descend(self, find: FindLine, sweeps: int) -> None:
        active = keep = np.arange(len(self))
        part, stage = self.take(active), self.stages()
        continue_cost: dict[int, Floats] = {}
        for sweep in range(sweeps):
            moved = np.zeros(len(part), bool)
            visit = _commit(part, moved)
            if sweep % 2 == 0:
                continue_cost = part.backward(stage[keep], visit, find)
            else:
                kept = {p: cost[keep] for p, cost in continue_cost.items()}
                stage = part.forward(kept, visit, find)
            self.put(active, part)
            keep = np.flatnonzero(moved)
            if not keep.size:
                return
            active, part = active[keep], part.take(keep)

    def commit_best(self) -> Bools:
        """Make the one change, at any position, that lowers J most, in place. Returns (B,): was there one?"""
        improvements = np.zeros(self.head.shape)
        heads, prefixes = self.head.copy(), self.prefix.copy()

        def visit(p: int, line: Line) -> None:
            improvements[:, p], heads[:, p], prefixes[:, p] = line.improvement, line.head, line.prefix

        self.backward(self.stages(), visit)
        every, best = np.arange(len(self)), improvements.argmax(axis=1)
        moved: Bools = improvements[every, best] > SAME
        chosen = every[moved], best[moved]
        self.head[chosen], self.prefix[chosen] = heads[chosen], prefixes[chosen]
        return moved


def _commit(rows: ConfigBatch, moved: Bools) -> Visit:
    def visit(p: int, line: Line) -> None:
        useless = (line.head == OFF) & (rows.head[:, p] != OFF)  # at equal J the fewer exits
        better = (line.improvement > SAME) | useless
        np.copyto(rows.head[:, p], line.head, where=better)
        np.copyto(rows.prefix[:, p], line.prefix, where=better)
        np.logical_or(moved, better, out=moved)

    return visit


def simulate(problem: Problem, head: Ints, prefix: Ints) -> tuple[Floats, Floats, Ints]:
    """Quality (B,) and cost (B,) of configurations (B, P) in the problem's scale, and (B, P) leavers.

    Exits that nobody takes are switched off in place.
    """
    b, n = len(head), problem.samples
    quality, cost, leavers = np.zeros(b, np.int64), np.zeros(b), np.zeros(head.shape, np.int64)
    if kernels.available():
        kernels.compiled(kernels.simulate)(problem.sorted, head, prefix, quality, cost, leavers)
        return quality / (problem.unit * n), cost / n, leavers
    alive = np.ones((b, n), bool)
    for p, position in problem.used:
        here = head[:, p].copy()
        if not (here >= 0).any():
            continue
        leaves = alive & (position.rank[here] < prefix[:, p, None])
        count = np.count_nonzero(leaves, axis=1)
        taken = count > 0
        passed = np.where(taken, np.count_nonzero(alive, axis=1), 0)
        cost += passed * position.cost[here] + count * position.backbone
        quality += (np.where(leaves, position.quality[here], 0.0) * problem.unit).astype(np.int64).sum(axis=1)
        head[~taken, p], prefix[~taken, p] = OFF, 0
        leavers[:, p] = count
        alive &= ~leaves
    cost += np.count_nonzero(alive, axis=1)
    quality += (np.where(alive, problem.final, 0.0) * problem.unit).astype(np.int64).sum(axis=1)
    return quality / (problem.unit * n), cost / n, leavers


@dataclass(frozen=True, eq=False)
class PerSample:
    """One configuration, sample by sample, in the problem's scale, and what changes without each exit.

    E exits are enabled, at ``places`` (E,), front to back; ``lost`` and ``spared`` (E, N) are added to
    ``quality`` and ``cost`` (N,) where that exit is off.
    """

    quality: Floats
    cost: Floats
    places: Ints
    lost: Floats
    spared: Floats

    def objective(self, tradeoff: float) -> Floats:
        """(N,) J of each sample, up to a constant."""
        return (1 - tradeoff) * self.cost - tradeoff * self.quality


def per_sample(problem: Problem, head: Ints, prefix: Ints) -> PerSample:
    """Every sample under one configuration (P,)."""
    places, n = np.flatnonzero(head != OFF), problem.samples
    lost, spared = np.empty((len(places), n)), np.empty((len(places), n))
    if kernels.available():
        quality, cost = np.empty(n), np.empty(n)
        kernels.compiled(kernels.without_each)(problem.sorted, head, prefix, quality, cost, lost, spared)
        return PerSample(quality, cost, places, lost, spared)
    quality, cost = problem.final, np.ones(n)
    leaving = []
    for e in range(len(places) - 1, -1, -1):
        p = places[e]
        position, own = problem.positions[p], head[p]
        leaves = position.rank[own] < prefix[p]
        leaving.append(leaves)
        lost[e] = np.where(leaves, quality - position.quality[own], 0.0)
        spared[e] = np.where(leaves, cost - position.backbone, 0.0) - position.cost[own]
        quality = np.where(leaves, position.quality[own], quality)
        cost = np.where(leaves, position.backbone, cost) + position.cost[own]
    there = np.ones(n, bool)
    for e in range(len(places)):
        lost[e, ~there] = spared[e, ~there] = 0.0
        there &= ~leaving.pop()
    return PerSample(quality, cost, places, lost, spared)


def without(head: Ints, prefix: Ints, off: int | Ints) -> tuple[Ints, Ints]:
    """One configuration (P,) with the exits at these positions off, as a copy."""
    head, prefix = head.copy(), prefix.copy()
    head[off], prefix[off] = OFF, 0
    return head, prefix
