"""Rules with one knob: one threshold everywhere, one exit alone, entropy, patience. Each solved exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from offramp.baselines.stepwise import SAME, Answers, Exits, choices, distinct_tradeoffs, with_figures
from offramp.core import CostTable, ExitRecords, full_quality
from offramp.errors import InputError
from offramp.solver import curve, threshold_between

HeadsByPosition = dict[int, int]
"""Which head (index) is enabled at which positions (index, rising)."""


def entropy_records(records: ExitRecords) -> ExitRecords:
    """The same records with the confidence 1 - H / log K, H the entropy of the softmax of K outputs.

    Raises:
        InputError: the records hold no outputs, or one output per exit.
    """
    logits = _logits(records, "entropy_records")
    confidence = np.full(records.confidence.shape, np.nan, np.float32)
    for p, c in np.argwhere(records.exists).tolist():
        outputs = logits[p, c].astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite outputs give NaN
            shifted = outputs - outputs.max(axis=1, keepdims=True)
            weight = np.exp(shifted)
            total = weight.sum(axis=1)
            entropy = np.log(total) - (weight * shifted).sum(axis=1) / total
        confidence[p, c] = np.clip(1 - entropy / math.log(outputs.shape[1]), 0, 1)
    return replace(records, confidence=confidence)


def patience_records(records: ExitRecords, predictions: npt.ArrayLike | None = None) -> ExitRecords:
    """The same records with the confidence "so many exits of this kind in a row agree, this one included".

    It (P, C, N) counts 1, 2, ...; -inf where it was not finite: such an answer neither leaves nor agrees. As
    ``predictions`` (P, C, N) count the classes that exits answer, by default from the outputs in the records.

    Raises:
        InputError: neither predictions nor outputs, or predictions of another shape.
    """
    if predictions is None:
        classes = _logits(records, "patience_records", " or give predictions (P, C, N)").argmax(axis=3)
    else:
        classes = np.asarray(predictions)
    if classes.shape != records.confidence.shape:
        raise InputError(
            f"patience_records(predictions=...): expected shape {records.confidence.shape}, "
            f"got {classes.shape}; give one class for each position, head and sample"
        )
    count = np.full(records.confidence.shape, -np.inf, np.float32)
    for heads in kinds(records):
        before, run = next(iter(heads)), np.zeros(records.samples, np.float32)
        for p, c in heads.items():
            agrees = np.isfinite(run) & (classes[p, c] == classes[before, c])
            run = np.where(agrees, run, 0) + np.float32(1)
            run = np.where(np.isfinite(records.confidence[p, c]), run, np.float32(-np.inf))
            count[p, c], before = run, p
    return replace(records, confidence=count)


def _logits(records: ExitRecords, function: str, otherwise: str = "") -> npt.NDArray[np.float32]:
    if records.logits is None or records.logits.shape[-1] < 2:
        got = "none" if records.logits is None else "a single one"
        raise InputError(
            f"{function}: expected records with at least two outputs per exit, got {got}; "
            f"record the outputs of a classifier with keep_logits=True{otherwise}"
        )
    return records.logits


def kinds(records: ExitRecords) -> list[HeadsByPosition]:
    """Each kind of head wherever it exists."""
    found = [np.flatnonzero(there).tolist() for there in records.exists.T]
    return [dict.fromkeys(places, c) for c, places in enumerate(found) if places]


def kinds_and_best(records: ExitRecords) -> list[HeadsByPosition]:
    """Each kind of head wherever it exists, and at each position the head of the best mean quality."""
    mean = np.where(records.exists, records.quality.mean(axis=2, dtype=np.float64), -1.0)
    places = np.flatnonzero(records.exists.any(axis=1)).tolist()
    return [*kinds(records), *([{p: int(mean[p].argmax()) for p in places}] if places else [])]


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
