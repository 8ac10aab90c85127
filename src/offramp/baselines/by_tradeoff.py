"""What every baseline gives: one configuration for each trade-off, with its figures on the records used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from offramp._progress import progress_bar
from offramp.baselines.stepwise import Exits, Objective
from offramp.core import CostTable, ExitConfig, ExitRecords, check_match, check_tradeoffs, expected

Answers = dict[float, ExitConfig]
"""One configuration for each trade-off, with its figures on the records it was chosen on."""


def per_tradeoff(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    solve: Callable[[Objective], Exits],
    progress: bool | None = False,
) -> Answers:
    """Solve each trade-off by itself."""
    lambdas, found = distinct_tradeoffs(records, costs, tradeoffs), {}
    with progress_bar("Searching", len(lambdas), progress) as advance:
        for done, lam in enumerate(lambdas, start=1):
            found[lam] = solve(Objective(records, costs, lam))
            advance(done)
    return with_figures(records, costs, found)


def with_figures(records: ExitRecords, costs: CostTable, found: dict[float, Exits]) -> Answers:
    """Exits by trade-off as configurations with their figures on the records."""
    figures = {chosen: expected(records, costs, ExitConfig(chosen)) for chosen in set(found.values())}
    return {lam: ExitConfig(chosen, lam, figures[chosen]) for lam, chosen in found.items()}


def distinct_tradeoffs(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> list[float]:
    """The distinct trade-offs, in their order."""
    check_match(records, costs)
    return list(dict.fromkeys(check_tradeoffs(tradeoffs, "tradeoffs")))
