"""One process at a time in a folder: a lock that names who holds it, and that ends with its process.

with folder_lock(path): ...     # StorageError: in use by process 4711 on host since 2026-01-31 12:00:00

The same thread may enter again. Where the system has no such locks (Windows, some network file systems) every
process is let in.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import StorageError
from offramp.storage.atomic import storage_errors
from offramp.storage.system import HAS_LOCKS, try_lock

LOCK = ".lock"


@dataclass
class _Held:
    """A lock of this process: the open file, the thread that has it, how often that entered."""

    descriptor: int
    thread: int
    entered: int = 1


_held: dict[str, _Held] = {}
_changing = threading.Lock()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if there is none; ``StorageError``: another one has it."""
    with storage_errors(folder):
        key, there = str(folder.resolve()), folder.exists()
        _enter(key, folder)
    try:
        yield
    finally:
        _leave(key)
        if not there:
            with suppress(OSError):  # it is gone, or holds what is to be kept
                Path(key).rmdir()


@contextmanager
def scratch(work_dir: str | Path | None) -> Iterator[Path]:
    """The user's folder, locked and kept; or a temporary one, removed at the end.

    ``StorageError``: there is no place for it, or another process works in it.
    """
    if work_dir is not None:
        with folder_lock(Path(work_dir)):
            yield Path(work_dir)
        return
    with storage_errors(Path(tempfile.gettempdir())):
        temporary = tempfile.TemporaryDirectory(prefix="offramp-")
    with temporary as folder:
        yield Path(folder)


def _enter(key: str, folder: Path) -> None:
    with _changing:
        own = _held.get(key)
        if own is None:
            _held[key] = _Held(_locked(Path(key) / LOCK, folder), threading.get_ident())
        elif own.thread == threading.get_ident():
            own.entered += 1
        else:
            raise StorageError(_in_use(folder, "another thread of this process"))


def _leave(key: str) -> None:
    with _changing:
        own = _held.get(key)
        if own is None:  # a child that was forked inside does not have it
            return
        own.entered -= 1
        if not own.entered:
            del _held[key]
            if own.descriptor >= 0:
                (Path(key) / LOCK).unlink(missing_ok=True)  # while it is held: see ``_locked``
                os.close(own.descriptor)


def _locked(path: Path, folder: Path) -> int:
    """The open lock file; -1 where the system has no locks."""
    if not HAS_LOCKS:  # pragma: no cover (Windows)
        return -1
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # whoever had it may have removed the folder
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
        free = try_lock(descriptor)
        if free and _is_at(path, descriptor):
            _sign(descriptor)
            return descriptor
        holder = _holder(descriptor)
        os.close(descriptor)
        if free is None:
            return -1
        if not free:
            raise StorageError(_in_use(folder, holder))
        # the file was removed meanwhile: the lock would be on none


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> str:
    """Who has signed a lock, in words."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(found['pid'])} on {found['host']!s:.80} since {found['since']!s:.20}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it has not signed yet
        return "another process"


def _in_use(folder: Path, holder: str) -> str:
    return f"{folder} is in use by {holder}; wait until that ends, or choose another folder"


def _forget_in_child() -> None:
    """A forked child has no lock of its parent's, and does not keep one alive."""
    global _changing
    _changing = threading.Lock()
    for own in _held.values():
        if own.descriptor >= 0:
            os.close(own.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
