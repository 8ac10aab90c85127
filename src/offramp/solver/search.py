"""Frontier search: records + costs -> one configuration per trade-off. Arrays in, data out; no model.

    J(config; lambda) = lambda * (1 - quality / full quality) + (1 - lambda) * cost / full cost

The optimum on the samples searched is optimistic about others: it enables nearly every exit, for gains that
are selection bias. ``regularise="auto"`` puts a price on exits, keeps the significant ones and averages
their thresholds (``pruning``); the price is checked on held-out folds (``cross_validation``).
Where the full model's quality is 0, the first term is lambda times the difference in quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

from offramp._progress import progress_bar
from offramp.core import CostTable, ExitConfig, ExitRecords, Frontier, check_match, check_tradeoffs, expected
from offramp.errors import InputError
from offramp.solver.cross_validation import choose_price, rounds
from offramp.solver.fill import fill
from offramp.solver.solve import METHODS, Exits, Report, SearchPlan, solve

DEFAULT_TRADEOFFS = tuple(round(1 - 0.5 * (1 - i / 100) ** 2, 6) for i in range(101))
"""From 0.5 to 1, denser towards 1, where much cost buys little quality and the interesting settings are."""


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
    """Find the configurations that minimise J, one for each trade-off.

    Args:
        records: P positions, C heads, N samples; not those the exits were trained on.
        costs: of the same P and C.
        tradeoffs: the lambda values in [0, 1]; near 1 buys quality, near 0 buys speed. Default: 101 values
            from 0.5 to 1, ``DEFAULT_TRADEOFFS``.
        method: "exact", or one of the reference methods "single-pass", "iterative", "same-threshold".
        regularise: None for the optimum on these very samples; a number is the price of each enabled exit in
            units of J; "auto" aims at unseen samples: a price of about 2 / N, or one common threshold for all
            exits where cross-validation finds that clearly better; then only exits whose absence would cost
            more than one standard error, at thresholds averaged over resamples. Reference methods are left as
            published: none of it.
        max_exits: at most so many enabled exits; 0 leaves the full model.
        step: "exact" also finds configurations between those of the trade-offs, so that costs on the frontier
            rise by at most this share; where more cost buys no more quality that the samples can tell, they
            are kept aside (``Frontier.between``) for ``at(max_cost=...)``. None leaves them out.
        seed: of the folds and resamples of "auto"; nothing else is random.
        workers: threads; the answer is the same for any number.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        The configurations none of which costs more and is no better than another; the full model is a
        candidate. ``by_tradeoff`` has one configuration per lambda, ``meta`` what made them: "proved" is true
        where every configuration was tried (small problems, without "auto").

    Raises:
        InputError: an argument is not as described, or records and costs do not match.
    """
    check_match(records, costs)
    wanted = DEFAULT_TRADEOFFS if tradeoffs is None else tradeoffs
    lambdas = check_tradeoffs(wanted, "search(tradeoffs=...)")
    price = _check_regularise(regularise)
    cap = _check_max_exits(max_exits, len(records.positions))
    _check_method(method)
    auto = price is None and method == "exact"
    plan = SearchPlan(method=method, price=price or 0.0, cap=cap, seed=seed, workers=_check_workers(workers))
    step = _check_step(step)
    step = step if method == "exact" else None
    total = (rounds(records.samples, seed) if auto else 0) + 3
    with progress_bar("Searching configurations", total, progress) as advance:
        report = _counter(advance)
        if auto:
            plan = choose_price(records, costs, lambdas, plan, report)
        solved = solve(records, costs, plan, lambdas, report)
        filled = () if step is None else fill(solved.candidates, solved.picks, step, cap)
        more = tuple([solved.exits(i) for i in part.tolist()] for part in filled) or ([], [])
        advance(total)
    meta = {
        "method": method,
        "regularise": "auto" if price is None else regularise and price,
        "chosen": {"method": plan.method, "price": plan.price},
        "max_exits": None if max_exits is None else cap,
        "step": step,
        "proved": solved.candidates.complete,
        "samples": records.samples,
        "unit": costs.unit,
        "seed": seed,
    }
    found = {lam: solved.exits(i) for lam, i in zip(lambdas, solved.picks.tolist(), strict=True)}
    return _frontier(records, costs, found, more, meta)


def _frontier(
    records: ExitRecords,
    costs: CostTable,
    found: dict[float, Exits],
    more: tuple[list[Exits], ...],
    meta: dict[str, Any],
) -> Frontier:
    listed, ties = more
    every: set[Exits] = {(), *found.values(), *listed, *ties}
    figures = {exits: expected(records, costs, ExitConfig(exits)) for exits in every}
    by_tradeoff = {lam: ExitConfig(exits, lam, figures[exits]) for lam, exits in found.items()}
    others = [ExitConfig(exits, expected=figures[exits]) for exits in ((), *listed)]
    between = [ExitConfig(exits, expected=figures[exits]) for exits in ties]
    return Frontier.of([*by_tradeoff.values(), *others], by_tradeoff, meta, between)


def _counter(advance: Callable[[int], None]) -> Report:
    """Counts the steps done."""
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        advance(done)

    return report


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


def _check_step(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, bool) and 1e-4 <= value <= 1:  # NaN is not
        return float(value)
    raise InputError(
        f"search(step={value!r}): expected a share from 0.0001 to 1, 0.01 for one per cent, or None for the "
        "configurations of the trade-offs alone"
    )


def _check_workers(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"search(workers={value!r}): expected a number of threads, at least 1")
    return int(value)


def _check_max_exits(value: int | None, positions: int) -> int:
    if value is None:
        return positions
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise InputError(
            f"search(max_exits={value!r}): expected a whole number of at least 0; leave it out for no limit"
        )
    return min(int(value), positions)
