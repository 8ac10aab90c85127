"""An append-only store of rows on disk: one raw file per array, read back as a memory map.

Every few seconds the number of rows that count is written to ``progress.json``; a run that was killed goes on
from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from offramp.errors import InputError
from offramp.storage import storage_errors, write_text

Array = npt.NDArray[Any]
Column = tuple[np.dtype[Any], tuple[int, ...]]
"""Type and shape of an array, rows aside."""
_COMMIT_EVERY = 2.0  # seconds of work that a kill may cost


@dataclass(frozen=True)
class StoreProgress:
    """How far a store is: rows, the batches they were made from, and the digest of these."""

    rows: int = 0
    batches: int = 0
    digest: str = hashlib.sha256().hexdigest()


class RowStore:
    """Append-only arrays in a folder, for one process at a time; a damaged folder is emptied.

    Rows are written inside a ``with`` block. What is whole at its end counts, also when an error ends it.
    Where it is not ``lasting``, no other process may go on with it, which spares the disk.
    """

    def __init__(self, folder: Path, lasting: bool = True) -> None:
        self.folder, self._lasting = folder, lasting
        self.progress = StoreProgress()
        self._columns: dict[str, Column] = {}
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
        self._columns = {
            name: (_number_type(dtype), _sizes(shape)) for name, dtype, shape in state["columns"]
        }
        self.progress = StoreProgress(**state["progress"])
        _sizes([self.progress.rows, self.progress.batches])
        for name in self._columns:
            if not self._path(name).is_file() or self._path(name).stat().st_size < self._bytes(name):
                raise ValueError(f"{name} is cut short")

    def reset(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._columns, self.progress = {}, StoreProgress()

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
        """Add the rows of one batch; ``digest`` is that of all inputs up to here.

        ``InputError`` where a name, type or shape differs from earlier batches, ``StorageError`` where the
        folder cannot be written or is full.
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
            rows = self.progress.rows + len(array)
            self.progress = StoreProgress(rows, self.progress.batches + 1, digest)
            if time.monotonic() - self._committed >= _COMMIT_EVERY:
                self._commit()

    def _open(self, columns: Mapping[str, Column]) -> None:
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


def _number_type(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in "biufc":
        raise ValueError(f"{name} is not a type of numbers")
    return dtype


def _sizes(values: Sequence[int]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values} are not sizes")
    return tuple(values)


def _described(columns: Mapping[str, Column]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in columns.items())
