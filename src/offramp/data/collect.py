"""Batches of a loader, checked, and rows computed once from them and kept on disk.

A running digest of the inputs tells whether the loader gives the same batches again; if not, the rows are
computed anew.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offramp._progress import progress_bar
from offramp.data.inputs import InputSpec
from offramp.data.row_store import Array, RowStore
from offramp.data.threads import threads_for
from offramp.errors import InputError


class Batch(NamedTuple):
    """One batch of a loader: what to call it in messages, inputs, and labels and sample weights or None."""

    name: str
    values: list[Tensor]
    labels: Tensor | None
    weights: Tensor | None = None


Compute = Callable[[list[Tensor], Tensor | None], Mapping[str, Array]]
"""(inputs, labels or None) of one batch -> arrays of B rows each, always the same names."""

WEIGHTS = "sample weights"
"""Name of a further array of rows, where the loader gives weights."""


class _LoaderChangedError(Exception):
    """The batches are not the ones the stored rows were made from."""


class StoredRows(NamedTuple):
    """What ``collect`` gives: memory-mapped arrays (N, ...) and the digest of the batches they come from."""

    arrays: dict[str, Array]
    digest: str


def collect(
    folder: Path,
    spec: InputSpec,
    loader: Iterable[Any],
    compute: Compute,
    *,
    label: str,
    passes: int = 1,
    apart: bool = False,
    lasting: bool = True,
    macs: float = math.inf,
    progress: bool | None = None,
) -> StoredRows:
    """Run ``compute`` over every batch of a loader that the folder has no rows of yet; rows in its order.

    Name the folder after everything that ``compute`` depends on; ``lasting`` says whether it outlives the
    process, and ``apart`` keeps rows of loaders with different first batches side by side, not those of the
    last one alone. ``passes`` is how often to go through the loader (augmented views), ``macs`` the
    multiply-accumulates that ``compute`` takes for one sample. ``InputError`` where
    the loader or a batch does not fit, ``StorageError`` where the folder cannot be written or is full.
    """
    once = isinstance(loader, Iterator)
    if once and passes > 1:
        raise InputError(
            f"loader: expected one that can be gone through {passes} times, got a {type(loader).__name__}, "
            "which is empty after the first; pass a list or a DataLoader, or views=1"
        )
    batches = named_batches(spec, loader, passes)
    first = next(batches)
    if apart:
        folder = folder / _update(hashlib.sha256(), first).hexdigest()[:16]
    store = RowStore(folder, lasting)
    total = None if once else operator.length_hint(loader) * passes or None
    work = macs * len(first.values[0])
    with threads_for(work, label), progress_bar(label, total, progress) as advance:
        try:
            _fill(store, itertools.chain([first], batches), compute, advance)
        except _LoaderChangedError:
            store.reset()
            if once:
                raise InputError(
                    f"loader: its batches are not the ones that {folder} was made from, and it cannot be "
                    "gone through again; the folder is empty now, make a new loader and run again"
                ) from None
            warnings.warn(
                f"{folder} holds rows of other batches than the loader gives; they are computed again. "
                "To resume, pass a loader in fixed order (shuffle=False)",
                stacklevel=2,
            )
            _fill(store, named_batches(spec, loader, passes), compute, advance)
    return StoredRows(store.arrays(), store.progress.digest)


def checked_batches(
    spec: InputSpec, loader: Iterable[Any], passes: int = 1
) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """(inputs, labels or None) of every batch that is not empty; all labelled or none.

    ``InputError`` where nothing comes, the structure changes, or a batch does not fit the model.
    """
    return ((batch.values, batch.labels) for batch in named_batches(spec, loader, passes))


def named_batches(spec: InputSpec, loader: Iterable[Any], passes: int = 1) -> Iterator[Batch]:
    """The same, with names for messages and sample weights; all weighted or none."""
    before: Batch | None = None
    for _ in range(passes):
        empty = True
        for i, raw in enumerate(_iterated(loader)):
            name = f"batch {i} of the loader"
            try:
                batch = Batch(name, *spec.read_batch(raw))
                _check_labels(batch, before)
            except (TypeError, ValueError) as error:  # InputError is one; labels may be no numbers
                raise InputError(f"{name}: {error}") from error
            if len(batch.values[0]):
                empty = False
                before = batch
                yield batch
        if empty:
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
    if before is not None and (before.weights is None) != (batch.weights is None):
        raise InputError("some batches have sample weights and some have none; make all batches alike")
    if labels is not None and labels.shape[:1] != (rows,):
        raise InputError(f"expected labels for {rows} inputs, got shape {tuple(labels.shape)}")


def _fill(
    store: RowStore, batches: Iterable[Batch], compute: Compute, advance: Callable[[int], None]
) -> None:
    stored, digest = store.progress, hashlib.sha256()
    with store:
        for i, batch in enumerate(batches, start=1):
            _update(digest, batch)
            if i > stored.batches:
                try:
                    rows = dict(compute(batch.values, batch.labels))
                    if batch.weights is not None:
                        rows[WEIGHTS] = batch.weights.cpu().numpy()
                    store.append(rows, digest.hexdigest())
                except InputError as error:
                    raise InputError(f"{batch.name}: {error}") from error
            elif i == stored.batches and digest.hexdigest() != stored.digest:
                raise _LoaderChangedError
            advance(i)
        if digest.hexdigest() != store.progress.digest:
            raise _LoaderChangedError


def _update(digest: Any, batch: Batch) -> Any:
    for tensor in (*batch.values, *(each for each in (batch.labels, batch.weights) if each is not None)):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest
