"""What an exit should cost, or one threshold for all: folds of the records, held out, decide.

J on held-out samples is the only thing that counts, but folds are noisy judges: the usual price stands unless
another beats it by more than two standard errors of the differences between folds. One threshold for all
exits, the simplest choice, needs only one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from offramp.core import CostTable, ExitConfig, ExitRecords, evaluate, full_quality
from offramp.solver.candidates import CandidateSet
from offramp.solver.constructive import same_threshold
from offramp.solver.effort import EFFORT
from offramp.solver.pruning import PRICE_GRID, SELECTION_BIAS
from offramp.solver.solve import Exits, SearchPlan, exits_of, fewer, quick_candidates, spread

_USUAL = PRICE_GRID.index(SELECTION_BIAS)
_DOUBT = np.array([*(2.0 for _ in PRICE_GRID), 1.0])
"""Standard errors by which the prices, and one threshold for all, must beat the usual price."""

Masks = list[npt.NDArray[np.bool_]]


def choose_price(
    records: ExitRecords,
    costs: CostTable,
    lambdas: list[float],
    plan: SearchPlan,
    report: Callable[[], None],
) -> SearchPlan:
    """The plan with the price, or the common threshold, that holds up best on samples held out.

    With too few samples for folds it is the highest price.
    """
    samples = records.samples
    if samples > EFFORT.coarse_samples:
        records = fewer(records)
    held_out = folds(records.samples, plan.seed)
    if not held_out:
        return replace(plan, price=PRICE_GRID[-1] / samples, parsimonious=True)
    distinct = sorted(set(lambdas))
    some = [distinct[i] for i in spread(len(distinct), EFFORT.fold_objectives)]
    scale = full_quality(records) or 1.0
    values = []
    for mask in held_out:
        kept, held = records.subset(~mask), records.subset(mask)
        answers = _answers(kept, costs, plan, some)
        values.append([mean_objective(held, costs, some, exits, scale) for exits in answers])
        report()
    chosen = best_of(np.array(values), _USUAL, _DOUBT)
    if chosen == len(PRICE_GRID):
        return replace(plan, method="same-threshold", parsimonious=True)
    return replace(plan, price=PRICE_GRID[chosen] / samples, parsimonious=True)


def best_of(values: npt.NDArray[np.float64], usual: int, doubt: npt.NDArray[np.float64]) -> int:
    """The column of the lowest mean; the usual one unless that beats it clearly.

    ``values`` (F, K) are J of K choices on F folds, ``doubt`` (K,) the standard errors of the mean of F
    paired differences that are clear enough.

    >>> best_of(np.array([[2.0, 1.0], [2.0, 1.1]]), usual=0, doubt=np.ones(2))
    1
    """
    difference = values - values[:, usual : usual + 1]
    mean = difference.mean(axis=0)
    error = difference.std(axis=0, ddof=1) / np.sqrt(len(values))
    clear = np.where(mean < -doubt * error, mean, 0.0)
    return int(clear.argmin()) if clear.min() < 0 else usual


def _answers(
    records: ExitRecords, costs: CostTable, plan: SearchPlan, lambdas: list[float]
) -> list[list[Exits]]:
    """The exits for each lambda under each price and, last, one common threshold."""
    candidates, objectives = quick_candidates(records, costs, plan, lambdas)
    common = CandidateSet(candidates.problem)
    prices = [objectives.priced(price / records.samples) for price in PRICE_GRID]
    found = [(candidates, candidates.best(priced)[0]) for priced in prices]
    found.append((common, same_threshold(objectives, common)))
    return [[exits_of(known, i) for i in picks.tolist()] for known, picks in found]


def folds(samples: int, seed: int) -> Masks:
    """(N,) masks of the samples each fold holds out; few samples are divided several times, too few never."""
    if samples < 4 * EFFORT.folds:  # held-out folds would say nothing
        return []
    random = np.random.default_rng(seed)
    repeats = min(max(EFFORT.repeated_samples // samples, 1), EFFORT.repeats)
    fold_of = [random.permutation(samples) % EFFORT.folds for _ in range(repeats)]
    return [numbers == fold for numbers in fold_of for fold in range(EFFORT.folds)]


def rounds(samples: int, seed: int) -> int:
    """How often ``choose_price`` reports."""
    return len(folds(min(samples, EFFORT.coarse_samples), seed))


def mean_objective(
    records: ExitRecords, costs: CostTable, lambdas: list[float], answers: list[Exits], scale: float
) -> float:
    """Mean J over lambdas, each with its own answer; quality differences are over ``scale``."""
    full, figures = full_quality(records), {}
    for exits in set(answers):
        outcome = evaluate(records, costs, ExitConfig(exits))
        figures[exits] = (full - outcome.quality) / scale, outcome.relative_cost
    terms = [(lam, *figures[exits]) for lam, exits in zip(lambdas, answers, strict=True)]
    return float(np.mean([lam * drop + (1 - lam) * cost for lam, drop, cost in terms]))
