"""Frontier search: records + costs -> one configuration per trade-off. Arrays in, data out; no model.

    J(config; lambda) = lambda * (1 - quality / full quality) + (1 - lambda) * cost / full cost

The optimum on the samples searched is optimistic about others. ``regularise`` puts a price, in units of J, on
every enabled exit; "auto" lets held-out folds of the records choose the price, or one common threshold.
Where the full model's quality is 0, the first term is lambda times the difference in quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.config import ExitChoice, ExitConfig, Frontier
from offramp.cost import CostTable
from offramp.errors import InputError
from offramp.evaluate import check_match, evaluate, expected, full_quality
from offramp.lines import OFF, Ints, Problem
from offramp.methods import DRAFT, METHODS, Goals, Pool
from offramp.records import ExitRecords
from offramp.shrinkage import shrunk

DEFAULT_TRADEOFFS = tuple(round(1 - 0.5 * (1 - i / 100) ** 2, 6) for i in range(101))
"""From 0.5 to 1, denser towards 1, where much cost buys little quality and the interesting settings are."""

Progress = Callable[[int, int], None]
Report = Callable[[], None]
Exits = tuple[ExitChoice, ...]

_STEPS = {**METHODS, "draft": DRAFT}

_PRICES = (0.0, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
_FOLDS = 5
_FEWEST = 4 * _FOLDS  # with fewer samples held-out folds say nothing
_FOLD_TRADEOFFS = 13
_DEALS = 3  # one deal into folds moves mean J by 0.003 at N = 500, more than prices differ by
_DEALT = 2000
_NEAR = 1e-4  # of mean held-out J: smaller differences do not earn a more complex answer


def search(
    records: ExitRecords,
    costs: CostTable,
    *,
    tradeoffs: Iterable[float] | None = None,
    method: str = "exact",
    regularise: str | float | None = "auto",
    max_exits: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Frontier:
    """Find the configurations that minimise J, one for each trade-off.

    Args:
        records: P positions, C heads, N samples; not those the exits were trained on.
        costs: of the same P and C.
        tradeoffs: the lambda values in [0, 1]; near 1 buys quality, near 0 buys speed. Default: 101 values
            from 0.5 to 1, ``DEFAULT_TRADEOFFS``.
        method: "exact", or one of the reference methods "single-pass", "iterative", "same-threshold".
        regularise: None for the optimum on these very samples; a number is the price of each enabled exit in
            units of J; "auto" aims at unseen samples: quality is replaced by what leaving is expected to give
            (``offramp.shrinkage``; the figures in ``expected`` then are such expectations), and the price is
            chosen by cross-validation. Reference methods are left as published: neither.
        max_exits: at most so many enabled exits; 0 leaves the full model.
        seed: of the folds that "auto" holds out; nothing else is random.
        progress: called with (steps done, steps in all).

    Returns:
        The configurations none of which costs more and is no better than another; the full model is a
        candidate. ``by_tradeoff`` has one configuration per lambda, ``meta`` what made them.

    Raises:
        InputError: an argument is not as described, or records and costs do not match.
    """
    check_match(records, costs)
    lambdas = _check_tradeoffs(tradeoffs)
    price = _check_regularise(regularise)
    cap = _check_max_exits(max_exits, len(records.positions))
    _check_method(method)
    plan = Plan(method, price or 0.0, cap)
    held_out = _held_out(records.samples, seed) if price is None and method == "exact" else []
    total = len(held_out) + len(METHODS[method]) + 1
    report = _counter(progress, total)
    if price is None and method == "exact":
        plan = choose(records, costs, lambdas, plan, held_out, report)
        records = shrunk(records)
    [found] = solve(records, costs, [plan], lambdas, report)
    if progress:
        progress(total, total)
    meta = {
        "method": method,
        "regularise": "auto" if price is None else regularise and price,
        "chosen": {"method": plan.method, "price": plan.price},
        "expected": "shrunk" if price is None and method == "exact" else "as recorded",
        "max_exits": None if max_exits is None else cap,
        "samples": records.samples,
        "unit": costs.unit,
        "seed": seed,
    }
    return _frontier(records, costs, dict(zip(lambdas, found, strict=True)), meta)


def _frontier(
    records: ExitRecords, costs: CostTable, found: dict[float, Exits], meta: dict[str, Any]
) -> Frontier:
    figures = {exits: expected(records, costs, ExitConfig(exits)) for exits in {(), *found.values()}}
    by_tradeoff = {lam: ExitConfig(exits, lam, figures[exits]) for lam, exits in found.items()}
    return Frontier.of([ExitConfig((), expected=figures[()]), *by_tradeoff.values()], by_tradeoff, meta)


@dataclass(frozen=True)
class Plan:
    """How to search: the method, the price of an exit, the most exits."""

    method: str
    price: float
    cap: int


def solve(
    records: ExitRecords,
    costs: CostTable,
    plans: list[Plan],
    lambdas: list[float],
    report: Report | None = None,
) -> list[list[Exits]]:
    """The exits that minimise J plus prices on these records: for each plan, for each lambda.

    The plans differ only in price; they share what they find.
    """
    problem = Problem.of(records, costs)
    price = np.repeat([plan.price for plan in plans], len(lambdas))
    goals = Goals(np.tile(np.array(lambdas), len(plans)), price, plans[0].cap)
    pool = Pool(problem)
    for step in _STEPS[plans[0].method]:
        answer = step(problem, goals, pool)
        if report:
            report()
    picked = answer.tolist()
    exits = {i: _exits(problem, pool, i, records) for i in set(picked)}
    every = [exits[i] for i in picked]
    return [every[i * len(lambdas) : (i + 1) * len(lambdas)] for i in range(len(plans))]


def _exits(problem: Problem, pool: Pool, i: int, records: ExitRecords) -> Exits:
    found = _choices(problem, pool.head[i], pool.cut[i], records)
    common = float(pool.common[i])
    return found if math.isnan(common) else tuple(replace(choice, threshold=common) for choice in found)


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


def threshold_between(lower: np.float32, upper: np.float32) -> float:
    """A float32 threshold that ``upper`` passes and ``lower`` does not: the midpoint if there is one."""
    if not np.isfinite(lower):
        return float("-inf")
    middle = np.float32((float(lower) + float(upper)) / 2)
    return float(middle if lower <= middle < upper else lower)


# ------------------------------------------------------------------------------------------ regularisation


def choose(
    records: ExitRecords,
    costs: CostTable,
    lambdas: list[float],
    plan: Plan,
    held_out: list[npt.NDArray[np.bool_]],
    report: Report,
) -> Plan:
    """The price, or one common threshold, with the lowest mean J on samples held out.

    Among prices within ``_NEAR`` of the best the highest wins: fewer exits. Without folds it is the highest.
    """
    if not held_out:
        return replace(plan, price=_PRICES[-1])
    drafts = [replace(plan, method="draft", price=price) for price in _PRICES]
    common = replace(plan, method="same-threshold")
    some = _spread(lambdas, _FOLD_TRADEOFFS)
    scale = full_quality(records) or 1.0
    values = np.zeros(len(_PRICES) + 1)
    for mask in held_out:
        kept, held = shrunk(records.subset(~mask)), records.subset(mask)
        answers = solve(kept, costs, drafts, some) + solve(kept, costs, [common], some)
        values += [_mean_objective(held, costs, some, exits, scale) for exits in answers]
        report()
    values /= len(held_out)
    if values[-1] < values[:-1].min():
        return common
    return replace(plan, price=_PRICES[np.flatnonzero(values[:-1] <= values[:-1].min() + _NEAR)[-1]])


def _held_out(samples: int, seed: int) -> list[npt.NDArray[np.bool_]]:
    """(N,) masks of the samples each fold holds out; few samples are dealt several times, too few never."""
    if samples < _FEWEST:
        return []
    random = np.random.default_rng(seed)
    deals = min(max(_DEALT // samples, 1), _DEALS)
    dealt = [random.permutation(samples) % _FOLDS for _ in range(deals)]
    return [folds == fold for folds in dealt for fold in range(_FOLDS)]


def _spread(values: list[float], count: int) -> list[float]:
    """At most ``count`` of the distinct values, evenly spread in their order."""
    distinct = sorted(set(values))
    index = np.linspace(0, len(distinct) - 1, min(count, len(distinct))).round().astype(int)
    return [distinct[i] for i in index]


def _mean_objective(
    records: ExitRecords,
    costs: CostTable,
    lambdas: list[float],
    answers: list[Exits],
    scale: float,
) -> float:
    """Mean J over lambdas, each with its own answer; quality differences are over ``scale``."""
    full, figures = full_quality(records), {}
    for exits in set(answers):
        outcome = evaluate(records, costs, ExitConfig(exits))
        figures[exits] = (full - outcome.quality) / scale, outcome.relative_cost
    terms = [(lam, *figures[exits]) for lam, exits in zip(lambdas, answers, strict=True)]
    return float(np.mean([lam * drop + (1 - lam) * cost for lam, drop, cost in terms]))


# -------------------------------------------------------------------------------------------------- checks


def _counter(progress: Progress | None, total: int) -> Report:
    """Counts the steps done for ``progress``."""
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return report


def _check_tradeoffs(tradeoffs: Iterable[float] | None) -> list[float]:
    if tradeoffs is None:
        return list(DEFAULT_TRADEOFFS)
    try:
        lambdas = [float(value) for value in tradeoffs]
    except (TypeError, ValueError):
        raise InputError(
            f"search(tradeoffs=...): expected several numbers in [0, 1], got {tradeoffs!r}; "
            "give a list such as [0.8, 0.9]"
        ) from None
    wrong = [value for value in lambdas if not 0 <= value <= 1]  # NaN is neither
    if wrong or not lambdas:
        raise InputError(
            f"search(tradeoffs=...): expected at least one value, all in [0, 1], got {wrong or 'none'}; "
            "leave it out for the default sweep"
        )
    return lambdas


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise InputError(f"search(method={method!r}): unknown; choose one of {', '.join(METHODS)}")


def _check_regularise(value: str | float | None) -> float | None:
    """The price; None for "auto"."""
    if value is None:
        return 0.0
    if isinstance(value, str) and value == "auto":
        return None
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise InputError(
        f'search(regularise={value!r}): expected "auto", None or a price per exit of at least 0; '
        "it is in units of J, 0.001 is a moderate one"
    )


def _check_max_exits(value: int | None, positions: int) -> int:
    if value is None:
        return positions
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise InputError(
            f"search(max_exits={value!r}): expected a whole number of at least 0; leave it out for no limit"
        )
    return min(int(value), positions)
