"""Rows computed once from a loader and kept on disk: cached features, recorded outputs.

Rows are appended to one raw file per array and read back as a memory map. After every few batches the number of
rows that count is written to ``progress.json``; a run that was killed goes on from there. A running digest of
the inputs tells whether the loader gives the same batches again; if not, the rows are computed anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from torch import Tensor

from offramp._files import storage_errors, write_text
from offramp._progress import progress_bar
from offramp.errors import InputError
from offramp.inputs import InputSpec

Array = npt.NDArray[Any]
Compute = Callable[[list[Tensor], Tensor | None], Mapping[str, Array]]
"""(inputs, labels or None) of one batch -> arrays of B rows each, always the same names."""

_COMMIT_EVERY = 2.0  # seconds of work that a kill may cost


class _LoaderChanged(Exception):
    """The batches are not the ones the stored rows were made from."""


class RowStore:
    """Append-only arrays in a folder. ``rows``, ``batches`` and ``digest`` describe what is safely stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.rows = self.batches = 0
        self.digest, self.done = "", False
        self._saved = 0.0
        if (folder / "progress.json").is_file():
            self._read()

    def _read(self) -> None:
        try:
            state = json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
            self._arrays = {name: (dtype, tuple(shape)) for name, dtype, shape in state["arrays"]}
            self.rows, self.batches = int(state["rows"]), int(state["batches"])
            self.digest, self.done = str(state["digest"]), bool(state["done"])
        except (ValueError, KeyError, TypeError):
            self.reset()
        if any(self._file(name).stat().st_size < self._bytes(name) for name in self._arrays):
            self.reset()

    def reset(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._arrays = {}
        self.rows = self.batches = 0
        self.digest, self.done = "", False

    def append(self, arrays: Mapping[str, Array], files: dict[str, BinaryIO], digest: str) -> None:
        """Add the rows of one batch; they count once ``commit`` has run."""
        sizes = {len(array) for array in arrays.values()}
        assert len(sizes) == 1, sizes
        for name, array in arrays.items():
            files[name].write(np.ascontiguousarray(array).data)
        self.rows += sizes.pop()
        self.batches += 1
        self.digest = digest

    def open(self, arrays: Mapping[str, Array], stack: ExitStack) -> dict[str, BinaryIO]:
        """Files to append to, cut back to the rows that count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._arrays:
            self._arrays = {name: (array.dtype.str, array.shape[1:]) for name, array in arrays.items()}
        files: dict[str, BinaryIO] = {}
        for name in self._arrays:
            files[name] = stack.enter_context(self._file(name).open("ab"))
            files[name].truncate(self._bytes(name))
        return files

    def commit(self, files: Mapping[str, BinaryIO], *, force: bool = False) -> None:
        """Make the appended rows count, at most every two seconds unless forced."""
        if not force and time.monotonic() - self._saved < _COMMIT_EVERY:
            return
        for stream in files.values():
            stream.flush()
        state = {
            "arrays": [[name, dtype, shape] for name, (dtype, shape) in self._arrays.items()],
            "rows": self.rows,
            "batches": self.batches,
            "digest": self.digest,
            "done": self.done,
        }
        write_text(self.folder / "progress.json", json.dumps(state))
        self._saved = time.monotonic()

    def arrays(self) -> dict[str, Array]:
        """Memory maps (rows, ...) of everything stored."""
        return {
            name: np.memmap(self._file(name), np.dtype(dtype), "r", shape=(self.rows, *shape))
            for name, (dtype, shape) in self._arrays.items()
        }

    def _file(self, name: str) -> Path:
        return self.folder / f"{list(self._arrays).index(name)}.bin"

    def _bytes(self, name: str) -> int:
        dtype, shape = self._arrays[name]
        return self.rows * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def collect(
    folder: Path,
    spec: InputSpec,
    loader: Iterable[Any],
    compute: Compute,
    *,
    label: str,
    passes: int = 1,
    progress: bool | None = None,
) -> dict[str, Array]:
    """Run ``compute`` over every batch of a loader, resuming what the folder holds.

    Args:
        folder: where rows are kept; name it after everything that ``compute`` depends on.
        spec: of the model's inputs.
        loader: yields batches as ``InputSpec.split_labels`` takes them; the same ones at each pass, to resume.
        compute: one batch to arrays of rows.
        label: for the progress bar.
        passes: how often to go through the loader (augmented views).
        progress: None shows a bar when standard error is a terminal.

    Returns:
        Memory-mapped arrays, rows in the loader's order.

    Raises:
        InputError: the loader yields nothing, changes its structure, or a batch does not fit the model.
        StorageError: the folder cannot be written or is full.
    """
    with storage_errors(folder):
        store = RowStore(folder)
        if not store.done:
            try:
                _fill(store, spec, loader, compute, label, passes, progress)
            except _LoaderChanged:
                store.reset()
                _fill(store, spec, loader, compute, label, passes, progress)
        return store.arrays()


def _fill(
    store: RowStore,
    spec: InputSpec,
    loader: Iterable[Any],
    compute: Compute,
    label: str,
    passes: int,
    progress: bool | None,
) -> None:
    stored, digest = store.batches, hashlib.sha256()
    files: dict[str, BinaryIO] = {}
    with ExitStack() as stack, progress_bar(label, _length(loader, passes), progress) as advance:
        for i, (values, labels) in enumerate(checked_batches(spec, loader, passes), start=1):
            _update(digest, values, labels)
            advance(i)
            if i <= stored:
                if i == stored and digest.hexdigest() != store.digest:
                    raise _LoaderChanged
                continue
            arrays = compute(values, labels)
            files = files or store.open(arrays, stack)
            store.append(arrays, files, digest.hexdigest())
            store.commit(files)
        if store.batches < stored or digest.hexdigest() != store.digest:
            raise _LoaderChanged
        store.done = True
        store.commit(files, force=True)


def checked_batches(
    spec: InputSpec, loader: Iterable[Any], passes: int = 1
) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """(inputs, labels) of every batch, all labelled or none.

    Raises:
        InputError: nothing comes, the structure changes, or a batch does not fit the model.
    """
    labelled: bool | None = None
    for number, (i, batch) in enumerate(itertools.chain(*(enumerate(loader) for _ in range(passes)))):
        try:
            values, labels = spec.split_labels(batch)
        except InputError as error:
            raise InputError(f"batch {i} of the loader: {error}") from error
        if labelled is not None and labelled != (labels is not None):
            had, has = ("labels", "none") if labelled else ("no labels", "some")
            raise InputError(f"batch {i} of the loader: earlier batches had {had}, this one has {has}")
        labelled = labels is not None
        if labels is not None and labels.ndim > 0 and len(labels) != len(values[0]):
            raise InputError(f"batch {i} of the loader: {len(values[0])} inputs but {len(labels)} labels")
        if len(values[0]):
            yield values, labels
        del number
    if labelled is None:
        raise InputError("the loader yields nothing; expected at least one batch. Is the data set empty?")


def _update(digest: Any, values: list[Tensor], labels: Tensor | None) -> None:
    for tensor in (*values, *([] if labels is None else [labels])):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(_bytes_type()).numpy().data)


def _bytes_type() -> Any:
    import torch

    return torch.uint8


def _length(loader: Iterable[Any], passes: int) -> int | None:
    try:
        return len(loader) * passes  # type: ignore[arg-type]
    except TypeError:
        return None
