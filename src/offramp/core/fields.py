"""What classes of data do with their fields: check them, set frozen ones, keep one in ``meta`` as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar

import numpy as np

from offramp.errors import InputError


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[float]:
    """Whether a value is a finite number within limits (both included), and no truth value."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]


def is_count(value: object, least: int = 0) -> TypeGuard[int]:
    """Whether a value is a whole number of at least ``least`` and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def check_arguments(verb: str, given: Mapping[str, tuple[object, Any]]) -> None:
    """Refuse arguments that are not of their classes; say so where they are swapped.

    ``given`` has each by name, in order, with its class, or a tuple of classes.
    """
    for place, (name, (value, kinds)) in enumerate(given.items()):
        if isinstance(value, kinds):
            continue
        every = kinds if isinstance(kinds, tuple) else (kinds,)
        wanted = " or ".join(kind.__name__ for kind in every)
        swapped = any(isinstance(value, other) for _, other in given.values())
        raise InputError(
            f"{verb}(): expected {wanted} as the {_ORDINALS[place]} argument ({name}), got "
            f"{type(value).__name__}{': swapped?' if swapped else ''}; "
            f"the order is {', '.join(given)}"
        )


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


T = TypeVar("T")
Meta = Mapping[str, Any] | None


def mirrored(
    name: str, field: T | None, meta: Meta, key: str, valid: Callable[[Any], bool], expected: str
) -> tuple[T | None, Meta]:
    """A field and the ``meta`` that says the same under ``key``; they must not differ.

    A field of None is taken from ``meta``, where what is there is ``valid``. ``name`` and ``expected`` are
    the field and its valid values in words.
    """
    stored = meta.get(key) if isinstance(meta, Mapping) else None
    if field is None:
        return (stored if valid(stored) else None), meta
    if not valid(field):
        raise InputError(f"{name}: expected {expected}, got {field!r}; leave it out where it is not known")
    if stored is None:
        return field, {**(meta or {}), key: field}
    if stored != field:
        raise InputError(
            f"{name}: expected {stored!r}, as meta[{key!r}] says, got {field!r}; give it once, as the field"
        )
    return field, meta
