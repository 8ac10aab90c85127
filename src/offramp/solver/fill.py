"""The dial made fine: configurations for the budgets between those that any trade-off finds.

No lambda reaches the budgets between two neighbours on the convex hull of cost and quality. There the search
is a constrained one: the best quality at no more than a given cost. From either neighbour it walks to the
other in small steps; each step is an exact line under the constraint: of all thresholds of all enabled exits,
the one with the best quality among those whose cost lies just below the budget. Quality above the chord
between the neighbours is not believed: on the hull there is none, and beside careful neighbours it is luck.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from offramp.solver.candidates import CandidateSet
from offramp.solver.line_search import OFF
from offramp.solver.problem import Bools, Floats, Ints, Problem, SortedPosition

_WINDOW = 0.25  # of a step: how far below the budget the best quality is looked for
_STRIDE = 4  # budgets between which a walk does not turn
_PASSES = 4  # what is found is walked from again, where gaps are left


def fill(pool: CandidateSet, picks: Ints, step: float, cap: int) -> tuple[Ints, Ints]:
    """Candidates between those picked, so that costs rise by no more than ``step``.

    Args:
        pool: gets what is found.
        picks: candidates of the pool.
        step: relative, such as 0.01.
        cap: at most so many exits.

    Returns:
        Those of the picks that are not dominated, with what was found between them, by rising cost and
        quality; and what was found that costs more than one of these and is as good, no better.
    """
    found = undominated(pool, picks)
    for _ in range(_PASSES):
        gaps = [
            _between(pool, low, high, step, cap)
            for low, high in pairwise(found.tolist())
            if pool.cost[high] > pool.cost[low] * (1 + step) and pool.cost[low] > 0
        ]
        before, found = found, _rising(pool, np.concatenate([found, *gaps]))
        if np.array_equal(before, found):
            break
    listed = undominated(pool, found)
    return listed, np.setdiff1d(found, listed)


def undominated(pool: CandidateSet, picks: Ints) -> Ints:
    """The picks that no other one beats in cost and equals in quality, by rising cost."""
    picks = _rising(pool, picks)
    better: Ints = picks[np.append(True, np.diff(pool.quality[picks]) > 0)]
    return better


def _rising(pool: CandidateSet, picks: Ints) -> Ints:
    """The picks, by rising cost, that are as good as every cheaper one."""
    picks = np.unique(picks)
    order = picks[np.lexsort((-pool.quality[picks], pool.cost[picks]))]
    best = np.maximum.accumulate(pool.quality[order])
    order = order[pool.quality[order] >= best]
    rising: Ints = order[np.append(True, np.diff(pool.cost[order]) > 0)]
    return rising


@dataclass(frozen=True)
class _Segment:
    """The straight line between two neighbours, (cost, quality) each."""

    low: tuple[float, float]
    high: tuple[float, float]

    def at(self, cost: Floats) -> Floats:
        """Quality on the line."""
        (c, q), (d, r) = self.low, self.high
        line: Floats = q + (r - q) * (cost - c) / (d - c)
        return line

    def around(self, quality: Floats) -> Bools:
        """Which qualities lie between those of the ends."""
        between: Bools = (quality >= self.low[1]) & (quality <= self.high[1])
        return between


def _between(pool: CandidateSet, low: int, high: int, step: float, cap: int) -> Ints:
    """What is known already, and what walks up from the cheaper one and down from the dearer one find."""
    ends = [(float(pool.cost[i]), float(pool.quality[i])) for i in (low, high)]
    count = int(np.ceil(np.log(ends[1][0] / ends[0][0]) / np.log1p(step * (1 - _WINDOW))))
    budgets = np.geomspace(ends[0][0], ends[1][0], count + 1)[1:-1]
    segment, width = _Segment(*ends), step * _WINDOW
    allowed = np.flatnonzero(
        segment.around(pool.quality) & (np.count_nonzero(pool.head != OFF, axis=1) <= cap)
    )
    known = (
        _best_end(pool.quality[allowed], pool.cost[allowed], b, segment, width) for b in budgets.tolist()
    )
    walk = partial(_walk, pool, segment=segment, width=width)
    found = [int(allowed[k]) for k in known if k is not None]
    return np.array([*found, *walk(low, budgets), *walk(high, budgets[::-1])], np.int64)


def _walk(
    pool: CandidateSet, start: int, budgets: Floats, *, segment: _Segment, width: float
) -> Iterator[int]:
    at = start
    for few in np.array_split(budgets, np.arange(_STRIDE, budgets.size, _STRIDE)):
        found = _best_within(pool, at, few.tolist(), segment, width)
        yield from found
        if not found:
            return
        at = found[-1]


def _best_within(
    pool: CandidateSet, at: int, budgets: list[float], segment: _Segment, width: float
) -> list[int]:
    """For each budget the best candidate one line away whose cost lies just below it."""
    head, now = pool.head[at], pool.cut[at]
    best: dict[float, tuple[float, int, int]] = {}
    for p, quality, cost in _curves(pool.problem, head, now):
        inside = np.flatnonzero(segment.around(quality) & np.isfinite(cost))
        for budget in budgets:
            k = _best_end(quality[inside], cost[inside], budget, segment, width)
            if k is None:
                continue
            reached = _credit(quality[inside[k]], cost[inside[k]], segment)
            if budget not in best or reached > best[budget][0]:
                best[budget] = float(reached), p, int(inside[k]) + 1
    cuts = np.tile(now, (len(best), 1))
    for row, (_, p, cut) in zip(cuts, best.values(), strict=True):
        row[p] = cut
    return pool.add(np.tile(head, (len(best), 1)), cuts).tolist() if best else []


def _best_end(quality: Floats, cost: Floats, budget: float, segment: _Segment, width: float) -> int | None:
    """The end of the best quality with a cost just below the budget; of the nearest cost if none is near."""
    near = np.flatnonzero((cost <= budget) & (cost > budget * (1 - width)))
    if near.size:
        return int(near[_credit(quality[near], cost[near], segment).argmax()])
    if not cost.size:
        return None
    below = int(np.where(cost <= budget, cost, -np.inf).argmax())
    return below if budget * (1 - 2 * width) < cost[below] <= budget else None


def _credit(quality: Floats, cost: Floats, segment: _Segment) -> Floats:
    """Quality, but what is above the chord counts as much below it."""
    limit = segment.at(cost)
    return limit - np.abs(quality - limit)


def _curves(problem: Problem, head: Ints, cut: Ints) -> Iterator[tuple[int, Floats, Floats]]:
    """Each enabled exit's position, with mean quality and cost (N,) if the k + 1 surest samples leave there.

    Cuts at which no threshold fits cost infinitely much.
    """
    enabled = [(p, spot) for p, spot in problem.used if head[p] != OFF]
    alive = [np.ones(problem.samples, bool)]
    for p, spot in enabled:
        alive.append(alive[-1] & (spot.rank[head[p]] >= cut[p]))
    quality, cost = problem.final.copy(), np.ones(problem.samples)
    curves = []
    for (p, spot), arrive in zip(reversed(enabled), reversed(alive[:-1]), strict=True):
        own = int(head[p])
        gained, spent = _prefix(spot, own, arrive, quality, cost)
        curves.append((p, spot, gained, spent))
        leaves = spot.rank[own] < cut[p]
        quality = np.where(leaves, spot.quality[own], quality)
        cost = np.where(leaves, spot.backbone, cost) + spot.cost[own]
    total_quality, total_cost = quality.sum(), cost.sum()
    for p, spot, gained, spent in curves:
        now = int(cut[p]) - 1
        rest = 0.0 if spot.ends is None else np.where(spot.ends[int(head[p])] == 0, 0.0, np.inf)
        yield (
            p,
            (total_quality - gained[now] + gained) / problem.samples,
            (total_cost - spent[now] + spent + rest) / problem.samples,
        )


def _prefix(
    spot: SortedPosition, own: int, arrive: Ints, quality: Floats, cost: Floats
) -> tuple[Floats, Floats]:
    """Running sums, surest first, of what leaving here changes in quality and in cost."""
    order = spot.ordered(own)
    gained = ((spot.quality[own] - quality) * arrive)[order].cumsum()
    spent = ((spot.backbone - cost) * arrive)[order].cumsum()
    return gained, spent
