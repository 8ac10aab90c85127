"""Files and folders that are whole or absent: written beside their place, flushed, then renamed.

with atomic_write(path) as temporary: ...     # renamed to path only if the block succeeds
with atomic_folder(path) as temporary: ...    # the same for a folder and everything in it
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from offramp.errors import ArtifactError, InputError, StorageError


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a ``StorageError`` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(_refusal(error, path)) from error
    except SafetensorError as error:  # the safetensors writer reports I/O errors as text
        raise StorageError(f"cannot write {path}: {error}; check free space and permissions") from error


def _refusal(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device: {path}; free some or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"permission denied: {path}; choose a folder you may write to"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return (
            f"cannot write {path}: a file is where a folder is expected, or the reverse; choose another path"
        )
    return f"cannot write {path}: {error.strerror or error}"


def temporary_sibling(path: Path) -> Path:
    """A fresh name beside ``path``, which must end in a name, so that a rename onto it is atomic."""
    if not path.name:
        raise StorageError(f"cannot write {str(path)!r}: expected a path that ends in a name")
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is flushed to disk and renamed to ``path``, else removed.

    A folder that cannot be written or is full is a ``StorageError``.
    """
    temporary = temporary_sibling(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask gives; some writers choose their own
            yield temporary
            temporary.chmod(mode)
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it takes the place of ``path`` and what was there, else it goes.

    A place that cannot be written or is full is a ``StorageError``.
    """
    with storage_errors(path):
        final = path.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(final)
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                flush(file)
            _swap(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, final: Path) -> None:
    old = temporary_sibling(final)
    try:
        if final.exists():
            final.rename(old)
        temporary.rename(final)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Force a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; text that UTF-8 has no bytes for is an ``InputError``."""
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"cannot write {path}: expected text that is valid Unicode ({error})") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; an ``ArtifactError`` if it is missing, unreadable or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"expected a file at {path}, found none; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; an ``ArtifactError`` if it is missing or unreadable."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}; copy it again") from error
