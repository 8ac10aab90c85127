"""The manifest of an artifact: what it holds, and the SHA-256 of every file; nothing is read unchecked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from offramp.core import CostTable, ExitRecords, Frontier
from offramp.errors import ArtifactError
from offramp.storage import canonical, file_digest, parse_document, read_text

ARTIFACT_FORMAT = "offramp.artifact"
VERSION = 2
MANIFEST = "manifest.json"
RECORDS = "records-{}.safetensors"
_FIELDS: dict[str, dict[str, Any]] = {  # sections of the manifest; [str] is a list of strings
    "backbone": {"digest": str, "class": str},
    "network": {
        "cuts": [str], "layouts": dict, "heads": [str], "task": str, "confidence": str,
        "output": (str, int, type(None)),
    },
    "inputs": {"names": [str], "keyword": bool},
}  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest, and every file it names.

    Raises:
        ArtifactError: missing, damaged, truncated or of a newer version.
    """
    if not folder.is_dir():
        raise ArtifactError(f"expected an artifact folder at {folder}, found none; check the path")
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}; check the path")
    with _about(folder / MANIFEST):
        document = parse_document(read_text(folder / MANIFEST), ARTIFACT_FORMAT, VERSION)
    claimed = document.pop("sha256", None)
    if hashlib.sha256(canonical(document).encode()).hexdigest() != claimed:
        raise ArtifactError(
            f"{folder / MANIFEST}: does not match its checksum; it was changed, copy the folder again"
        )
    _check_fields(folder, document)
    for name, entry in document["files"].items():
        _check_file(folder, name, entry)
    return document


def pinned(folder: Path) -> str:
    """SHA-256 of what an artifact keeps when its frontier is replaced: backbone, network, inputs, heads.

    Raises:
        ArtifactError: the manifest is missing or damaged.
    """
    with _about(folder / MANIFEST):
        document = parse_document(read_text(folder / MANIFEST), ARTIFACT_FORMAT, VERSION)
    kept = {key: document.get(key) for key in ("backbone", "network", "inputs")}
    files = document.get("files")
    kept["heads"] = files.get("heads.safetensors") if isinstance(files, dict) else None
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def load_frontier(folder: Path, manifest: Mapping[str, Any]) -> Frontier:
    """The artifact's configurations."""
    path = _path(folder, manifest, "frontier.json")
    with _about(path):
        return Frontier.from_json(read_text(path))


def load_costs(folder: Path, manifest: Mapping[str, Any]) -> CostTable:
    """The artifact's costs."""
    path = _path(folder, manifest, "costs.json")
    with _about(path):
        return CostTable.from_json(read_text(path))


def load_records(folder: Path, manifest: Mapping[str, Any], name: str) -> ExitRecords:
    """Records stored under a name.

    Raises:
        ArtifactError: there are none.
    """
    file = RECORDS.format(name)
    if file not in manifest["files"]:
        raise ArtifactError(f"{folder} holds no {name} records; build it again with a {name!r} split")
    return ExitRecords.load(folder / file)


def write_manifest(folder: Path, description: Mapping[str, Any]) -> None:
    """Describe a folder and every other file in it."""
    names = sorted(file.name for file in folder.iterdir() if file.name != MANIFEST)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
        for name in names
    }
    document = {"format": ARTIFACT_FORMAT, "version": VERSION, **description, "files": files}
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _check_fields(folder: Path, document: Mapping[str, Any]) -> None:
    for section, fields in _FIELDS.items():
        for field, kind in fields.items():
            found = document.get(section)
            if not isinstance(found, dict) or field not in found or not _is(found[field], kind):
                raise ArtifactError(
                    f"{folder / MANIFEST}: {section}.{field} is missing or wrong; build it again"
                )
    files = document.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise ArtifactError(f"{folder / MANIFEST}: its list of files is missing or wrong; build it again")


def _is(value: object, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(isinstance(item, kind[0]) for item in value)
    return isinstance(value, kind)


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(f"{folder}: {name!r} is missing; copy the whole folder again")
    wanted, got = entry.get("bytes"), path.stat().st_size
    if wanted != got:
        raise ArtifactError(f"{path}: expected {wanted} bytes, got {got}; it is not whole, copy it again")
    if file_digest(path) != entry.get("sha256"):
        raise ArtifactError(f"{path}: does not match its checksum; it was changed or damaged, copy it again")


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Name the file in errors of what was read from it."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; copy or build the artifact again") from error


def _path(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    if name not in manifest["files"]:
        raise ArtifactError(f"{folder}: {name!r} is missing from the manifest; build the artifact again")
    return folder / name


def load_tensors(folder: Path, manifest: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """A safetensors file of the artifact.

    Raises:
        ArtifactError: the manifest does not name it, or it is damaged.
    """
    path = _path(folder, manifest, name)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
