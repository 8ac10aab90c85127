"""Rules with one knob: one threshold everywhere, one exit alone, entropy, patience. Each solved exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from offramp.baselines.derived_records import (
    HeadsByPosition,
    entropy_records,
    kinds,
    kinds_and_best,
    patience_records,
)
from offramp.baselines.stepwise import SAME, Answers, Exits, choices, distinct_tradeoffs, with_figures
from offramp.core import CostTable, ExitRecords, full_quality
from offramp.solver import curve, threshold_between


def same_threshold(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """One threshold for all exits, the best of all there are.

    Enabled is one kind of head wherever it exists, or at each position the head of the best quality. Takes
    records (P, C, N) to choose on, costs of the same P and C, and lambda values in [0, 1].

    Raises:
        InputError: a trade-off is outside [0, 1], or records and costs do not match.
    """
    return _best_common(records, costs, tradeoffs, kinds_and_best)


def single_exit(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """One exit only: of all positions, heads and thresholds the best.

    Takes records (P, C, N) to choose on, costs of the same P and C, and lambda values in [0, 1].

    Raises:
        InputError: a trade-off is outside [0, 1], or records and costs do not match.
    """
    return _best_common(
        records, costs, tradeoffs, lambda known: [{p: c} for p, c in np.argwhere(known.exists).tolist()]
    )


def entropy_thresholds(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """``same_threshold`` on the entropy of each exit's probabilities; to evaluate on ``entropy_records``.

    BranchyNet leaves where the entropy is below a threshold (arXiv 1709.01686). Takes records (P, C, N) with
    outputs, costs of the same P and C, and lambda values in [0, 1].

    Raises:
        InputError: a trade-off is outside [0, 1], records and costs do not match, or the records hold no
            outputs or one output per exit.
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

    All exits of the kind are enabled: each has to answer for the next to agree (arXiv 2006.04152, whose
    patience is k - 1). The threshold lies below k. Takes records (P, C, N) to choose on, costs of the same P
    and C, lambda values in [0, 1], and as ``predictions`` (P, C, N) the class that each exit answers; by
    default that is from the outputs in the records.

    Raises:
        InputError: a trade-off is outside [0, 1], records and costs do not match, or neither predictions nor
            outputs are given in the right shape.
    """
    return _best_common(patience_records(records, predictions), costs, tradeoffs, kinds)


def _best_common(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    candidates: Callable[[ExitRecords], list[HeadsByPosition]],
) -> Answers:
    """For each trade-off the heads by position and the common threshold with the lowest J."""
    lambdas, full = distinct_tradeoffs(records, costs, tradeoffs), full_quality(records)
    best: dict[float, tuple[float, Exits]] = {lam: (1 - lam - SAME, ()) for lam in lambdas}
    for chosen in candidates(records):
        places, heads = np.array(list(chosen)), np.array(list(chosen.values()))
        quality = np.vstack([records.quality[places, heads], records.final_quality]).astype(np.float64)
        paid = np.cumsum(costs.heads[places, heads])
        cost = np.append(costs.backbone[places], costs.full) + np.append(paid, paid[-1])
        values, reached, spent = curve(records.confidence[places, heads], quality, cost)
        for lam in lambdas if spent.size else ():
            objective = lam * ((full - reached) / (full or 1.0)) + (1 - lam) * (spent / costs.full)
            i = int(objective.argmin())
            if objective[i] < best[lam][0]:
                setting = {p: (c, threshold_between(values[i], values[i + 1])) for p, c in chosen.items()}
                best[lam] = float(objective[i]), choices(records, setting)
    return with_figures(records, costs, {lam: exits for lam, (_, exits) in best.items()})
