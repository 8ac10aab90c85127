"""Risks that can be certified: a mean loss that must stay at or under a bound.

drop                 full quality - quality, all samples
missed_detection     1 - quality, the samples of a class
early_leaver_error   1 - quality, the samples that leave before the full model's output
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.core import check_words, freeze, is_number
from offramp.errors import InputError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What N samples get under one configuration.

    Args:
        quality: (N,) in [0, 1], of the answer given.
        full_quality: (N,) in [0, 1], of the full model's answer.
        early: (N,) bool, whether the sample left before the full model's output.
    """

    quality: Floats
    full_quality: Floats
    early: npt.NDArray[np.bool_]

    def __repr__(self) -> str:
        if not self.quality.size:
            return "Answers(0 samples)"
        return (
            f"Answers({self.quality.size} samples, quality {self.quality.mean():.4f}, full model "
            f"{self.full_quality.mean():.4f}, {self.early.mean():.1%} leave early)"
        )


Losses = Callable[[Answers], npt.ArrayLike]
"""From the answers to (K,) losses in [0, 1], or [-1, 1] if ``signed``, of the K samples the risk is about.

Which samples these are may depend on a sample's own class, input or exit, never on other samples.
"""


@dataclass(frozen=True)
class Risk:
    """A mean loss on new samples that must not exceed a bound.

    Args:
        name: in words that follow "the", for instance "rate of wrong answers".
        bound: in [0, 1).
        losses: from the answers under a configuration to the losses of the samples it is about (``Losses``).
        signed: whether a loss can be negative.
        fractional: whether a loss can be a fraction even where every quality is 0 or 1.
        sparse: whether it may be about few samples under the most expensive configurations, so that a
            sequence of tests had better not start there alone.

    Raises:
        InputError: the name is empty or the bound is not in [0, 1).

    >>> Risk("rate of wrong answers", 0.1, lambda answers: 1 - answers.quality).bound
    0.1
    """

    name: str
    bound: float
    losses: Losses
    signed: bool = False
    fractional: bool = False
    sparse: bool = False

    def __post_init__(self) -> None:
        check_words(self, "words", "name")
        freeze(self, bound=checked_bound(f"bound of the {self.name}", self.bound))


def checked_bound(name: str, value: object) -> float:
    """A bound on a mean loss, in [0, 1)."""
    if not is_number(value, 0) or value >= 1:
        raise InputError(f"{name}: expected a fraction in [0, 1), got {value!r}; 0.005 is half a point")
    return float(value)


def drop(max_drop: float) -> Risk:
    """Mean quality lost against the full model, on the same samples: paired differences."""
    return Risk(
        name="drop of quality against the full model",
        bound=checked_bound("max_drop", max_drop),
        losses=lambda answers: answers.full_quality - answers.quality,
        signed=True,
    )


def missed_detection(mask: npt.ArrayLike, max_rate: float, of: str = "the class") -> Risk:
    """P(answer wrong | the sample is of a class), the full model's own misses included.

    Args:
        mask: (N,) bool, which of the records' samples are of the class.
        max_rate: in [0, 1).
        of: what to call the class in the certificate.

    Raises:
        InputError: the mask is not made of truth values, or the rate is not in [0, 1).
    """
    marked = np.asarray(mask)
    if marked.dtype != bool or marked.ndim != 1:
        raise InputError(
            f"missed_detection(mask): expected (N,) truth values, got {marked.dtype} of shape "
            f"{marked.shape}; compare the labels with the class"
        )

    def losses(answers: Answers) -> Floats:
        if marked.shape != answers.quality.shape:
            raise InputError(
                f"missed_detection(mask): expected one value for each of {answers.quality.size} samples, "
                f"got {marked.size}; make it from the labels of these records"
            )
        return np.asarray(1 - answers.quality[marked])

    return Risk(
        name=f"rate of wrong answers on {of}", bound=checked_bound("max_rate", max_rate), losses=losses
    )


def early_leaver_error(max_rate: float) -> Risk:
    """P(answer wrong | the sample left early).

    A configuration under which no sample leaves early says nothing about it and is not certified.

    Raises:
        InputError: the rate is not in [0, 1).
    """
    return Risk(
        name="rate of wrong answers among samples that leave early",
        bound=checked_bound("max_rate", max_rate),
        losses=lambda answers: 1 - answers.quality[answers.early],
        sparse=True,
    )


def is_integral(values: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether every value is -1, 0 or 1."""
    return bool(np.isin(values, (-1.0, 0.0, 1.0)).all())


def checked_losses(risk: Risk, answers: Answers, integral: bool) -> Floats:
    """(K,) the losses of a risk, as it says they are; -1, 0 or 1 where a test needs ``integral`` ones."""
    values = np.asarray(risk.losses(answers), np.float64)
    low = -1 if risk.signed else 0
    if values.ndim != 1 or not ((values >= low) & (values <= 1)).all():  # NaN fails too
        span = f"{values.min():g} to {values.max():g}" if values.size else "none"
        raise InputError(
            f"losses of the {risk.name}: expected (K,) values in [{low}, 1], got {span} of shape "
            f"{values.shape}; pass signed=True if they can be negative"
        )
    if integral and not is_integral(values):
        raise InputError(
            f"losses of the {risk.name}: expected whole numbers where every quality is 0 or 1, got "
            "fractions; pass fractional=True"
        )
    return values
