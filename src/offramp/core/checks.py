"""Checks that several classes of data make of their fields, and how frozen ones are completed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np

from offramp.errors import InputError


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[float]:
    """Whether a value is a finite number within limits (both included), and no truth value."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]


def is_count(value: object, least: int = 0) -> TypeGuard[int]:
    """Whether a value is a whole number of at least ``least`` and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def freeze(item: object, **values: object) -> None:
    """Set fields of a frozen dataclass while it is made."""
    for name, value in values.items():
        object.__setattr__(item, name, value)


def check_words(item: object, expected: str, *names: str) -> None:
    """Refuse fields that are empty or not strings."""
    for name in names:
        value = getattr(item, name)
        if not isinstance(value, str) or not value:
            raise InputError(f"{type(item).__name__}.{name}: expected {expected}, got {value!r}")


def check_costs(item: object, *names: str) -> None:
    """Refuse arrays with a value that is negative or not finite."""
    for name in names:
        values = getattr(item, name)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            kind = type(item).__name__
            raise InputError(f"{kind}.{name}: expected finite values of at least 0, got {values}")
