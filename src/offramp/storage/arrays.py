"""Named arrays and JSON meta data in one safetensors file, with a digest over the whole content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save_file

from offramp.errors import ArtifactError
from offramp.storage.atomic import atomic_write, is_file
from offramp.storage.documents import canonical, parse_document

Arrays = Mapping[str, npt.NDArray[Any]]


def arrays_digest(arrays: Arrays, meta: str) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in order of name, and the meta text."""
    state = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def save_arrays(path: Path, arrays: Arrays, kind: str, version: int, meta: Mapping[str, Any]) -> None:
    """Write arrays and plain JSON meta data as one safetensors file with a digest."""
    document: dict[str, Any] = {"format": kind, "version": version, "meta": dict(meta)}
    native = {name: np.array(a, a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()}
    document["sha256"] = arrays_digest(native, canonical(document))
    with atomic_write(path) as temporary:
        # one key only: safetensors writes several in no fixed order, and equal content must give equal bytes
        save_file(native, temporary, {"offramp": canonical(document)})


def load_arrays(path: Path, kind: str, newest: int) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """What ``save_arrays`` wrote: (arrays, meta).

    An ``ArtifactError`` if it is missing, truncated, changed, of another kind or of a newer version.
    """
    if not is_file(path):
        raise ArtifactError(f"expected a file at {path}, found none; check the path")
    with _unreadable(path), safe_open(path, framework="numpy") as stream:
        header = stream.metadata() or {}
        arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    return _checked(path, arrays, header, kind, newest)


def parse_arrays(
    path: Path, content: bytes, kind: str, newest: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """``load_arrays`` of the bytes of a file that has been read; ``path`` is where, for errors."""
    with _unreadable(path):
        arrays = load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return _checked(path, arrays, header, kind, newest)


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: not a whole safetensors file ({error}); copy or write it again"
        ) from error


def _checked(
    path: Path, arrays: dict[str, npt.NDArray[Any]], header: Mapping[str, str], kind: str, newest: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    if "offramp" not in header:
        raise ArtifactError(
            f"{path}: expected a file written by offramp ({kind}), got another safetensors file"
        )
    try:
        document = parse_document(header["offramp"], kind, newest, finite=True)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; copy it again or write it anew") from error
    claimed = document.pop("sha256", None)
    if arrays_digest(arrays, canonical(document)) != claimed:
        raise ArtifactError(
            f"{path}: its content does not match its checksum; it was changed or damaged, copy it again"
        )
    if not isinstance(document.get("meta"), dict):
        raise ArtifactError(f"{path}: expected meta data, got {document.get('meta')!r}; write it again")
    return arrays, document["meta"]
