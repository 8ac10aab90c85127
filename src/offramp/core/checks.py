"""What a number given by a user must be: a truth value never is one."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeGuard


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[float]:
    """Whether a value is a finite number within limits (both included), of Python or NumPy."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]


def is_count(value: object, least: int = 0) -> TypeGuard[int]:
    """Whether a value is a whole number of at least ``least``, of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
