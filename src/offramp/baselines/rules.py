"""Rules with one knob: one threshold everywhere, one exit alone, entropy, patience. Each solved exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from offramp.baselines.derived_records import _kinds, _kinds_and_best, entropy_records, patience_records
from offramp.baselines.published import Progress
from offramp.baselines.stepwise import SAME, Exits, Floats, Goal, choices
from offramp.core import (
    CostTable,
    ExitConfig,
    ExitRecords,
    check_match,
    check_tradeoffs,
    expected,
    full_quality,
)
from offramp.solver import between, curve

Answers = dict[float, ExitConfig]
"""One configuration for each trade-off, with its figures on the records it was chosen on."""


Lineup = dict[int, int]
"""Which head (index) is enabled at which positions (index, rising)."""


Lineups = Callable[[ExitRecords], list[Lineup]]


def same_threshold(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """One threshold for all exits, the best of all there are.

    Enabled is one kind of head wherever it exists, or at each position the head of the best quality.

    Args:
        records: P positions, C heads, N samples to choose on.
        costs: of the same P and C.
        tradeoffs: the lambda values in [0, 1].

    Raises:
        InputError: a trade-off is outside [0, 1], or records and costs do not match.
    """
    return _best_common(records, costs, tradeoffs, _kinds_and_best)


def single_exit(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """One exit only: of all positions, heads and thresholds the best.

    Arguments as for ``same_threshold``.

    Raises:
        InputError: as ``same_threshold``.
    """
    return _best_common(records, costs, tradeoffs, _singles)


def entropy_thresholds(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """``same_threshold`` on the entropy of each exit's probabilities; to evaluate on ``entropy_records``.

    BranchyNet leaves where the entropy is below a threshold (arXiv 1709.01686).

    Arguments as for ``same_threshold``.

    Raises:
        InputError: as ``same_threshold`` and ``entropy_records``.
    """
    return same_threshold(entropy_records(records), costs, tradeoffs)


def patience(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    *,
    predictions: npt.ArrayLike | None = None,
) -> Answers:
    """Leave when k exits in a row agree, for the best k and kind of head; evaluate on ``patience_records``.

    All exits of the kind are enabled: each has to answer for the next to agree (arXiv
    2006.04152, whose patience is k - 1). The threshold lies below k.

    Arguments as for ``same_threshold`` and ``patience_records``.

    Raises:
        InputError: as these two.
    """
    derived = patience_records(records, predictions)
    return _best_common(derived, costs, tradeoffs, _kinds)


def _singles(records: ExitRecords) -> list[Lineup]:
    """Each exit on its own."""
    return [{p: c} for p, c in np.argwhere(records.exists).tolist()]


def _best_common(
    records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float], lineups: Lineups
) -> Answers:
    """For each trade-off the line-up and the common threshold with the lowest J."""
    lambdas = _check(records, costs, tradeoffs)
    best: dict[float, tuple[float, Exits]] = {lam: (1 - lam - SAME, ()) for lam in lambdas}
    for lineup in lineups(records):
        values, drop, cost = _curve(records, costs, lineup)
        for lam in lambdas if drop.size else ():
            objective = lam * drop + (1 - lam) * cost
            i = int(objective.argmin())
            if objective[i] < best[lam][0]:
                setting = {p: (c, between(values[i], values[i + 1])) for p, c in lineup.items()}
                best[lam] = float(objective[i]), choices(records, setting)
    return _answers(records, costs, {lam: found for lam, (_, found) in best.items()})


def _curve(
    records: ExitRecords, costs: CostTable, lineup: Lineup
) -> tuple[npt.NDArray[np.float32], Floats, Floats]:
    """Thresholds (T + 1,), quality lost (T,) and cost (T,), both over the full model's: ``common.curve``."""
    places, heads = np.array(list(lineup)), np.array(list(lineup.values()))
    quality = np.vstack([records.quality[places, heads], records.final_quality]).astype(np.float64)
    paid = np.cumsum(costs.heads[places, heads])
    cost = np.append(costs.backbone[places], costs.full) + np.append(paid, paid[-1])
    values, reached, spent = curve(records.confidence[places, heads], quality, cost)
    full = full_quality(records)
    return values, (full - reached) / (full or 1.0), spent / costs.full


def _each(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    solve: Callable[[Goal], Exits],
    progress: Progress | None = None,
) -> Answers:
    lambdas, found = _check(records, costs, tradeoffs), {}
    for done, lam in enumerate(lambdas, start=1):
        found[lam] = solve(Goal.of(records, costs, lam))
        if progress:
            progress(done, len(lambdas))
    return _answers(records, costs, found)


def _answers(records: ExitRecords, costs: CostTable, found: dict[float, Exits]) -> Answers:
    figures = {chosen: expected(records, costs, ExitConfig(chosen)) for chosen in set(found.values())}
    return {lam: ExitConfig(chosen, lam, figures[chosen]) for lam, chosen in found.items()}


def _check(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> list[float]:
    """The distinct trade-offs, in their order."""
    check_match(records, costs)
    return list(dict.fromkeys(check_tradeoffs(tradeoffs, "tradeoffs")))
