"""Batches of a loader, checked: inputs that fit the model, labels for all or for none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from offramp.data.inputs import InputSpec
from offramp.errors import InputError


class Batch(NamedTuple):
    """One batch of a loader: what to call it in messages, inputs, and labels or None."""

    name: str
    values: list[Tensor]
    labels: Tensor | None


def checked_batches(
    spec: InputSpec, loader: Iterable[Any], passes: int = 1
) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """(inputs, labels or None) of every batch that is not empty; all labelled or none.

    Raises:
        InputError: nothing comes, the structure changes, or a batch does not fit the model.
    """
    return ((batch.values, batch.labels) for batch in _named_batches(spec, loader, passes))


def _named_batches(spec: InputSpec, loader: Iterable[Any], passes: int) -> Iterator[Batch]:
    before: Batch | None = None
    for _ in range(passes):
        rows = 0
        for i, raw in enumerate(_iterated(loader)):
            name = f"batch {i} of the loader"
            try:
                values, labels = spec.split_labels(raw)
                batch = Batch(name, values, labels)
                _check_labels(batch, before)
            except (TypeError, ValueError) as error:  # InputError is one; labels may be no numbers
                raise InputError(f"{name}: {error}") from error
            if len(values[0]):
                rows += len(values[0])
                before = batch
                yield batch
        if not rows:
            raise InputError("the loader yields no samples; expected at least one. Is the data set empty?")


def _iterated(loader: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(loader)
    except TypeError as error:
        raise InputError(
            f"loader: expected batches to go through, such as a DataLoader; got a {type(loader).__name__}"
        ) from error


def _check_labels(batch: Batch, before: Batch | None) -> None:
    rows, labels = len(batch.values[0]), batch.labels
    if before is not None and (before.labels is None) != (labels is None):
        had, has = ("no labels", "some") if before.labels is None else ("labels", "none")
        raise InputError(f"earlier batches had {had}, this one has {has}; make all batches alike")
    if labels is not None and labels.shape[:1] != (rows,):
        raise InputError(f"expected labels for {rows} inputs, got shape {tuple(labels.shape)}")


def _length(loader: Iterable[Any], passes: int) -> int | None:
    try:
        return len(loader) * passes  # type: ignore[arg-type]
    except TypeError:
        return None
