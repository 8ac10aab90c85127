"""Rows computed once from a loader and kept on disk: cached features, recorded outputs.

Rows are appended to one raw file per array and read back as a memory map. Every few seconds the number of
rows that count is written to ``progress.json``; a run that was killed goes on from there. A running digest of
the inputs tells whether the loader gives the same batches again; if not, the rows are computed anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp._progress import progress_bar
from offramp.errors import InputError
from offramp.inputs import InputSpec
from offramp.storage import storage_errors, write_text

Array = npt.NDArray[Any]
Compute = Callable[[list[Tensor], Tensor | None], Mapping[str, Array]]
"""(inputs, labels or None) of one batch -> arrays of B rows each, always the same names."""

_COMMIT_EVERY = 2.0  # seconds of work that a kill may cost


class _LoaderChangedError(Exception):
    """The batches are not the ones the stored rows were made from."""


@dataclass(frozen=True)
class Progress:
    """How far a store is: rows, the batches they were made from, and the digest of these."""

    rows: int = 0
    batches: int = 0
    digest: str = hashlib.sha256().hexdigest()


class RowStore:
    """Append-only arrays in a folder, for one process at a time.

    Rows are written inside a ``with`` block. What is whole at its end counts, also when an error ends it.

    Args:
        folder: made when the first rows come; a damaged one is emptied.
        lasting: whether another process may go on with it; False spares the disk the care that needs.

    Attributes:
        progress: of the rows appended so far.
    """

    def __init__(self, folder: Path, lasting: bool = True) -> None:
        self.folder, self._lasting = folder, lasting
        self.progress = Progress()
        self._columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._committed = 0.0
        try:
            self._read()
        except FileNotFoundError:
            pass  # a new store
        except (OSError, ValueError, KeyError, TypeError):  # damaged: computing again is all that is left
            self.reset()

    def _read(self) -> None:
        state = json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
        self._columns = {name: (_plain(dtype), _sizes(shape)) for name, dtype, shape in state["columns"]}
        self.progress = Progress(**state["progress"])
        _sizes([self.progress.rows, self.progress.batches])
        for name in self._columns:
            if not self._path(name).is_file() or self._path(name).stat().st_size < self._bytes(name):
                raise ValueError(f"{name} is cut short")

    def reset(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._columns, self.progress = {}, Progress()

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # an error under way says more than one about keeping what came before it
        guard = nullcontext() if kind is None else suppress(OSError)
        with storage_errors(self.folder), guard, ExitStack() as stack:
            for stream in self._files.values():
                stack.callback(stream.close)
            self._commit()
        self._files = {}

    def append(self, arrays: Mapping[str, Array], digest: str) -> None:
        """Add the rows of one batch.

        Args:
            arrays: of the same names, types and shapes (rows aside) each time.
            digest: of all inputs up to here.

        Raises:
            InputError: a type or a shape differs from earlier batches.
            StorageError: the folder cannot be written or is full.
        """
        columns = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        if self._columns and columns != self._columns:
            raise InputError(
                f"expected {_described(self._columns)} as in earlier batches, got {_described(columns)}; "
                "make all batches alike"
            )
        with storage_errors(self.folder):
            if not self._files:
                self._open(columns)
            for name, array in arrays.items():
                self._files[name].write(np.ascontiguousarray(array).data)
            rows = len(next(iter(arrays.values())))
            done = self.progress
            self.progress = Progress(done.rows + rows, done.batches + 1, digest)
            if time.monotonic() - self._committed >= _COMMIT_EVERY:
                self._commit()

    def _open(self, columns: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
        """Open the files, cut back to the rows that count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._columns = dict(columns)
        for name in columns:
            stream = self._files[name] = self._path(name).open("ab")
            stream.truncate(self._bytes(name))

    def _commit(self) -> None:
        """Make the appended rows count."""
        if not (self._files and self._lasting):
            return
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        state = {
            "columns": [[name, dtype.str, shape] for name, (dtype, shape) in self._columns.items()],
            "progress": asdict(self.progress),
        }
        write_text(self.folder / "progress.json", json.dumps(state))
        self._committed = time.monotonic()

    def arrays(self) -> dict[str, Array]:
        """Memory maps (rows, ...) of everything stored; writing to one changes a private copy."""
        with storage_errors(self.folder):
            return {
                name: np.memmap(self._path(name), dtype, "c", shape=(self.progress.rows, *shape))
                for name, (dtype, shape) in self._columns.items()
            }

    def _path(self, name: str) -> Path:
        return self.folder / f"{list(self._columns).index(name)}.bin"

    def _bytes(self, name: str) -> int:
        dtype, shape = self._columns[name]
        return self.progress.rows * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _plain(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in "biufc":
        raise ValueError(f"{name} is not a type of numbers")
    return dtype


def _sizes(values: Sequence[int]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values} are not sizes")
    return tuple(values)


def _described(columns: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in columns.items())


class Rows(NamedTuple):
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
) -> Rows:
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
    return Rows(store.arrays(), store.progress.digest)


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


def _update(digest: Any, batch: Batch) -> Any:
    for tensor in (*batch.values, *([] if batch.labels is None else [batch.labels])):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest


def _length(loader: Iterable[Any], passes: int) -> int | None:
    try:
        return len(loader) * passes  # type: ignore[arg-type]
    except TypeError:
        return None
