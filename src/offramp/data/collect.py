"""Rows computed once from a loader and kept on disk: cached features, recorded outputs.

A running digest of the inputs tells whether the loader gives the same batches again; if not, the rows are
computed anew.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offramp._progress import progress_bar
from offramp.data.batches import Batch, _length, _named_batches
from offramp.data.inputs import InputSpec
from offramp.data.row_store import Array, RowStore
from offramp.errors import InputError

Compute = Callable[[list[Tensor], Tensor | None], Mapping[str, Array]]
"""(inputs, labels or None) of one batch -> arrays of B rows each, always the same names."""


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
    progress: bool | None = None,
) -> StoredRows:
    """Run ``compute`` over every batch of a loader that the folder has no rows of yet.

    Args:
        folder: where rows are kept; name it after everything that ``compute`` depends on.
        spec: of the model's inputs.
        loader: yields batches as ``InputSpec.split_labels`` takes them; the same ones each time, to resume.
        compute: one batch to arrays of rows.
        label: for the progress bar.
        passes: how often to go through the loader (augmented views).
        apart: keep rows of loaders with different first batches side by side; else the last one's are kept.
        lasting: whether the folder outlives the process.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        Rows in the loader's order.

    Raises:
        InputError: the loader yields nothing, changes its structure, can be gone through only once where more
            is needed, or a batch does not fit the model.
        StorageError: the folder cannot be written or is full.
    """
    once = isinstance(loader, Iterator)
    if once and passes > 1:
        raise InputError(
            f"loader: expected one that can be gone through {passes} times, got a {type(loader).__name__}, "
            "which is empty after the first; pass a list or a DataLoader, or views=1"
        )
    batches = _named_batches(spec, loader, passes)
    first = next(batches)
    if apart:
        folder = folder / _update(hashlib.sha256(), first).hexdigest()[:16]
    store, total = RowStore(folder, lasting), _length(loader, passes)
    with progress_bar(label, total, progress) as advance:
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
            _fill(store, _named_batches(spec, loader, passes), compute, advance)
    return StoredRows(store.arrays(), store.progress.digest)


def _fill(
    store: RowStore, batches: Iterable[Batch], compute: Compute, advance: Callable[[int], None]
) -> None:
    stored, digest = store.progress, hashlib.sha256()
    with store:
        for i, batch in enumerate(batches, start=1):
            _update(digest, batch)
            if i > stored.batches:
                try:
                    store.append(compute(batch.values, batch.labels), digest.hexdigest())
                except InputError as error:
                    raise InputError(f"{batch.name}: {error}") from error
            elif i == stored.batches and digest.hexdigest() != stored.digest:
                raise _LoaderChangedError
            advance(i)
        if digest.hexdigest() != store.progress.digest:
            raise _LoaderChangedError


def _update(digest: Any, batch: Batch) -> Any:
    for tensor in (*batch.values, *([] if batch.labels is None else [batch.labels])):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest
