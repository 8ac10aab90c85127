"""Dials: configurations from the full model down, each strictly cheaper than all before.

Two kinds come from one search. The careful one has the significant exits of each trade-off at averaged
thresholds; the common one has one threshold for all its exits. From the full model to the first configuration
with exits leads a safe end: that configuration, with only the most confident of each exit's leavers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from offramp.core import CostTable
from offramp.solver.candidates import CandidateSet
from offramp.solver.fill import along_chord
from offramp.solver.kernels import OFF
from offramp.solver.problem import Floats, Ints, Problem
from offramp.solver.solve import Exits, SearchPlan, exits_of, solve, with_common_threshold

SAFE_STEPS = 8
"""Parts that the safe end is divided into; a fine dial divides it further."""

MOST_PARTS = 200
"""Parts that two neighbours of a dial are at most apart."""


@dataclass(frozen=True, eq=False)
class Dial:
    """R configurations of one kind by falling cost, the full model first.

    Args:
        candidates: what holds them.
        rows: (R,) which of the candidates.
        picks: (G,) the candidate for each trade-off, in their order; the full model where none is cheaper.
    """

    candidates: CandidateSet
    rows: Ints
    picks: Ints

    @property
    def cost(self) -> Floats:
        """(R,) over the full model's, strictly falling from 1."""
        return self.candidates.cost[self.rows]

    def exits(self, i: int) -> Exits:
        """A candidate by names and thresholds."""
        return exits_of(self.candidates, i)


def dials(
    problem: Problem,
    costs: CostTable,
    plan: SearchPlan,
    lambdas: list[float],
    *,
    common: bool,
    step: float | None = None,
    report: Callable[[], None] = lambda: None,
) -> list[Dial]:
    """The careful dial of these samples and, if wanted, the common one.

    With ``step`` they are made fine: costs fall by at most this share wherever configurations between are
    found. ``report`` is called three times.
    """
    candidates, picks = solve(problem, costs, plan, lambdas, report)
    found = [(candidates, picks)]
    if common:
        found.append(with_common_threshold(candidates, plan, lambdas))
    report()
    return [_dial(each, chosen, lambdas, step, plan.cap) for each, chosen in found]


def _dial(candidates: CandidateSet, picks: Ints, lambdas: list[float], step: float | None, cap: int) -> Dial:
    falling = np.argsort(-np.asarray(lambdas), kind="stable")
    down = list(dict.fromkeys(picks[falling].tolist()))
    start = next((i for i in down if i and candidates.cost[i] < 1), None)
    safe = [] if start is None else safe_end(candidates, start, step)
    rows = strictly_cheaper(candidates, np.array([0, *safe, *down]))
    if step is not None:
        for find in (chords, between):
            rows = by_falling_cost(candidates, np.append(rows, find(candidates, rows, step, cap)))
    return Dial(candidates, rows, np.where(candidates.cost[picks] < 1, picks, 0))


def by_falling_cost(candidates: CandidateSet, found: Ints) -> Ints:
    """The full model and the candidates, each strictly cheaper than the one before.

    Those that cost more than the full model, for their heads, are left out.
    """
    found = np.unique(found)
    falling = found[np.argsort(-candidates.cost[found], kind="stable")]
    return strictly_cheaper(candidates, np.append(0, falling))


def chords(candidates: CandidateSet, rows: Ints, step: float, cap: int) -> Ints:
    """Candidates near the straight lines between neighbours of a dial (R,), where more cost is better."""
    cost, quality = candidates.cost, candidates.quality
    found = [rows[:0]]
    for high, low in pairwise(rows.tolist()):
        if cost[high] > cost[low] * (1 + step) and cost[low] > 0 and quality[low] < quality[high]:
            found.append(along_chord(candidates, low, high, step, cap))
    return np.concatenate(found)


def between(candidates: CandidateSet, rows: Ints, step: float, cap: int) -> Ints:
    """Blends of neighbours of a dial (R,), wherever costs still fall by more than ``step``.

    Where the exits of both neighbours together are more than ``cap``, the cheaper one's exits with the most
    confident of their leavers.
    """
    problem, found = candidates.problem, [rows[:0]]
    for high, low in pairwise(rows.tolist()):
        ratio = candidates.cost[high] / max(candidates.cost[low], 1e-9)
        parts = min(math.ceil(math.log(ratio) / math.log1p(step)), MOST_PARTS)
        made = []
        for k in range(1, parts):
            head, prefix = blend(candidates, high, low, k / parts)
            if np.count_nonzero(head != OFF) > cap:
                head, prefix = candidates.head[low], candidates.prefix[low]
                head, prefix = keep_most_confident(problem, head, prefix, k / parts)
            made.append((head, prefix))
        if made:
            new = candidates.add(*(np.array(each) for each in zip(*made, strict=True)))
            cost = candidates.cost[new]
            found.append(new[(cost < candidates.cost[high]) & (cost > candidates.cost[low])])
    return np.concatenate(found)


def blend(candidates: CandidateSet, one: int, other: int, share: float) -> tuple[Ints, Ints]:
    """A configuration (P,) with prefixes between those of two: ``share`` of the way from one to the other.

    Where their heads differ it takes that of the nearer one; where only one has an exit, fewer leave there.
    """
    head, prefix = candidates.head[one].copy(), candidates.prefix[one].copy()
    for p, position in candidates.problem.used:
        own, then = int(candidates.head[one, p]), int(candidates.head[other, p])
        sizes = int(candidates.prefix[one, p]), int(candidates.prefix[other, p])
        if own != then and OFF not in (own, then):
            head[p], prefix[p] = (own, sizes[0]) if share < 0.5 else (then, sizes[1])
        elif own != OFF or then != OFF:
            kept = own if own != OFF else then
            size = round((1 - share) * sizes[0] + share * sizes[1])
            size = position.prefix_near(kept, size) if size else 0
            head[p], prefix[p] = (kept, size) if size else (OFF, 0)
    return head, prefix


def strictly_cheaper(candidates: CandidateSet, found: Ints) -> Ints:
    """Those of the candidates that cost less than all before them."""
    cost = candidates.cost[found]
    least = np.minimum.accumulate(np.append(np.inf, cost[:-1]))
    kept: Ints = found[cost < least]
    return kept


def safe_end(candidates: CandidateSet, start: int, step: float | None = None) -> list[int]:
    """From the full model down to a candidate: with the most confident 1/8, 2/8, ... of each exit's leavers.

    With ``step`` the parts are small enough for costs to fall by about that share.
    """
    saving = 1 - float(candidates.cost[start])
    parts = SAFE_STEPS if step is None else max(SAFE_STEPS, int(np.ceil(saving / step)))
    variants = [
        keep_most_confident(candidates.problem, candidates.head[start], candidates.prefix[start], k / parts)
        for k in range(1, parts)
    ]
    added: list[int] = candidates.add(*(np.array(each) for each in zip(*variants, strict=True))).tolist()
    return added


def keep_most_confident(problem: Problem, head: Ints, prefix: Ints, share: float) -> tuple[Ints, Ints]:
    """One configuration (P,) in which each exit keeps the most confident share of those who leave there."""
    head, prefix = head.copy(), prefix.copy()
    alive = np.ones(problem.samples, bool)
    for p, position in problem.used:
        if head[p] == OFF:
            continue
        rank = position.rank[head[p]]
        leaves = alive & (rank < prefix[p])
        alive &= ~leaves
        places = np.sort(rank[leaves])
        kept = int(np.ceil(share * places.size))
        size = position.prefix_near(int(head[p]), int(places[kept - 1]) + 1) if kept else 0
        head[p], prefix[p] = (head[p], size) if size else (OFF, 0)
    return head, prefix
