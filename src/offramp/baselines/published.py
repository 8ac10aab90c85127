"""Searches as they were published: a greedy grid of thresholds, and bounded Brent search exit by exit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from offramp.baselines.stepwise import Answers, brent, front_to_back, iterate, per_tradeoff, simulated, summed
from offramp.core import CostTable, ExitRecords, is_count
from offramp.errors import InputError

GRID = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
"""The nine thresholds that earlyon 0.3 tries on a softmax confidence."""


def greedy_grid(
    records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float], *, grid: Sequence[float] = GRID
) -> Answers:
    """Positions front to back; at each the best head and threshold of a grid, or none; never revisited.

    While a position is decided, all later exits are off. Takes records (P, C, N) to choose on, costs of the
    same P and C, lambda values in [0, 1], and as ``grid`` the thresholds to try.

    Raises:
        InputError: a trade-off is outside [0, 1], records and costs do not match, or the grid is empty or
            holds something else than numbers.
    """
    try:
        values = [float(np.float32(value)) for value in grid]
    except (TypeError, ValueError):
        values = []
    if not values or any(map(math.isnan, values)):
        raise InputError(
            f"greedy_grid(grid=...): expected at least one threshold, all numbers, got {grid!r}; "
            "leave it out for the usual nine"
        )
    return per_tradeoff(
        records,
        costs,
        tradeoffs,
        lambda objective: front_to_back(objective, lambda curve: max(values, key=curve.improvement)),
    )


def brent_single_pass(
    records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float], *, progress: bool | None = None
) -> Answers:
    """Positions front to back, each threshold by bounded Brent search; never revisited.

    The one-pass search of DyCE (arXiv 2403.01695): every head is tried, with all later exits off. Takes
    records (P, C, N) to choose on, costs of the same P and C, and lambda values in [0, 1]; ``progress=None``
    shows a bar when standard error is a terminal.

    Raises:
        InputError: a trade-off is outside [0, 1], or records and costs do not match.
        MissingExtraError: scipy is not installed.
    """
    pick = brent()
    return per_tradeoff(records, costs, tradeoffs, lambda objective: front_to_back(objective, pick), progress)


def brent_iterative(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    *,
    rounds: int = 1000,
    incremental: bool = False,
    progress: bool | None = None,
) -> Answers:
    """Of all single changes the best one, again and again, until none helps; thresholds by Brent search.

    A round tries every head at every position, each with its own bounded Brent search, and switching each
    exit off; about 30 thresholds a search, P * C searches a round, some ten to thirty rounds, at most
    ``rounds``, where the released code stops at 1000. Takes records (P, C, N) to choose on, costs of the same
    P and C, and lambda values in [0, 1]; ``progress=None`` shows a bar when standard error is a terminal.

    Like the released code this simulates the whole configuration at each threshold, in time P * N.
    ``incremental`` computes what a sample meets before and after the position once for each round: the same
    searches up to rounding, in time N for each threshold.

    Raises:
        InputError: a trade-off is outside [0, 1], records and costs do not match, or ``rounds`` is not a
            whole number of at least 0.
        MissingExtraError: scipy is not installed.
    """
    if not is_count(rounds):
        raise InputError(
            f"brent_iterative(rounds={rounds!r}): expected a whole number of at least 0; "
            "leave it out for 1000"
        )
    pick, lines = brent(), summed if incremental else simulated
    return per_tradeoff(
        records, costs, tradeoffs, lambda objective: iterate(objective, pick, int(rounds), lines), progress
    )
