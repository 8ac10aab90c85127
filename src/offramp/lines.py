"""Exact lines: the best exit at one position with everything else fixed, for many configurations at once.

A sample that arrives at a position gains W - L by leaving there: W is what going on costs it, L what leaving
costs, both in units of the objective J. With samples sorted by confidence, the best threshold is the best
prefix of the running sum of these gains. One sort (done once per head), one cumulative sum: the global
optimum of that line, over all thresholds and heads of the position.

    Problem   records and costs, sorted and scaled once
    Rows      B configurations with what each one minimises; a cut k means "the k surest samples leave"
    sweeps    lines at every position, back to front or front to back; descend alternates until none helps

Letters: B rows, P positions, C heads at a position, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from offramp.cost import CostTable
from offramp.evaluate import full_quality
from offramp.records import ExitRecords

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SAME = 1e-11
"""Differences in J below this are rounding of the running sums (N = 1e5 samples of magnitude 1)."""

OFF = -1
NEVER = -(1 << 62)
_CELLS = 1 << 16  # B * C * N numbers of one batch: 512 KiB stays in a core's second-level cache
_SWEEPS = 100  # each sweep lowers J by more than SAME; a bound all the same


@dataclass(frozen=True, eq=False)
class Spot:
    """The heads of one position, sorted.

    Args:
        heads: C indices into the records' heads.
        confidence: (C, N) float32, -inf where it is not finite.
        order: (C * N,) flat index into (C, N), surest first within each head.
        rank: (C, N) place of each sample in that order.
        ends: (C, N) in that order: 0 where a threshold fits right after the sample, NEVER elsewhere (inside
            a tie, or from the first confidence that is not finite on); None where every entry is 0.
        quality: (C, N) over the full model's mean quality.
        backbone: cost up to here over the full model's.
        cost: (C,) of the heads, over the full model's.
    """

    heads: tuple[int, ...]
    confidence: npt.NDArray[np.float32]
    order: Ints
    rank: npt.NDArray[np.int32]
    ends: Ints | None
    quality: Floats
    backbone: float
    cost: Floats

    def cut_near(self, head: int, cut: int) -> int:
        """The first cut of at least this size at which a threshold fits; 0 if there is none."""
        if self.ends is None:
            return cut
        fits = np.flatnonzero(self.ends[head, max(cut - 1, 0) :] == 0)
        return max(cut, 1) + int(fits[0]) if fits.size else 0


@dataclass(frozen=True, eq=False)
class Problem:
    """Records and costs prepared for lines.

    Args:
        spots: P entries, None where a position has no head.
        final: (N,) the backbone's quality over its mean (or as it is where that mean is 0).
        full: that mean after scaling: 1, or 0.
        unit: gains are summed as integers in steps of 1 / unit: seven times faster than in floating point,
            and free of rounding; the step is as fine as 64 bits allow (1e-14 at N = 5000).
    """

    spots: tuple[Spot | None, ...]
    final: Floats
    full: float
    unit: float

    @classmethod
    def of(cls, records: ExitRecords, costs: CostTable) -> Problem:
        """Sort and scale; a full model of quality 0 leaves qualities as they are."""
        mean = full_quality(records)
        scale = mean if mean > 0 else 1.0
        spots = tuple(_spot(records, costs, p, scale) for p in range(len(records.positions)))
        final = records.final_quality.astype(np.float64) / scale
        return cls(spots, final, mean / scale, _unit(spots, final))

    @property
    def used(self) -> list[tuple[int, Spot]]:
        """Positions with heads, front to back."""
        return [(p, spot) for p, spot in enumerate(self.spots) if spot is not None]

    @property
    def samples(self) -> int:
        """N."""
        return int(self.final.size)

    @property
    def batch(self) -> int:
        """How many rows to work on at once."""
        widest = max((len(spot.heads) for _, spot in self.used), default=1)
        return max(1, _CELLS // (widest * self.samples))


def _unit(spots: Iterable[Spot | None], final: Floats) -> float:
    """The power of two that keeps any sum of N gains below 2 ** 61."""
    used = [spot for spot in spots if spot is not None]
    largest = max(final.max(), *(spot.quality.max() for spot in used)) if used else final.max()
    bound = largest + 2 + sum(float(spot.cost.max()) for spot in used)
    return float(2.0 ** (60 - math.ceil(math.log2(final.size * bound))))


def _spot(records: ExitRecords, costs: CostTable, p: int, scale: float) -> Spot | None:
    heads = np.flatnonzero(records.exists[p])
    if not heads.size:
        return None
    confidence = records.confidence[p, heads]
    finite = np.isfinite(confidence)
    confidence = np.where(finite, confidence, np.float32(-np.inf))
    order = np.argsort(-confidence, axis=1, kind="stable")
    c, n = order.shape
    rank = np.empty((c, n), np.int32)
    np.put_along_axis(rank, order, np.arange(n, dtype=np.int32)[None], axis=1)
    falling = np.take_along_axis(confidence, order, axis=1)
    fits = np.isfinite(falling)
    fits[:, :-1] &= falling[:, :-1] > falling[:, 1:]
    return Spot(
        tuple(heads.tolist()),
        confidence,
        (order + n * np.arange(c)[:, None]).ravel(),
        rank,
        None if fits.all() else np.where(fits, 0, NEVER),
        records.quality[p, heads].astype(np.float64) / scale,
        float(costs.backbone[p] / costs.full),
        costs.heads[p, heads] / costs.full,
    )


@dataclass(eq=False)
class Rows:
    """B configurations, each with what it minimises. Sweeps change ``head`` and ``cut`` in place.

    Args:
        head: (B, P) index into the spot's heads, or OFF.
        cut: (B, P) how many of the surest samples would leave there; 0 where off.
        tradeoff: (B,) lambda.
        price: (B,) added to J for each enabled exit.
        cap: (B,) at most so many enabled exits.
    """

    head: Ints
    cut: Ints
    tradeoff: Floats
    price: Floats
    cap: Ints

    def take(self, index: Ints | slice) -> Rows:
        """Rows picked by index, as a copy."""
        return Rows(*(np.array(getattr(self, field.name)[index]) for field in fields(self)))

    def put(self, index: Ints | slice, rows: Rows) -> None:
        """Write configurations back to where ``take`` found them."""
        self.head[index], self.cut[index] = rows.head, rows.cut

    def __len__(self) -> int:
        return len(self.head)


def batches(problem: Problem, rows: Rows) -> Iterator[slice]:
    """Slices of rows that are quick to work on together."""
    for start in range(0, len(rows), problem.batch):
        yield slice(start, start + problem.batch)


@dataclass(frozen=True, eq=False)
class Line:
    """The best choice at one position for each row: head (OFF for none), cut, and how much J falls by it."""

    head: Ints
    cut: Ints
    fall: Floats


def best_line(problem: Problem, p: int, rows: Rows, alive: Bools, onward: Floats) -> Line:
    """The best head and threshold at a position, or off, with everything else as it is.

    Args:
        problem: with heads at ``p``.
        p: the position.
        rows: B configurations.
        alive: (B, N) which samples arrive.
        onward: (B, N) what a sample costs if it goes on from here, in units of J.
    """
    spot = problem.spots[p]
    assert spot is not None  # callers go through Problem.used
    worth = _prefix_gains(spot, rows.tradeoff[:, None], alive, onward, problem.unit)
    step = 1 / (problem.unit * problem.samples)
    entry = (1 - rows.tradeoff)[:, None] * spot.cost * np.count_nonzero(alive, axis=1)[:, None]
    fixed = entry / problem.samples + rows.price[:, None]  # (B, C): what having the exit costs
    ends = worth.argmax(axis=2)
    gains = np.take_along_axis(worth, ends[:, :, None], axis=2)[:, :, 0] * step - fixed
    every, head = np.arange(len(rows)), gains.argmax(axis=1)
    on = rows.head[:, p] >= 0
    now = worth[every, rows.head[:, p], rows.cut[:, p] - 1] * step - fixed[every, rows.head[:, p]]
    now = np.where(on, now, 0.0)
    gain = gains[every, head]
    enable = (gain > SAME) & (np.count_nonzero(rows.head >= 0, axis=1) - on < rows.cap)
    cut = np.where(enable, ends[every, head] + 1, 0)
    return Line(np.where(enable, head, OFF), cut, np.where(enable, gain, 0.0) - now)


def _prefix_gains(spot: Spot, tradeoff: Floats, alive: Bools, onward: Floats, unit: float) -> Ints:
    """(B, C, N): the sum of gains, times unit, if the samples up to here, surest first, leave."""
    arrive = alive * unit
    going = (onward - (1 - tradeoff) * spot.backbone) * arrive
    gains = (tradeoff * arrive)[:, None, :] * spot.quality
    gains += going[:, None, :]
    b, c, n = gains.shape
    ranked = gains.astype(np.int64).reshape(b, c * n).take(spot.order, axis=1).reshape(b, c, n)
    np.cumsum(ranked, axis=2, out=ranked)
    if spot.ends is not None:
        ranked += spot.ends
    return ranked


def leaving(spot: Spot, p: int, rows: Rows) -> Bools:
    """(B, N): which samples would leave if they arrived."""
    return spot.rank[rows.head[:, p]] < rows.cut[:, p, None]  # where off the cut is 0 and nobody leaves


def finals(problem: Problem, tradeoff: Floats) -> Floats:
    """(B, N): what the backbone's own output costs each sample, in units of J."""
    return (1 - tradeoff)[:, None] - tradeoff[:, None] * problem.final


def _one_back(spot: Spot, p: int, rows: Rows, onward: Floats) -> Floats:
    """(B, N): what arriving at p costs, from what going on costs."""
    head, on = rows.head[:, p], rows.head[:, p] >= 0
    if not on.any():
        return onward
    dear = (1 - rows.tradeoff)[:, None]
    left = dear * spot.backbone - rows.tradeoff[:, None] * spot.quality[head]
    entry = dear[:, 0] * spot.cost[head] * on
    return np.where(leaving(spot, p, rows), left, onward) + entry[:, None]


def stages(problem: Problem, rows: Rows) -> Ints:
    """(B, N): the position at which each sample leaves; P for the backbone's output."""
    stage = np.full((len(rows), problem.samples), len(problem.spots))
    for p, spot in reversed(problem.used):
        np.putmask(stage, leaving(spot, p, rows), p)
    return stage


Visit = Callable[[int, Line], None]
"""What a sweep does with the best line at a position."""


def backward(problem: Problem, rows: Rows, stage: Ints, visit: Visit) -> dict[int, Floats]:
    """Lines from the last position to the first; ``visit`` may change the rows at that position.

    Returns what going on from each position costs, (B, N) each, under the rows as they are now.
    """
    onward: dict[int, Floats] = {}
    cost = finals(problem, rows.tradeoff)
    for p, spot in reversed(problem.used):
        onward[p] = cost
        visit(p, best_line(problem, p, rows, stage >= p, cost))
        cost = _one_back(spot, p, rows, cost)
    return onward


def forward(problem: Problem, rows: Rows, onward: dict[int, Floats], visit: Visit) -> Ints:
    """The mirror: lines from the first position to the last. Returns ``stages`` of the rows as they are."""
    stage = np.full((len(rows), problem.samples), len(problem.spots))
    alive = np.ones(stage.shape, bool)
    for p, spot in problem.used:
        visit(p, best_line(problem, p, rows, alive, onward[p]))
        leaves = alive & leaving(spot, p, rows)
        np.putmask(stage, leaves, p)
        alive &= ~leaves
    return stage


def descend(problem: Problem, rows: Rows) -> None:
    """Sweep back and forth until no single position can be improved, in place."""
    for batch in batches(problem, rows):
        part = rows.take(batch)
        _descend_batch(problem, part)
        rows.put(batch, part)


def _descend_batch(problem: Problem, rows: Rows) -> None:
    active = np.arange(len(rows))
    part, stage = rows, stages(problem, rows)
    onward: dict[int, Floats] = {}
    for sweep in range(_SWEEPS):
        moved = np.zeros(len(part), bool)
        visit = _commit(part, moved)
        if sweep % 2 == 0:
            onward = backward(problem, part, stage, visit)
        else:
            stage = forward(problem, part, onward, visit)
        rows.put(active, part)
        keep = np.flatnonzero(moved)
        if not keep.size:
            return
        active, part = active[keep], part.take(keep)
        if sweep % 2 == 0:
            onward = {p: cost[keep] for p, cost in onward.items()}
        else:
            stage = stage[keep]


def _commit(rows: Rows, moved: Bools) -> Visit:
    def visit(p: int, line: Line) -> None:
        useless = (line.head == OFF) & (rows.head[:, p] != OFF)  # at equal J the fewer exits
        better = (line.fall > SAME) | useless
        np.copyto(rows.head[:, p], line.head, where=better)
        np.copyto(rows.cut[:, p], line.cut, where=better)
        np.logical_or(moved, better, out=moved)

    return visit


def commit_best(problem: Problem, rows: Rows) -> Bools:
    """Make the one change, at any position, that lowers J most, in place. Returns (B,): was there one?"""
    falls = np.zeros(rows.head.shape)
    heads, cuts = rows.head.copy(), rows.cut.copy()

    def visit(p: int, line: Line) -> None:
        falls[:, p], heads[:, p], cuts[:, p] = line.fall, line.head, line.cut

    backward(problem, rows, stages(problem, rows), visit)
    every, best = np.arange(len(rows)), falls.argmax(axis=1)
    moved: Bools = falls[every, best] > SAME
    chosen = every[moved], best[moved]
    rows.head[chosen], rows.cut[chosen] = heads[chosen], cuts[chosen]
    return moved


def simulate(problem: Problem, head: Ints, cut: Ints) -> tuple[Floats, Floats, Ints]:
    """What configurations do; exits that nobody takes are switched off in place.

    Args:
        problem: P positions, N samples.
        head: (B, P).
        cut: (B, P).

    Returns:
        Quality (B,) and cost (B,) in the problem's scale, and (B, P) how many samples leave where.
    """
    b, n = len(head), problem.samples
    alive, quality = np.ones((b, n), bool), np.zeros(b)
    cost, leavers = np.zeros(b), np.zeros(head.shape, np.int64)
    for p, spot in problem.used:
        here = head[:, p].copy()
        leaves = alive & (spot.rank[here] < cut[:, p, None])
        count = np.count_nonzero(leaves, axis=1)
        taken = count > 0
        cost += np.where(taken, np.count_nonzero(alive, axis=1) * spot.cost[here], 0) + count * spot.backbone
        quality += np.where(leaves, spot.quality[here], 0.0).sum(axis=1)
        head[~taken, p], cut[~taken, p] = OFF, 0
        leavers[:, p] = count
        alive &= ~leaves
    cost += np.count_nonzero(alive, axis=1)
    quality += np.where(alive, problem.final, 0.0).sum(axis=1)
    return quality / n, cost / n, leavers
