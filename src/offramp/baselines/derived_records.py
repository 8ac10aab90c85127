"""Records whose confidence is another rule's: entropy of the outputs, exits in a row that agree."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from offramp.core import ExitRecords
from offramp.errors import InputError

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
