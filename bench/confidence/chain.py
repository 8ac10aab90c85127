"""Answers and confidences that look back at the exits passed before: what a chain of enabled exits could do.

    agreement   the learned confidence with more features: whether the last exits passed agree, and their
                confidence in this answer
    ensemble    the answer and its largest probability are those of a running mixture of log-probabilities,
                whose two weights are the best of a grid for each exit (negative log-likelihood)
    ensemble, learned   the same answers, with a learned confidence

All is fitted on the samples to fit on, for one chain of exits, in order. Arrays: (N samples, K outputs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp import ExitRecords
from offramp.tasks.fitted_confidence import Learned, Temperature, log_odds, logistic, shown

Exit = tuple[int, int]
Figures = dict[Exit, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""(confidence, quality), each (N,), by exit."""

LOOK_BACK = 2  # exits passed
STILL, PENALTY = 0.3, 50.0  # smallest standard deviation, ridge: those of the library's learned confidence
OLD, NEW = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8), (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LINKED = ("agreement", "ensemble", "ensemble, learned")


def labels_of(records: ExitRecords) -> npt.NDArray[np.int64]:
    """Labels (N,), recovered from the answers of exits that are right; -1 where none is."""
    found = np.full(records.samples, -1)
    assert records.logits is not None
    for p, c in np.argwhere(records.exists):
        right = records.quality[p, c] > 0.5
        found[right] = records.logits[p, c][right].argmax(1)
    return found


def chained(records: ExitRecords, chain: Sequence[Exit], figures: Figures | None = None) -> ExitRecords:
    """Records with the exits of a chain alone, and their figures replaced."""
    exists = np.zeros_like(records.exists)
    confidence, quality = records.confidence.copy(), records.quality.copy()
    for exit_ in chain:
        exists[exit_] = True
        if figures is not None:
            confidence[exit_], quality[exit_] = figures[exit_]
    return replace(records, exists=exists, confidence=confidence, quality=quality, logits=None)


def linked(kind: str, chain: Sequence[Exit], parts: Sequence[ExitRecords]) -> list[Figures]:
    """Figures of every part, the first of which is the one to fit on."""
    logits = {exit_: [_outputs(part, exit_) for part in parts] for exit_ in chain}
    scales = {}
    for exit_ in chain:
        temperature = Temperature(logits[exit_][0].shape[1])
        temperature.fit(logits[exit_][0], torch.from_numpy(parts[0].quality[exit_]))
        scales[exit_] = float(temperature.scale)
    if kind == "agreement":
        return _agreement(chain, parts, logits, scales)
    return _ensemble(chain, parts, logits, scales, learned=kind == "ensemble, learned")


def _outputs(part: ExitRecords, exit_: Exit) -> Tensor:
    assert part.logits is not None
    return torch.from_numpy(part.logits[exit_])


def _agreement(
    chain: Sequence[Exit],
    parts: Sequence[ExitRecords],
    logits: dict[Exit, list[Tensor]],
    scales: dict[Exit, float],
) -> list[Figures]:
    found: list[Figures] = [{} for _ in parts]
    for j, exit_ in enumerate(chain):
        before = chain[max(0, j - LOOK_BACK) : j]
        seen = [
            _looking_back(logits[exit_][i], [logits[e][i] for e in before], scales[exit_])
            for i in range(len(parts))
        ]
        mean, std = seen[0].mean(0), seen[0].std(0).clamp(min=STILL)
        free = torch.zeros(seen[0].shape[1], dtype=torch.bool)
        free[0] = True
        quality = torch.from_numpy(parts[0].quality[exit_]).double()
        weights = logistic((seen[0] - mean) / std, quality, PENALTY, free)
        for i, part in enumerate(parts):
            confidence = (((seen[i] - mean) / std) @ weights[:-1] + weights[-1]).sigmoid()
            found[i][exit_] = confidence.float().numpy(), part.quality[exit_]
    return found


def _looking_back(logits: Tensor, before: Sequence[Tensor], scale: float) -> Tensor:
    """(N, F) double: features of a learned confidence, and of each exit before its view of this answer."""
    answer = logits.argmax(1, keepdim=True)
    parts = [log_odds(logits * scale).unsqueeze(1), shown(logits)]
    for other in before:
        logs = other.log_softmax(1).clamp(min=-20)
        same = (other.argmax(1, keepdim=True) == answer).float()
        parts += [same, logs.gather(1, answer), logs.amax(1, keepdim=True)]
    return torch.cat(parts, 1).double()


def _ensemble(
    chain: Sequence[Exit],
    parts: Sequence[ExitRecords],
    logits: dict[Exit, list[Tensor]],
    scales: dict[Exit, float],
    learned: bool,
) -> list[Figures]:
    found: list[Figures] = [{} for _ in parts]
    labels = [labels_of(part) for part in parts]
    known, wanted = torch.from_numpy(labels[0] >= 0), torch.from_numpy(labels[0])
    state: list[Tensor] = []
    for exit_ in chain:
        own = [(z * scales[exit_]).log_softmax(1) for z in logits[exit_]]
        if state:
            losses = {
                (a, b): float(F.cross_entropy((a * state[0] + b * own[0])[known], wanted[known]))
                for a in OLD
                for b in NEW
            }
            a, b = min(losses, key=lambda pair: losses[pair])
            state = [(a * old + b * new).log_softmax(1) for old, new in zip(state, own, strict=True)]
        else:
            state = own
        right = [(s.argmax(1).numpy() == y).astype(np.float32) for s, y in zip(state, labels, strict=True)]
        calibrator = Learned(state[0].shape[1])
        if learned:
            calibrator.fit(state[0], torch.from_numpy(right[0]))
        for i in range(len(parts)):
            confidence = calibrator(state[i]) if learned else state[i].exp().amax(1)
            found[i][exit_] = confidence.numpy(), right[i]
    return found
