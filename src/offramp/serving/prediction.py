"""One answer, in the words of the task: a label with its probability, labels, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.core import printable

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """The answer to one sample.

    Args:
        label: the name of the class, or its index where the class has none; a tuple of names for several
            labels; the number or numbers themselves for other tasks.
        probability: of the label, by the model's softmax or sigmoid, uncalibrated; None for tasks without.
        position: where the sample left: the name of a position, or "output" for the full model's answer.
        confidence: of the exit taken, as the thresholds compare it.
        outputs: (K,) what the network gave.
    """

    label: Any
    probability: float | None
    position: str
    confidence: float
    outputs: Array = field(repr=False, compare=False)

    def __str__(self) -> str:
        share = "" if self.probability is None else f" {self.probability:.1%}"
        return f"{printable(self.label)}{share}, from {printable(self.position)}"


def label_of(
    task: str, outputs: Array, names: Mapping[int, str], activation: str | None = None
) -> tuple[Any, float | None]:
    """(label, its probability or None) of one sample's outputs (K,).

    ``activation`` is what the model applied to its logits already: "softmax", "log_softmax" or "sigmoid".
    """
    if activation == "log_softmax":
        outputs = np.exp(outputs.astype(np.float64))
    if task == "classification":
        shares = _softmax(outputs) if activation is None else outputs
        best = int(shares.argmax())
        return names.get(best, best), float(shares[best])
    if task.startswith("multi-label"):
        shares = _sigmoid(outputs) if activation is None else outputs
        chosen = np.flatnonzero(shares > 0.5)
        return tuple(names.get(int(i), int(i)) for i in chosen), float(np.maximum(shares, 1 - shares).prod())
    if task == "binary":
        share = float((_sigmoid(outputs) if activation is None else outputs).reshape(-1)[0])
        best = int(share > 0.5)
        return names.get(best, best), max(share, 1 - share)
    return outputs.tolist() if outputs.size != 1 else float(outputs.reshape(-1)[0]), None


def _sigmoid(outputs: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(outputs.astype(np.float64), -500, 500))))


def _softmax(outputs: Array) -> Array:
    """Probabilities (K,); outputs that are probabilities already stay as they are."""
    values = outputs.astype(np.float64)
    if not ((values >= 0).all() and abs(values.sum() - 1) < 1e-3):
        values = np.exp(values - values.max())
    return np.asarray(values / values.sum())
