"""Files and folders that are whole or absent: written beside their place, flushed, then renamed.

with atomic_write(path) as temporary: ...     # renamed to path only if the block succeeds
with atomic_folder(path) as temporary: ...    # the same for a folder and everything in it
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from safetensors import SafetensorError

from offramp.errors import ArtifactError, InputError, StorageError
from offramp.storage.system import HAS_LOCKS, exchange, try_lock

_LONG_NAME = 240  # bytes, of the 255 that most file systems take
_ASIDE = ".old"  # ends the name of what a writer has moved aside


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
    _check_path(path)
    return path.with_name(f".{_stem(path)}.{uuid.uuid4().hex[:8]}.tmp")


def _check_path(path: Path) -> None:
    if not path.name or "\0" in str(path):
        raise StorageError(f"cannot write {str(path)!r}: expected a path that ends in a name")


def _stem(path: Path) -> str:
    """A path's name, or what stands for it where a longer one would be longer than file systems take."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONG_NAME else hashlib.sha256(name).hexdigest()


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

    Where the system can exchange two folders in one step (Linux, macOS) there is a whole one under the name
    at every moment; elsewhere the next writer puts back what a killed one left aside. What killed writers
    left beside the place is removed.

    A place that cannot be written or is full is a ``StorageError``.
    """
    with storage_errors(path):
        _check_path(path)
        final = path.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        _clear_remains(final)
        temporary, descriptor = _locked_sibling(final)
        try:
            yield temporary
            for file in temporary.iterdir():
                if not file.is_symlink():
                    flush(file)
            _swap(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(descriptor)


def _locked_sibling(final: Path) -> tuple[Path, int]:
    """A new folder beside ``final``, and a descriptor that holds a lock on it while its writer lives."""
    while True:
        temporary = temporary_sibling(final)
        temporary.mkdir()
        if not HAS_LOCKS:  # pragma: no cover (Windows)
            return temporary, os.open(os.devnull, os.O_RDONLY)
        descriptor = os.open(temporary, os.O_RDONLY)
        if try_lock(descriptor) is not False and temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # another writer took it for the remains of a killed one


def _clear_remains(final: Path) -> None:
    """Remove what killed writers left beside a place; put back what one had moved aside."""
    name = re.compile(rf"\.{re.escape(_stem(final))}\.[0-9a-f]{{8}}\.(tmp|old)")
    try:
        remains = [path for path in final.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]
    except PermissionError:  # a folder may be open to writing and closed to listing
        return
    for path in sorted(remains, key=lambda each: each.suffix):  # .old before .tmp
        with suppress(OSError):  # another writer was quicker
            descriptor = os.open(path, os.O_RDONLY)
            if try_lock(descriptor):
                if path.suffix == _ASIDE and not final.exists():
                    path.rename(final)
                shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _swap(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
    elif not exchange(temporary, final):
        aside = temporary.with_suffix(_ASIDE)
        try:
            final.rename(aside)
            temporary.rename(final)
        except BaseException:
            if aside.exists() and not final.exists():
                aside.rename(final)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # not every file system can do that to a folder
        flush(final.parent)


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
    return decoded(path, read_bytes(path))


def decoded(path: Path, content: bytes) -> str:
    """UTF-8 text that was read from a path; an ``ArtifactError`` if it is none."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Read a file; an ``ArtifactError`` if it is missing, unreadable or no ordinary file."""
    if not (is_file(path) or os.path.lexists(path)):
        raise ArtifactError(f"expected a file at {path}, found none; check the path")
    with _reading(path) as stream:
        return stream.read()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; an ``ArtifactError`` as of ``read_bytes``."""
    with _reading(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file; an ``ArtifactError`` where the system does not say."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character in it
        return False
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}; check the path") from error


@contextmanager
def _reading(path: Path) -> Iterator[BufferedReader]:
    """Open a file to read; errors as of ``read_bytes``."""
    if not is_file(path) and path.exists():  # to open a pipe would be to wait for ever
        raise ArtifactError(f"cannot read {path}: expected an ordinary file, got none; copy it again")
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}; copy it again") from error
