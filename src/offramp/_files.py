"""Files that are whole or absent: written beside, flushed, renamed; read with their checksum.

with whole_file(path) as temporary: ...                # renamed to path only if the block succeeds
with whole_folder(path) as temporary: ...              # likewise
save_arrays(path, arrays, kind, version, meta)         # safetensors, with a digest over its content
arrays, meta = load_arrays(path, kind, newest)         # refuses anything that differs
dump_document(document); parse_document(text, ...)     # versioned JSON both ways
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from offramp.errors import ArtifactError, InputError, StorageError

Arrays = Mapping[str, npt.NDArray[Any]]


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a ``StorageError`` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {_advice(error)}") from error
    except SafetensorError as error:  # the safetensors writer reports I/O errors as text
        raise StorageError(f"cannot write {path}: {error}; check free space and permissions") from error


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the device; free some or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission; choose a folder you may write to"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return "a file is where a folder is expected, or the reverse; choose another path"
    return error.strerror or str(error)


def beside(path: Path) -> Path:
    """A fresh name in the same folder, so that a rename onto ``path`` is atomic.

    Raises:
        StorageError: the path has no name of its own ("", ".", "/").
    """
    if not path.name:
        raise StorageError(f"cannot write {str(path)!r}: expected a path that ends in a name")
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is flushed to disk and renamed to ``path``, else removed.

    Raises:
        StorageError: the folder cannot be written or is full.
    """
    temporary = beside(path)
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
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it takes the place of ``path`` and what was there, else it goes.

    Raises:
        StorageError: the folder cannot be written or is full.
    """
    with storage_errors(path):
        final = path.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(final)
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                flush(file)
            _swap(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, final: Path) -> None:
    old = beside(final)
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
    """Write a text file, whole or not at all.

    Raises:
        InputError: the text holds half a surrogate pair, which UTF-8 has no bytes for.
        StorageError: the folder cannot be written or is full.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"cannot write {path}: expected text that is valid Unicode ({error})") from error
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        ArtifactError: it is missing, unreadable or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"expected a file at {path}, found none; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        ArtifactError: it is missing or unreadable.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}; copy it again") from error


def arrays_digest(arrays: Arrays, meta: str) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in order of name, and the meta text."""
    state = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def save_arrays(path: Path, arrays: Arrays, kind: str, version: int, meta: Mapping[str, Any]) -> None:
    """Write arrays and JSON meta data as one safetensors file with a digest.

    Raises:
        InputError: ``meta`` holds something that JSON has no value for.
        StorageError: the folder cannot be written or is full.
    """
    document: dict[str, Any] = {"format": kind, "version": version, "meta": dict(meta)}
    native = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in native.items()}
    document["sha256"] = arrays_digest(native, canonical(document))
    with whole_file(path) as temporary:
        # one key only: safetensors writes several in no fixed order, and equal content must give equal bytes
        save_file(native, temporary, {"offramp": canonical(document)})


def canonical(document: Mapping[str, Any]) -> str:
    """JSON text with sorted keys: equal documents give equal text.

    Raises:
        InputError: a value is not a plain, finite JSON value.
    """
    return _json(document, sort_keys=True)


def dump_document(document: Mapping[str, Any]) -> str:
    """JSON text for people to read, in the document's own order.

    Raises:
        InputError: a value is not a plain, finite JSON value.
    """
    return _json(document, indent=1) + "\n"


def _json(document: Mapping[str, Any], **options: Any) -> str:
    try:
        return json.dumps(document, allow_nan=False, **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"meta: expected plain JSON values, got one that is not ({error})") from error


def parse_document(text: str, wanted: str, newest: int) -> dict[str, Any]:
    """Parse a versioned JSON document of ours.

    Raises:
        ArtifactError: not JSON, of another format, or of a version this release does not know.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for integers of absurd length
        raise ArtifactError(f"expected an {wanted} document, got text that is not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != wanted:
        found = document.get("format") if isinstance(document, dict) else None
        raise ArtifactError(f"expected an {wanted} document, got format {found!r}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtifactError(f"{wanted}: expected a version number, got {version!r}")
    if version > newest:
        raise ArtifactError(
            f"{wanted}: version {version} is newer than this release reads ({newest}); upgrade offramp"
        )
    return document


def load_arrays(path: Path, kind: str, newest: int) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read what ``save_arrays`` wrote: (arrays, meta).

    Raises:
        ArtifactError: missing, truncated, changed, of another kind or of a newer version.
    """
    if not path.is_file():
        raise ArtifactError(f"expected a file at {path}, found none; check the path")
    try:
        with safe_open(path, framework="numpy") as stream:
            header = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: not a whole safetensors file ({error}); copy or write it again"
        ) from error
    if "offramp" not in header:
        raise ArtifactError(
            f"{path}: expected a file written by offramp ({kind}), got another safetensors file"
        )
    document = parse_document(header["offramp"], kind, newest)
    claimed = document.pop("sha256", None)
    if arrays_digest(arrays, canonical(document)) != claimed:
        raise ArtifactError(
            f"{path}: its content does not match its checksum; it was changed or damaged, copy it again"
        )
    if not isinstance(document.get("meta"), dict):
        raise ArtifactError(f"{path}: expected meta data, got {document.get('meta')!r}; write it again")
    return arrays, document["meta"]
