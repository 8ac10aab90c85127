"""How heads are trained: frozen data, checked when it is made."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offramp.errors import InputError
from offramp.training.cache import DTYPES

_INTEGERS = {"epochs": 1, "batch_size": 1, "views": 1, "seed": 0, "backbone_epochs": 1}
_REALS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": ("above 0", lambda v: v > 0),
    "temperature": ("above 0", lambda v: v > 0),
    "backbone_rate": ("above 0", lambda v: v > 0),
    "weight_decay": ("of at least 0", lambda v: v >= 0),
    "distillation": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "survivors": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "calibration": ("from 0 to below 1", lambda v: 0 <= v < 1),
}
_NAMES = {"cache_dtype": tuple(DTYPES), "backbone": ("frozen", "finetune")}


@dataclass(frozen=True)
class TrainConfig:
    """How to train heads.

    Args:
        epochs: passes over the cached features.
        batch_size: samples per step.
        learning_rate: peak of a one-cycle cosine (AdamW).
        weight_decay: of AdamW.
        distillation: weight of the full model's outputs against the labels, 0 to 1; 1 without labels.
        temperature: of the distillation.
        views: passes over the loader; more than one pays where the loader augments at random.
        seed: of initial weights, of the order of samples, and of which are held out.
        survivors: 0 to 1, how much a head's loss is for the samples likely to reach it (arXiv 2509.08318); 0
            weighs all alike.
        calibration: share of the samples held out from training to fit confidences on, 0 to below 1. Used
            where the confidence is of a fitted kind, or the backbone is fine-tuned.
        cache_dtype: "float32", or "float16" or "bfloat16" for half the disk.
        backbone: "frozen", or "finetune" to train the model together with its heads first. That changes the
            model's weights, in place.
        backbone_epochs: passes over the loader for that.
        backbone_rate: peak learning rate of the backbone.

    Raises:
        InputError: a value is out of range.
    """

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    distillation: float = 0.5
    temperature: float = 2.0
    views: int = 1
    seed: int = 0
    survivors: float = 0.0
    calibration: float = 0.1
    cache_dtype: str = "float32"
    backbone: str = "frozen"
    backbone_epochs: int = 3
    backbone_rate: float = 1e-4

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            object.__setattr__(self, name, _integer(name, getattr(self, name), least))
        for name, (wanted, fits) in _REALS.items():
            object.__setattr__(self, name, _real(name, getattr(self, name), wanted, fits))
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"TrainConfig.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number < 2**32:
        raise InputError(f"TrainConfig.{name}: expected an integer of at least {least}, got {value!r}")
    return number


def _real(name: str, value: Any, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and fits(number)):
        raise InputError(f"TrainConfig.{name}: expected a number {wanted}, got {value!r}")
    return number
