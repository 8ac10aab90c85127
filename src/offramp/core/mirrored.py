"""Fields that files keep in a free-form ``meta``: one rule for which of the two counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from offramp.errors import InputError

T = TypeVar("T")
Meta = Mapping[str, Any] | None


def mirrored(field: T | None, meta: Meta, key: str, valid: Callable[[Any], bool]) -> tuple[T | None, Meta]:
    """A field and the ``meta`` that says the same.

    Args:
        field: its value; None: take it from ``meta``, where it is valid there.
        meta: plain JSON values, or None.
        key: of the field in ``meta``.
        valid: whether a value is one that the field can have.

    Raises:
        InputError: the field is not valid, or differs from what ``meta`` says.
    """
    stored = meta.get(key) if isinstance(meta, Mapping) else None
    if field is None:
        return (stored if valid(stored) else None), meta
    if not valid(field) or (stored is not None and stored != field):
        expected = "a valid value" if stored is None else f"{stored!r}, as in meta"
        raise InputError(f"{key}: expected {expected}, got {field!r}; give it once, as the field")
    return field, {key: field, **(meta or {})} if stored is None else meta
