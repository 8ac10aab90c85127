"""The frontier made fine: configurations for the budgets between those that any trade-off finds.

No lambda reaches the budgets between two neighbours on the convex hull of cost and quality. From either
neighbour the search walks to the other in small steps, each an exact line under a constraint: of all
thresholds of all enabled exits, the one with the best quality among those whose cost lies just below the
budget. Quality above the segment between the neighbours is not believed: on the hull there is none, and
beside careful neighbours it is selection bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from offramp.solver.candidates import CandidateSet
from offramp.solver.effort import EFFORT
from offramp.solver.kernels import OFF
from offramp.solver.problem import Bools, Floats, Ints, Problem


def fill(candidates: CandidateSet, picks: Ints, step: float, cap: int) -> tuple[Ints, Ints]:
    """Candidates between those picked, so that costs rise by no more than ``step``, a share such as 0.01.

    Returns:
        Those of the picks that are not dominated, with what was found between them, by rising cost and
        quality; and what was found that costs more than one of these and is as good, no better.
    """
    found = undominated(candidates, picks)
    for _ in range(EFFORT.passes):
        gaps = [
            along_chord(candidates, low, high, step, cap)
            for low, high in pairwise(found.tolist())
            if candidates.cost[high] > candidates.cost[low] * (1 + step) and candidates.cost[low] > 0
        ]
        before, found = found, _rising(candidates, np.concatenate([found, *gaps]))
        if np.array_equal(before, found):
            break
    listed = undominated(candidates, found)
    return listed, np.setdiff1d(found, listed)


def undominated(candidates: CandidateSet, picks: Ints) -> Ints:
    """The picks that no other one beats in cost and equals in quality, by rising cost."""
    picks = _rising(candidates, picks)
    better: Ints = picks[np.append(True, np.diff(candidates.quality[picks]) > 0)]
    return better


def _rising(candidates: CandidateSet, picks: Ints) -> Ints:
    """The picks, by rising cost, that are as good as every cheaper one."""
    picks = np.unique(picks)
    order = picks[np.lexsort((-candidates.quality[picks], candidates.cost[picks]))]
    best = np.maximum.accumulate(candidates.quality[order])
    order = order[candidates.quality[order] >= best]
    rising: Ints = order[np.append(True, np.diff(candidates.cost[order]) > 0)]
    return rising


@dataclass(frozen=True)
class _Segment:
    """The straight line between two neighbours, (cost, quality) each."""

    low: tuple[float, float]
    high: tuple[float, float]

    def around(self, quality: Floats) -> Bools:
        """Which qualities lie between those of the ends."""
        between: Bools = (quality >= self.low[1]) & (quality <= self.high[1])
        return between

    def credit(self, quality: Floats, cost: Floats) -> Floats:
        """Quality, but what is above the line counts as much below it."""
        (c, q), (d, r) = self.low, self.high
        limit: Floats = q + (r - q) * (cost - c) / (d - c)
        return limit - np.abs(quality - limit)


def along_chord(candidates: CandidateSet, low: int, high: int, step: float, cap: int) -> Ints:
    """Candidates from ``low`` up to ``high``, of more cost and quality, near the straight line between them.

    What is known already, and what walks up from the cheaper and down from the more expensive one find.
    """
    ends = [(float(candidates.cost[i]), float(candidates.quality[i])) for i in (low, high)]
    count = int(np.ceil(np.log(ends[1][0] / ends[0][0]) / np.log1p(step * (1 - EFFORT.window))))
    budgets = np.geomspace(ends[0][0], ends[1][0], count + 1)[1:-1]
    segment, width = _Segment(*ends), step * EFFORT.window
    allowed = np.flatnonzero(
        segment.around(candidates.quality) & (np.count_nonzero(candidates.head != OFF, axis=1) <= cap)
    )
    quality, cost = candidates.quality[allowed], candidates.cost[allowed]
    known = (_best_end(quality, cost, budget, segment, width) for budget in budgets.tolist())
    found = [int(allowed[k]) for k in known if k is not None]
    for at, way in ((low, budgets), (high, budgets[::-1])):
        for few in np.array_split(way, np.arange(EFFORT.stride, way.size, EFFORT.stride)):
            reached = _best_within(candidates, at, few.tolist(), segment, width)
            if not reached:
                break
            found += reached
            at = reached[-1]
    return np.array(found, np.int64)


def _best_within(
    candidates: CandidateSet, at: int, budgets: list[float], segment: _Segment, width: float
) -> list[int]:
    """For each budget the best candidate one line away whose cost lies just below it."""
    head, now = candidates.head[at], candidates.prefix[at]
    best: dict[float, tuple[float, int, int]] = {}
    for p, quality, cost in _curves(candidates.problem, head, now):
        inside = np.flatnonzero(segment.around(quality) & np.isfinite(cost))
        for budget in budgets:
            k = _best_end(quality[inside], cost[inside], budget, segment, width)
            if k is None:
                continue
            reached = float(segment.credit(quality[inside[k]], cost[inside[k]]))
            if budget not in best or reached > best[budget][0]:
                best[budget] = reached, p, int(inside[k]) + 1
    prefixes = np.tile(now, (len(best), 1))
    for row, (_, p, prefix) in zip(prefixes, best.values(), strict=True):
        row[p] = prefix
    return candidates.add(np.tile(head, (len(best), 1)), prefixes).tolist() if best else []


def _best_end(quality: Floats, cost: Floats, budget: float, segment: _Segment, width: float) -> int | None:
    """The end of the best quality with a cost just below the budget; of the nearest cost if none is near."""
    near = np.flatnonzero((cost <= budget) & (cost > budget * (1 - width)))
    if near.size:
        return int(near[segment.credit(quality[near], cost[near]).argmax()])
    if not cost.size:
        return None
    below = int(np.where(cost <= budget, cost, -np.inf).argmax())
    return below if budget * (1 - 2 * width) < cost[below] <= budget else None


def _curves(problem: Problem, head: Ints, prefix: Ints) -> Iterator[tuple[int, Floats, Floats]]:
    """Each enabled exit's position, mean quality and cost (N,) if the k + 1 most confident leave there.

    Prefixes at which no threshold fits cost infinitely much.
    """
    enabled = [(p, position, int(head[p])) for p, position in problem.used if head[p] != OFF]
    alive = [np.ones(problem.samples, bool)]
    for p, position, own in enabled:
        alive.append(alive[-1] & (position.rank[own] >= prefix[p]))
    quality, cost = problem.final, np.ones(problem.samples)
    changes = []
    for (p, position, own), arrive in zip(reversed(enabled), reversed(alive[:-1]), strict=True):
        order, leaves = position.ordered(own), position.rank[own] < prefix[p]
        gained = ((position.quality[own] - quality) * arrive)[order].cumsum()
        spent = ((position.backbone - cost) * arrive)[order].cumsum()
        fits = 0.0 if position.ends is None else np.where(position.ends[own] == 0, 0.0, np.inf)
        changes.append((p, int(prefix[p]) - 1, gained, spent, fits))
        quality = np.where(leaves, position.quality[own], quality)
        cost = np.where(leaves, position.backbone, cost) + position.cost[own]
    total_quality, total_cost = quality.sum(), cost.sum()
    for p, now, gained, spent, fits in changes:
        yield (
            p,
            (total_quality - gained[now] + gained) / problem.samples,
            (total_cost - spent[now] + spent + fits) / problem.samples,
        )
