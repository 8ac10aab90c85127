"""From records and costs to the exits that minimise J for each trade-off: the steps of each method, in order.

    solve      one plan -> exits for each lambda
    exits_of   a candidate of the pool as names and thresholds; ``place`` is the way back

Many samples are searched in two levels. Some thousand say which exits work together about as well as a
million do; what they do not say is where exactly the thresholds lie, and for that lines along the exits
already chosen are enough, a tenth of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from offramp.core import CostTable, ExitChoice, ExitRecords
from offramp.solver.candidates import CandidateSet, Objectives, Step
from offramp.solver.common_threshold import threshold_between
from offramp.solver.constructive import back_to_front, iterative, same_threshold, single_pass
from offramp.solver.line_search import OFF, best_line, descend, own_line
from offramp.solver.local_search import descend_from_best, refine, thin_out
from offramp.solver.problem import Ints, Problem
from offramp.solver.pruning import needed_only, parsimonious, path

Exits = tuple[ExitChoice, ...]
Report = Callable[[], None]

METHODS: dict[str, tuple[Step, ...]] = {
    "exact": (single_pass, back_to_front, iterative, same_threshold, thin_out, refine),
    "single-pass": (single_pass,),
    "iterative": (iterative,),
    "same-threshold": (same_threshold,),
}
_BRIEF: tuple[Step, ...] = (*METHODS["exact"][:-1], partial(refine, cells=2_000_000))
_DRAFT: tuple[Step, ...] = (single_pass, back_to_front, same_threshold, thin_out, descend_from_best)

COARSE = 4096
"""Samples of the coarse level; with no more than twice as many there is but one level."""

_COARSE_GOALS = 40
_FULL = 40  # goals for which every line is tried on all samples; what they find serves their neighbours
_REFERENCE_CELLS = 5_000_000  # goals * P * C * N up to which the reference methods are run on all samples too
_OWN = 192  # goals for which the lines of their own exits are


@dataclass(frozen=True)
class SearchPlan:
    """How to search.

    Args:
        method: one of ``METHODS``.
        price: of each enabled exit, in units of J.
        cap: the most exits.
        parsimonious: then keep only exits that are missed, at averaged thresholds.
        seed: of the resamples that thresholds are averaged over.
        workers: threads.
    """

    method: str
    price: float
    cap: int
    parsimonious: bool = False
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True, eq=False)
class Solved:
    """All candidates met and the (G,) picks among them, one for each lambda."""

    records: ExitRecords
    pool: CandidateSet
    picks: Ints

    def exits(self, i: int) -> Exits:
        """One candidate as names and thresholds."""
        return exits_of(self.pool, i, self.records)


def solve(
    records: ExitRecords,
    costs: CostTable,
    plan: SearchPlan,
    lambdas: list[float],
    report: Report | None = None,
) -> Solved:
    """The best candidates for each lambda, from these records alone."""
    report = report or (lambda: None)
    pool, goals = _start(records, costs, plan, lambdas)
    large = plan.method == "exact" and records.samples > 2 * COARSE and pool.problem.cells > 0
    if large:
        _from_fewer(records, costs, plan, lambdas, pool)
    report()
    for step in _steps(plan, large):
        picks = step(pool.problem, goals, pool)
    report()
    if plan.parsimonious and plan.method == "same-threshold":
        best = CandidateSet(pool.problem)
        for step in METHODS["exact"]:
            step(pool.problem, goals, best)
        picks = needed_only(pool.problem, goals, pool, picks, best)
    elif plan.parsimonious:  # with very many samples thresholds are steady as they are
        picks = parsimonious(pool.problem, goals, pool, plan.seed, average=not large)
    return Solved(records, pool, picks)


def _start(
    records: ExitRecords, costs: CostTable, plan: SearchPlan, lambdas: Iterable[float]
) -> tuple[CandidateSet, Objectives]:
    tradeoff = np.array(list(lambdas))
    goals = Objectives(tradeoff, np.full(tradeoff.size, plan.price), plan.cap)
    return CandidateSet(Problem.of(records, costs, plan.workers)), goals


def _steps(plan: SearchPlan, large: bool) -> tuple[Step, ...]:
    if large:
        return (_polish,) if plan.parsimonious else (_polish, _no_worse)
    if plan.parsimonious and plan.method == "exact":  # forgives what a longer search would still find
        return _DRAFT
    return METHODS[plan.method]


def quick_candidates(
    records: ExitRecords, costs: CostTable, plan: SearchPlan, lambdas: list[float]
) -> tuple[CandidateSet, Objectives]:
    """The quick search, with candidates at rising prices: what prices are compared on."""
    pool, goals = _start(records, costs, plan, lambdas)
    for step in (*_DRAFT, path):
        step(pool.problem, goals, pool)
    return pool, goals


def _from_fewer(
    records: ExitRecords, costs: CostTable, plan: SearchPlan, lambdas: list[float], pool: CandidateSet
) -> None:
    """Put into the pool what a search of fewer samples finds."""
    distinct = sorted(set(lambdas))
    some = [distinct[i] for i in spread(len(distinct), _COARSE_GOALS)]
    sample = fewer(records)
    coarse, aims = _start(sample, costs, plan, some)
    picks: list[int] = []
    for step in (*_DRAFT, path) if plan.parsimonious else _BRIEF:
        picks += step(coarse.problem, aims, coarse).tolist()
    found = {exits_of(coarse, i, sample) for i in picks}
    pool.add(*place(pool.problem, records, sorted(found, key=str)))


def _polish(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """From the goals' best candidates: every line for some goals, the lines of its own exits for more."""
    some, more = spread(len(goals.tradeoff), _FULL), spread(len(goals.tradeoff), _OWN)
    rounds = ((some, own_line), (some, best_line), (more, own_line), (some, best_line))
    for index, find in rounds if more.size > some.size else rounds[:2]:
        found = pool.best(goals)[0][index]
        rows = goals.rows(index, pool.head[found], pool.cut[found])
        descend(problem, rows, find)
        pool.add(rows.head, rows.cut)
    return pool.best(goals)[0]


def _no_worse(problem: Problem, goals: Objectives, pool: CandidateSet) -> Ints:
    """No worse than the reference methods, where running them takes no longer than the rest."""
    if len(goals.tradeoff) * problem.cells <= _REFERENCE_CELLS:
        single_pass(problem, goals, pool)
        iterative(problem, goals, pool)
    return pool.best(goals)[0]


def fewer(records: ExitRecords, samples: int = COARSE) -> ExitRecords:
    """So many samples that stand for all: evenly spread in the order of their mean confidence."""
    finite = np.isfinite(records.confidence) & records.exists[:, :, None]
    mean = np.where(finite, records.confidence, 0).sum(axis=(0, 1), dtype=np.float64)
    order = np.argsort(mean, kind="stable")
    picks = ((np.arange(samples) + 0.5) * records.samples / samples).astype(int)
    return records.subset(np.sort(order[picks]))


def spread(count: int, most: int) -> Ints:
    """At most ``most`` of ``count`` places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def exits_of(pool: CandidateSet, i: int, records: ExitRecords) -> Exits:
    """A candidate as names and thresholds."""
    found = _choices(pool.problem, pool.head[i], pool.cut[i], records)
    common = float(pool.common[i])
    return found if math.isnan(common) else tuple(replace(choice, threshold=common) for choice in found)


def place(problem: Problem, records: ExitRecords, exits: Iterable[Exits]) -> tuple[Ints, Ints]:
    """Names and thresholds as heads and cuts, (B, P) each."""
    exits = list(exits)
    head = np.full((len(exits), len(problem.spots)), OFF)
    cut = np.zeros_like(head)
    for row, config in enumerate(exits):
        for choice in config:
            p = records.positions.index(choice.position)
            spot = problem.spots[p]
            assert spot is not None  # a configuration names heads that exist
            c = spot.heads.index(records.heads.index(choice.head))
            size = spot.cut_at(c, choice.threshold)
            if size:
                head[row, p], cut[row, p] = c, size
    return head, cut


def _choices(problem: Problem, head: Ints, cut: Ints, records: ExitRecords) -> Exits:
    """The enabled exits of one configuration, (P,) each, with thresholds between the samples they part."""
    found: list[ExitChoice] = []
    alive = np.ones(problem.samples, bool)
    for p, spot in problem.used:
        if head[p] == OFF:
            continue
        confidence = spot.confidence[head[p]]
        leaves = alive & (spot.rank[head[p]] < cut[p])
        alive &= ~leaves
        staying = confidence[alive].max(initial=np.float32(-np.inf))
        value = threshold_between(staying, confidence[leaves].min())
        name = records.heads[spot.heads[head[p]]]
        found.append(ExitChoice(records.positions[p], name, value))
    return tuple(found)
