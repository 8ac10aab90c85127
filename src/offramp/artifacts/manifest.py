"""The manifest of an artifact: what it holds, and what of that is read without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.artifacts.tensors import parse_tensors
from offramp.core import CostTable, ExitRecords, Frontier
from offramp.errors import ArtifactError
from offramp.sources import DataSummary
from offramp.storage import FolderFormat, content, document_digest, text_content

ARTIFACT = FolderFormat(
    what="an artifact", name="offramp.artifact", version=2, made_by="offramp build", sort_keys=True
)
RECORDS = "records-{}.safetensors"
DESCRIPTION = ("backbone", "network", "inputs")
DATA = "data"
"""Section of the manifest: what was found in model and data, where somebody looked."""
_FIELDS: dict[str, dict[str, Any]] = {  # sections of the manifest; [str] is a list of strings
    "backbone": {"digest": str, "class": str},
    "network": {
        "cuts": [str], "layouts": dict, "heads": [str], "task": str, "confidence": str,
        "output": (str, int, type(None)),
    },
    "inputs": {"names": [str], "keyword": bool},
}  # fmt: skip

check_replaceable = ARTIFACT.check_replaceable
write_manifest = ARTIFACT.write


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; it and every file it names are checked (``ArtifactError``)."""
    document = ARTIFACT.read(folder)
    for section, fields in _FIELDS.items():
        found = document.get(section)
        for field, kind in fields.items():
            if not isinstance(found, dict) or field not in found or not _is(found[field], kind):
                raise ArtifactError(
                    f"{folder}: {section}.{field} of its manifest is missing or wrong; build it again"
                )
    return document


def pinned(folder: Path) -> str:
    """SHA-256 of what an artifact keeps when its frontier is replaced: backbone, network, inputs, heads."""
    return pinned_by(ARTIFACT.unchecked(folder))


def pinned_by(document: Mapping[str, Any]) -> str:
    """``pinned`` of an artifact with this manifest."""
    kept = {key: document.get(key) for key in DESCRIPTION}
    return document_digest({**kept, "heads": document["files"].get("heads.safetensors")})


def load_summary(folder: Path, manifest: Mapping[str, Any]) -> DataSummary | None:
    """What a build found in its model and data; None where nobody looked. ``ArtifactError``: damaged."""
    if DATA not in manifest:
        return None
    try:
        return DataSummary.from_dict(manifest[DATA])
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error}; build it again") from error


def load_frontier(folder: Path, manifest: Mapping[str, Any]) -> Frontier:
    """The artifact's configurations; an ``ArtifactError`` if there are none, or they are damaged."""
    _check_listed(folder, manifest, "frontier.json")
    return text_content(folder, manifest, "frontier.json", Frontier.from_json)


def load_costs(folder: Path, manifest: Mapping[str, Any]) -> CostTable:
    """The artifact's costs; an ``ArtifactError`` if there are none, or they are damaged."""
    _check_listed(folder, manifest, "costs.json")
    return text_content(folder, manifest, "costs.json", CostTable.from_json)


def load_records(folder: Path, manifest: Mapping[str, Any], name: str) -> ExitRecords:
    """Records stored under a name; an ``ArtifactError`` if there are none."""
    file = RECORDS.format(name)
    if file not in manifest["files"]:
        raise ArtifactError(
            f"{folder} holds no {name} records; build it again with a {name!r} split, or save it with "
            f"offramp.save(..., records={{{name!r}: ...}})"
        )
    return ExitRecords.parse(folder / file, content(folder, manifest, file))


def load_tensors(folder: Path, manifest: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The tensors of a file that the manifest must name."""
    _check_listed(folder, manifest, name)
    return parse_tensors(folder / name, content(folder, manifest, name))


def _check_listed(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    if name not in manifest["files"]:
        raise ArtifactError(f"{folder}: {name!r} is missing from the manifest; build the artifact again")


def _is(value: object, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(isinstance(item, kind[0]) for item in value)
    return isinstance(value, kind)
