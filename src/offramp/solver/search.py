"""Frontier search: records + costs -> one configuration per trade-off. Arrays in, data out; no model.

    J(config; lambda) = lambda * (1 - quality / full quality) + (1 - lambda) * cost / full cost

Where the full model's quality is 0, the first term is lambda times the difference in quality. The optimum on
the samples searched is optimistic about others: see ``pruning`` and ``cross_fit``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np

from offramp._progress import progress_bar
from offramp.core import (
    CostTable,
    ExitConfig,
    ExitRecords,
    Frontier,
    check_match,
    check_tradeoffs,
    expected,
    full_quality,
    is_count,
    is_number,
)
from offramp.errors import InputError
from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.cross_fit import Folds, Setting, governed, judged_settings, thinned
from offramp.solver.effort import EFFORT
from offramp.solver.fill import fill
from offramp.solver.line_search import best_line
from offramp.solver.problem import Problem
from offramp.solver.pruning import SELECTION_BIAS
from offramp.solver.solve import METHODS, Exits, SearchPlan, exits_of, solve, spread

DEFAULT_TRADEOFFS = tuple(round(1 - 0.5 * (1 - i / 100) ** 2, 6) for i in range(101))
"""From 0.5 to 1, denser towards 1, where much cost buys little quality and the interesting settings are."""

TIE_BREAK = 1e-7
"""Least weight of cost and of quality that a dial is found with: less than one sample of ten million."""

_EXPECTED = {
    "regularise": 'expected "auto", None or a price per exit of at least 0; it is in units of J, 0.001 is a '
    "moderate one",
    "max_exits": "expected a whole number of at least 0; leave it out for no limit",
    "method": f"unknown; choose one of {', '.join(METHODS)}",
    "seed": "expected a whole number of at least 0",
    "workers": "expected a number of threads, at least 1",
    "step": "expected a share from 0.0001 to 1, 0.01 for one per cent, or None for the configurations of the "
    "trade-offs alone",
}


def search(
    records: ExitRecords,
    costs: CostTable,
    *,
    tradeoffs: Iterable[float] | None = None,
    method: str = "exact",
    regularise: str | float | None = "auto",
    max_exits: int | None = None,
    step: float | None = 0.01,
    seed: int = 0,
    workers: int = 1,
    progress: bool | None = None,
) -> Frontier:
    """Find the configurations worth having, from the cheapest to the full model, and what new samples keep.

    By default what each configuration is expected to keep is a promise: in the mean over draws of the search
    samples, new samples lose at most ``expected.drop`` (docs/guide/trust.md: cross-fitted losses, and
    conformal risk control, arXiv 2208.02814, along the dial). ``frontier.at(max_drop=...)`` goes by it.

    Args:
        records: P positions, C heads, N samples; not those the exits were trained on. Samples of one group
            (``records.groups``) count as one.
        costs: of the same P and C.
        tradeoffs: the lambda values in [0, 1]; near 1 buys quality, near 0 buys speed. Default: 101 values
            from 0.5 to 1, ``DEFAULT_TRADEOFFS``.
        method: "exact", or one of the reference methods "single-pass", "iterative", "same-threshold".
        regularise: "auto" aims at unseen samples: a price of 2 / N per exit, only exits whose absence would
            cost more than one standard error, thresholds averaged over resamples, and of few samples one
            common threshold; judged on samples that folds hold out. None is the optimum on these very
            samples, a number the price of each enabled exit in units of J; the figures of both, and of the
            reference methods, are in-sample.
        max_exits: at most so many enabled exits; 0 leaves the full model.
        step: "exact" also finds configurations between those of the trade-offs, so that costs on the frontier
            rise by at most this share. None leaves them out.
        seed: of the folds and resamples of "auto"; nothing else is random.
        workers: threads; the answer is the same for any number.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        Configurations none of which costs more and is no better than another. By default the full model is
        the last; in-sample it is there if nothing beats it. ``by_tradeoff`` has one configuration per lambda:
        the lowest J, by default on samples held out. ``meta`` says what made them: "figures" is
        "cross-fitted" or "in-sample", "proved" is true where every configuration was tried (small problems,
        without "auto").

    Raises:
        InputError: an argument is not as described, or records and costs do not match.
    """
    check_match(records, costs, "search")
    wanted = DEFAULT_TRADEOFFS if tradeoffs is None else tradeoffs
    lambdas = check_tradeoffs(wanted, "search(tradeoffs=...)")
    _check(regularise=regularise, max_exits=max_exits, method=method, workers=workers, step=step, seed=seed)
    positions = len(records.positions)
    cap = positions if max_exits is None else min(int(max_exits), positions)
    step = float(step) if step is not None and method == "exact" else None
    honest = isinstance(regularise, str) and method == "exact"
    price = SELECTION_BIAS / records.samples if honest else 0.0
    if not isinstance(regularise, str):
        price = float(regularise or 0)
    plan = SearchPlan(
        method=method, price=price, cap=cap, parsimonious=honest, seed=seed, workers=int(workers)
    )
    find, problem = _cross_fitted if honest else _in_sample, Problem.of(records, costs, int(workers))
    meta = {
        "method": method,
        "regularise": regularise if isinstance(regularise, str) else regularise and price,
        "figures": "cross-fitted" if honest else "in-sample",
        "price": price,
        "max_exits": None if max_exits is None else cap,
        "step": step,
        "proved": False,
        "samples": records.samples,
        "groups": None if records.groups is None else len(np.unique(records.groups)),
        "unit": costs.unit,
        "seed": seed,
    }
    return find(problem, costs, lambdas, plan, step, meta, progress)


def _in_sample(
    problem: Problem,
    costs: CostTable,
    lambdas: list[float],
    plan: SearchPlan,
    step: float | None,
    meta: dict[str, Any],
    progress: bool | None,
) -> Frontier:
    """The best configurations on these samples, with their figures on these samples."""
    with progress_bar("Searching configurations", 3, progress) as advance:
        report = partial(next, map(advance, count(1)))
        candidates, picks = solve(problem, costs, plan, lambdas, report)
        listed, between = (picks[:0], picks[:0]) if step is None else fill(candidates, picks, step, plan.cap)
        advance(3)

    @cache
    def with_figures(exits: Exits) -> ExitConfig:
        return ExitConfig(exits, expected=expected(problem.records, costs, ExitConfig(exits)))

    by_tradeoff = {
        lam: replace(with_figures(exits_of(candidates, i)), tradeoff=lam)
        for lam, i in zip(lambdas, picks.tolist(), strict=True)
    }
    others, aside = (
        [with_figures(exits_of(candidates, i)) for i in part.tolist()] for part in (listed, between)
    )
    meta["proved"] = candidates.complete
    return Frontier.of([*by_tradeoff.values(), with_figures(()), *others], by_tradeoff, meta, aside)


def _cross_fitted(
    problem: Problem,
    costs: CostTable,
    lambdas: list[float],
    plan: SearchPlan,
    step: float | None,
    meta: dict[str, Any],
    progress: bool | None,
) -> Frontier:
    """The best of both kinds of dial, with figures of what new samples keep."""
    folds = Folds(problem.records, problem.canonical(), plan.seed)
    grid = dial_tradeoffs(lambdas)
    with progress_bar("Searching configurations", 3 * (len(folds.masks) + 1), progress) as advance:
        report = partial(next, map(advance, count(1)))
        found = judged_settings(problem, costs, grid, plan, folds, step, report)
    listed = thinned(governed(found, folds.groups, folds.unit), step)
    with_figures = cache(partial(Setting.config, costs=costs))
    full, by_tradeoff = full_quality(problem.records) or 1.0, {}
    for lam in lambdas:
        near = min(range(len(grid)), key=lambda g: abs(grid[g] - lam))
        picks = [kind.picks[near] for kind in found]
        best = min(picks, key=lambda each: lam * each.mean / full + (1 - lam) * each.cost)
        by_tradeoff[lam] = replace(with_figures(best), tradeoff=lam)
    return Frontier.of(map(with_figures, listed), by_tradeoff, meta)


def dial_tradeoffs(lambdas: Iterable[float]) -> list[float]:
    """The trade-offs that dials are found from: some of the default ones, and some of those given.

    Not quite 0 and 1: of equally cheap or equally good configurations the other figure decides.
    """
    grid = set[float]()
    for every in (DEFAULT_TRADEOFFS, lambdas):
        distinct = sorted(set(every))
        grid |= {distinct[i] for i in spread(len(distinct), EFFORT.dial_objectives)}
    return sorted({min(max(lam, TIE_BREAK), 1 - TIE_BREAK) for lam in grid})


def _check(**given: Any) -> None:
    """Refuse arguments that are not as ``search`` describes them."""
    price, cap, step = given["regularise"], given["max_exits"], given["step"]
    valid = {
        "regularise": price is None or is_number(price, 0) or (isinstance(price, str) and price == "auto"),
        "max_exits": cap is None or is_count(cap),
        "method": isinstance(given["method"], str) and given["method"] in METHODS,
        "seed": is_count(given["seed"]),
        "workers": is_count(given["workers"], 1),
        "step": step is None or is_number(step, 1e-4, 1),
    }
    for name, value in given.items():
        if not valid[name]:
            raise InputError(f"search({name}={value!r}): {_EXPECTED[name]}")


def lower_bound(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> dict[float, float]:
    """For each trade-off a value that J of no configuration is below: how far off a search can at most be.

    The bound takes the best first exit and threshold with everything behind it as an oracle would have it:
    each sample that goes on leaves wherever that is best for it, paying for no other head. With one position
    that is the optimum itself; with many exits it is loose: among many guesses one is right.

    Args:
        records: P positions, C heads, N samples.
        costs: of the same P and C.
        tradeoffs: lambda values in [0, 1].

    Raises:
        InputError: records and costs do not match, or a trade-off is not in [0, 1].
    """
    check_match(records, costs, "lower_bound")
    lambdas = check_tradeoffs(tradeoffs, "lower_bound(tradeoffs=...)")
    problem = Problem.of(records, costs)
    return {lam: _bound(problem, lam) for lam in lambdas}


def _bound(problem: Problem, tradeoff: float) -> float:
    objectives = Objectives(np.array([tradeoff]), np.zeros(1), len(problem.positions))
    rows = CandidateSet(problem).all_off(objectives)
    everyone = np.ones((1, problem.samples), bool)
    continue_cost = rows.finals()
    lowest = float(continue_cost.mean())
    for p, position in reversed(problem.used):
        line = best_line(rows, p, everyone, continue_cost)
        lowest = min(lowest, float(continue_cost.mean() - line.improvement[0]))
        leave = (1 - tradeoff) * (position.backbone + position.cost[:, None]) - tradeoff * position.quality
        continue_cost = np.minimum(continue_cost, leave.min(axis=0))
    return tradeoff * problem.full + lowest
