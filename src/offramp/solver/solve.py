"""From records and costs to the exits that minimise J for each trade-off: the steps of each method, in order.

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
from offramp.solver.effort import EFFORT
from offramp.solver.kernels import OFF
from offramp.solver.line_search import best_line, own_line
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
_BRIEF: tuple[Step, ...] = (*METHODS["exact"][:-1], partial(refine, cells=EFFORT.brief_cells))
_QUICK: tuple[Step, ...] = (single_pass, back_to_front, thin_out, descend_from_best)


@dataclass(frozen=True)
class SearchPlan:
    """How to search."""

    method: str  # one of ``METHODS``
    price: float  # of each enabled exit, in units of J
    cap: int  # the most exits
    parsimonious: bool = False  # then keep only exits that are significant, at averaged thresholds
    seed: int = 0  # of the resamples that thresholds are averaged over
    workers: int = 1  # threads


def solve(
    problem: Problem,
    costs: CostTable,
    plan: SearchPlan,
    lambdas: list[float],
    report: Report = lambda: None,
) -> tuple[CandidateSet, Ints]:
    """From these records alone: all candidates met, and the (G,) best among them, one for each lambda."""
    candidates, objectives = CandidateSet(problem), _objectives(plan, lambdas)
    steps = METHODS[plan.method]
    many = problem.samples > 2 * EFFORT.coarse_samples
    large = many and plan.method == "exact" and candidates.problem.cells > 0
    if large:
        _from_fewer(costs, plan, lambdas, candidates)
        steps = (_polish,) if plan.parsimonious else (_polish, _no_worse)
    elif plan.parsimonious:  # forgives what a longer search would still find
        steps = _QUICK
    report()
    for step in steps:
        picks = step(objectives, candidates)
    report()
    if plan.parsimonious:  # with very many samples thresholds are steady as they are
        picks = parsimonious(objectives, candidates, plan.seed, average=not large)
    return candidates, picks


def _objectives(plan: SearchPlan, lambdas: Iterable[float]) -> Objectives:
    tradeoff = np.array(list(lambdas))
    return Objectives(tradeoff, np.full(tradeoff.size, plan.price), plan.cap)


def with_common_threshold(
    candidates: CandidateSet, plan: SearchPlan, lambdas: list[float]
) -> tuple[CandidateSet, Ints]:
    """Candidates with one threshold for all exits, and the best for each lambda.

    Exits go that are not missed: J stays within one standard error of the best J among ``candidates``.
    """
    objectives = _objectives(replace(plan, price=0.0), lambdas)
    common = CandidateSet(candidates.problem)
    return common, needed_only(objectives, common, same_threshold(objectives, common), candidates)


def _from_fewer(costs: CostTable, plan: SearchPlan, lambdas: list[float], candidates: CandidateSet) -> None:
    """Put into the candidates what a search of fewer samples finds."""
    distinct = sorted(set(lambdas))
    some = [distinct[i] for i in spread(len(distinct), EFFORT.coarse_objectives)]
    coarse = CandidateSet(Problem.of(fewer(candidates.problem.records), costs, plan.workers))
    objectives = _objectives(plan, some)
    picks: list[int] = []
    for step in (*_QUICK, path) if plan.parsimonious else _BRIEF:
        picks += step(objectives, coarse).tolist()
    found = {exits_of(coarse, i) for i in picks}
    candidates.add(*place(candidates.problem, sorted(found, key=str)))


def _polish(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """From the best candidates: every line for some objectives, the lines of their own exits for more."""
    some, more = (
        spread(len(objectives.tradeoff), most) for most in (EFFORT.full_objectives, EFFORT.own_objectives)
    )
    rounds = ((some, own_line), (some, best_line), (more, own_line), (some, best_line))
    for index, find in rounds if more.size > some.size else rounds[:2]:
        found = candidates.best(objectives)[0][index]
        candidates.descend(candidates.rows(objectives, found, index), find)
    return candidates.best(objectives)[0]


def _no_worse(objectives: Objectives, candidates: CandidateSet) -> Ints:
    """No worse than the reference methods, where running them takes no longer than the rest."""
    if len(objectives.tradeoff) * candidates.problem.cells <= EFFORT.reference_cells:
        single_pass(objectives, candidates)
        iterative(objectives, candidates)
    return candidates.best(objectives)[0]


def fewer(records: ExitRecords, samples: int | None = None) -> ExitRecords:
    """So many samples that stand for all: evenly spread in the order of their mean confidence."""
    samples = EFFORT.coarse_samples if samples is None else samples
    finite = np.isfinite(records.confidence) & records.exists[:, :, None]
    mean = np.where(finite, records.confidence, 0).sum(axis=(0, 1), dtype=np.float64)
    order = np.argsort(mean, kind="stable")
    picks = ((np.arange(samples) + 0.5) * records.samples / samples).astype(int)
    return records.subset(np.sort(order[picks]))


def spread(count: int, most: int) -> Ints:
    """At most ``most`` of ``count`` places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def exits_of(candidates: CandidateSet, i: int) -> Exits:
    """A candidate as names and thresholds, these between the samples they part; ``place`` is the way back."""
    problem, head, prefix = candidates.problem, candidates.head[i], candidates.prefix[i]
    records, common = problem.records, float(candidates.common[i])
    found: list[ExitChoice] = []
    alive = np.ones(problem.samples, bool)
    for p, position in problem.used:
        if head[p] == OFF:
            continue
        confidence = position.confidence[head[p]]
        leaves = alive & (position.rank[head[p]] < prefix[p])
        alive &= ~leaves
        value = common
        if math.isnan(common):
            staying = confidence[alive].max(initial=np.float32(-np.inf))
            value = threshold_between(staying, confidence[leaves].min())
        found.append(ExitChoice(records.positions[p], records.heads[position.heads[head[p]]], value))
    return tuple(found)


def place(problem: Problem, exits: Iterable[Exits]) -> tuple[Ints, Ints]:
    """Names and thresholds, of heads that exist, as heads and prefix lengths, (B, P) each."""
    exits, records = list(exits), problem.records
    head = np.full((len(exits), len(problem.positions)), OFF)
    prefix = np.zeros_like(head)
    for row, config in enumerate(exits):
        for choice in config:
            p = records.positions.index(choice.position)
            c = problem.positions[p].heads.index(records.heads.index(choice.head))
            size = problem.positions[p].prefix_at(c, choice.threshold)
            if size:
                head[row, p], prefix[row, p] = c, size
    return head, prefix
