"""An append-only store of rows on disk: one raw file per array, read back as a memory map.

Every few seconds the number of rows that count is written to ``progress.json``, with a digest of each block;
a run that was killed goes on from there. What is stored is compared with the digests before it is used: rows
from the first damaged block on are computed again.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from offramp.errors import ArtifactError, InputError
from offramp.storage import (
    document_digest,
    dump_document,
    parse_document,
    read_as,
    storage_errors,
    write_text,
)

Array = npt.NDArray[Any]
Column = tuple[np.dtype[Any], tuple[int, ...]]
"""Type and shape of an array, rows aside."""
ROWS_FORMAT = "offramp.rows"
VERSION = 1
PROGRESS = "progress.json"
_COMMIT_EVERY = 2.0  # seconds of work that a kill may cost
_BLOCK = 64 << 20  # bytes after which a new block of rows begins
_CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class StoreProgress:
    """How far a store is: rows, the batches they were made from, and the digest of these."""

    rows: int = 0
    batches: int = 0
    digest: str = hashlib.sha256().hexdigest()


class RowStore:
    """Append-only arrays in a folder, for one process at a time; of a damaged one only what is whole counts.

    Rows are written inside a ``with`` block. What is whole at its end counts, also when an error ends it.
    Where it is not ``lasting``, no other process may go on with it, which spares the disk.
    """

    def __init__(self, folder: Path, lasting: bool = True) -> None:
        self.folder, self._lasting = folder, lasting
        self.progress = StoreProgress()
        self._columns: dict[str, Column] = {}
        self._files: dict[str, BinaryIO] = {}
        self._blocks: list[tuple[StoreProgress, list[str]]] = []  # where each ends, a digest per column
        self._running: list[Any] = []  # of the block under way
        self._committed = 0.0
        try:
            self._read()
        except (ArtifactError, OSError, ValueError, LookupError, TypeError, OverflowError):
            self.reset()  # damaged or not there: computing again is all that is left

    def _read(self) -> None:
        if not (self.folder / PROGRESS).is_file():
            return
        state = read_as(self.folder / PROGRESS, lambda text: parse_document(text, ROWS_FORMAT, VERSION))
        claimed = state.pop("sha256", None)
        if document_digest(state) != claimed:
            raise ValueError("not what was written")
        self._columns = {
            name: (_number_type(dtype), _sizes(shape)) for name, dtype, shape in state["columns"]
        }
        for end, digests in state["blocks"]:
            _sizes([end["rows"], end["batches"]])
            self._blocks.append((StoreProgress(**end), list(digests)))
        del self._blocks[self._whole_blocks() :]
        self.progress = self._blocks[-1][0]  # IndexError: no block is whole

    def _whole_blocks(self) -> int:
        """How many blocks of rows are as they were written, from the first on."""
        count, ends = len(self._blocks), [0, *(end.rows for end, _ in self._blocks)]
        for column, name in enumerate(self._columns):
            path, size = self._path(name), self._row_bytes(name)
            if not path.is_file():
                return 0
            with path.open("rb") as stream:
                for block, (start, stop) in enumerate(pairwise(ends[: count + 1])):
                    if _digest_of(stream, (stop - start) * size) != self._blocks[block][1][column]:
                        count = block
                        break
        return count

    def reset(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._columns, self.progress = {}, StoreProgress()
        self._blocks, self._running = [], []

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
            contents = [np.ascontiguousarray(a).reshape(-1).view(np.uint8).data for a in arrays.values()]
            for name, content in zip(arrays, contents, strict=True):
                self._files[name].write(content)
            if self._lasting:  # only of a batch that is whole
                for running, content in zip(self._running, contents, strict=True):
                    running.update(content)
            rows = self.progress.rows + len(next(iter(arrays.values())))
            self.progress = StoreProgress(rows, self.progress.batches + 1, digest)
            if time.monotonic() - self._committed >= _COMMIT_EVERY:
                self._commit()

    def _open(self, columns: Mapping[str, Column]) -> None:
        """Open the files, cut back to the rows that count; what comes is a block of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._columns = dict(columns)
        for name in columns:
            path = self._path(name)
            if path.is_symlink() or not path.is_file():  # a pipe would be waited for
                path.unlink(missing_ok=True)
            stream = self._files[name] = path.open("ab")
            stream.truncate(self._bytes(name))
        self._running = [hashlib.sha256() for _ in columns]

    def _commit(self) -> None:
        """Make the appended rows count."""
        if not (self._files and self._lasting):
            return
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        block = (self.progress, [digest.hexdigest() for digest in self._running])
        state: dict[str, Any] = {
            "format": ROWS_FORMAT,
            "version": VERSION,
            "columns": [[name, dtype.str, list(shape)] for name, (dtype, shape) in self._columns.items()],
            "progress": asdict(self.progress),
            "blocks": [[asdict(end), digests] for end, digests in [*self._blocks, block]],
        }
        write_text(self.folder / PROGRESS, dump_document({**state, "sha256": document_digest(state)}))
        self._committed = time.monotonic()
        since = self._blocks[-1][0].rows if self._blocks else 0
        if (self.progress.rows - since) * sum(map(self._row_bytes, self._columns)) >= _BLOCK:
            self._blocks.append(block)
            self._running = [hashlib.sha256() for _ in self._columns]

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
        return self.progress.rows * self._row_bytes(name)

    def _row_bytes(self, name: str) -> int:
        dtype, shape = self._columns[name]
        return math.prod(shape) * dtype.itemsize


def _digest_of(stream: BinaryIO, size: int) -> str | None:
    """SHA-256 of the next ``size`` bytes; None where there are not so many."""
    digest = hashlib.sha256()
    while size:
        content = stream.read(min(size, _CHUNK))
        if not content:
            return None
        digest.update(content)
        size -= len(content)
    return digest.hexdigest()


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
