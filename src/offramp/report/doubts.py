"""Exits that beat the full model by more than noise: a sign that it is not given what it was trained on.

Heads learn from the samples as they come, whatever was done to them; the model does not. So wrong
preprocessing, or labels in another order than the model's outputs, shows as exits that are better than it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offramp.core import ExitRecords, counted, percent, short

_LEVEL = 0.01
"""Probability of a question where there is none to ask, over all exits together."""


@dataclass(frozen=True)
class Doubt:
    """The exit that beats the full model by most: mean qualities, and the p-value of all exits together."""

    position: str
    head: str
    quality: float
    full: float
    p_value: float
    better: int

    def __str__(self) -> str:
        p_value = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.1g}"
        more = f", and {counted(self.better - 1, 'other exit')} too" if self.better > 1 else ""
        return (
            f"exit {short(self.head)} at {short(self.position, 40)} is better than the full model "
            f"({percent(self.quality)} against {percent(self.full)}, {p_value}){more}: do the "
            "preprocessing and the order of the classes fit the model?"
        )


def doubt_about(records: ExitRecords) -> Doubt | None:
    """The exit that beats the full model by most, if one does by more than noise; None where none does.

    Exact one-sided sign test of the paired qualities (N,), or of their means by group; Bonferroni over exits.
    """
    exits = np.argwhere(records.exists)
    means = records.quality.mean(2)
    gains = {
        (p, c): float(means[p, c] - records.final_quality.mean())
        for p, c in exits
        if means[p, c] > records.final_quality.mean()
    }
    tested = {
        at: len(exits) * sign_test(_differences(records, *at)) for at in sorted(gains, key=gains.__getitem__)
    }
    certain = [at for at, p_value in tested.items() if p_value <= _LEVEL]
    if not certain:
        return None
    p, c = certain[-1]
    return Doubt(
        position=records.positions[p],
        head=records.heads[c],
        quality=float(means[p, c]),
        full=float(records.final_quality.mean()),
        p_value=tested[p, c],
        better=len(certain),
    )


def sign_test(differences: npt.NDArray[np.float64]) -> float:
    """Probability of so many positive ones of those (N,) that are not 0, or more, if signs were coin flips.

    >>> sign_test(np.array([1.0, 1.0, 0.0, 1.0]))
    0.125
    """
    wins, changed = int((differences > 0).sum()), int((differences != 0).sum())
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, changed + 1)))])
    k = np.arange(wins, changed + 1)
    terms = np.exp(logs[changed] - logs[k] - logs[changed - k] - changed * math.log(2))
    return float(min(1.0, terms.sum().round(15)))


def _differences(records: ExitRecords, p: int, c: int) -> npt.NDArray[np.float64]:
    own = records.quality[p, c].astype(np.float64) - records.final_quality.astype(np.float64)
    if records.groups is not None:
        _, group = np.unique(records.groups, return_inverse=True)
        own = np.bincount(group, own).astype(np.float64).round(12)
    return np.asarray(own, np.float64)
