"""Save and load: a folder of safetensors and JSON, versioned and checksummed; nothing in it is executed.

manifest.json          format, version, what is needed to attach the heads again, SHA-256 of every other file
heads.safetensors      weights of the heads
example.safetensors    two samples of inputs to trace the model with, floating-point ones replaced by noise
frontier.json, costs.json, records-NAME.safetensors
backbone.safetensors   only if asked for; else the backbone is referenced by the digest of its weights
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from offramp._files import (
    canonical,
    file_digest,
    parse_document,
    read_text,
    storage_errors,
    whole_folder,
)
from offramp.config import Frontier
from offramp.cost import CostTable
from offramp.errors import ArtifactError, InputError, OfframpError, StorageError
from offramp.network import ExitNetwork, attach_exits
from offramp.partition import INPUT
from offramp.records import ExitRecords
from offramp.state import model_digest, plain_state, save_tensors

ARTIFACT_FORMAT = "offramp.artifact"
VERSION = 1
MANIFEST = "manifest.json"
_RECORDS = "records-{}.safetensors"
_FIELDS: dict[str, dict[str, Any]] = {  # sections of the manifest; [str] is a list of strings
    "backbone": {"digest": str, "class": str},
    "network": {
        "cuts": [str], "layouts": dict, "heads": [str], "task": str, "confidence": str,
        "output": (str, int, type(None)),
    },
    "inputs": {"names": [str], "keyword": bool},
}  # fmt: skip


def save(
    path: str | Path,
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    *,
    records: Mapping[str, ExitRecords] | None = None,
    include_backbone: bool = False,
) -> None:
    """Write an artifact folder, whole or not at all; an artifact already there is replaced.

    Args:
        path: of the folder.
        net: with trained heads.
        frontier: its configurations.
        costs: its costs.
        records: by name ("search", "report"), to search and report again later without the model.
        include_backbone: also store the backbone's weights.

    Raises:
        StorageError: the folder cannot be written, is full, or holds something else than an artifact.
        InputError: a name of records is not a plain word; frontier, costs or records are of another network;
            or the backbone to include has state that is not made of tensors.
    """
    for name, each in (records or {}).items():
        if not name.isidentifier():
            raise InputError(f"records: expected plain names such as 'search', got {name!r}")
        if (each.positions, each.heads) != (net.positions, net.head_names):
            raise InputError(
                f"records {name!r}: their positions or heads are not the network's; record again"
            )
    _check_fit(net.positions, net.head_names, frontier, costs)
    with _replacing(Path(path)) as folder:
        save_tensors(folder / "heads.safetensors", net.state_dict())
        save_tensors(folder / "example.safetensors", _example(net))
        (folder / "frontier.json").write_text(frontier.to_json(), encoding="utf-8")
        (folder / "costs.json").write_text(costs.to_json(), encoding="utf-8")
        for name, each in (records or {}).items():
            each.save(folder / _RECORDS.format(name))
        if include_backbone:
            save_tensors(folder / "backbone.safetensors", plain_state(net.backbone))
        _write_manifest(folder, _description(net))


def load(
    path: str | Path, model: nn.Module, *, restore_backbone: bool = False
) -> tuple[ExitNetwork, Frontier, CostTable]:
    """Read an artifact and attach its heads to a model.

    Args:
        path: of the folder.
        model: the backbone it was made for, with the same weights, in any mode, on any device.
        restore_backbone: first load the weights stored in the artifact into ``model``.

    Returns:
        (network, frontier, costs).

    Raises:
        ArtifactError: missing, damaged, truncated, of a newer version, or made for another model.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if restore_backbone:
        _restore(folder, manifest, model)
    _check_backbone(folder, manifest, model)
    net = _attach(folder, manifest, model)
    frontier, costs = load_frontier(folder, manifest), load_costs(folder, manifest)
    try:
        _check_fit(net.positions, net.head_names, frontier, costs)
    except InputError as error:
        raise ArtifactError(f"{folder}: its parts do not belong together: {error}") from error
    return net, frontier, costs


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
    file = _RECORDS.format(name)
    if file not in manifest["files"]:
        raise ArtifactError(f"{folder} holds no {name} records; build it again with a {name!r} split")
    return ExitRecords.load(folder / file)


def replace_frontier(path: str | Path, frontier: Frontier) -> None:
    """Put another frontier into an artifact; everything else stays byte for byte.

    Raises:
        ArtifactError: the artifact is damaged.
        InputError: the frontier is of another network.
        StorageError: it cannot be written.
    """
    source = Path(path)
    manifest = read_manifest(source)
    described = manifest["network"]
    _check_fit((INPUT, *described["cuts"]), described["heads"], frontier, load_costs(source, manifest))
    with _replacing(source) as folder:
        for name in manifest["files"]:
            shutil.copyfile(source / name, folder / name)
        (folder / "frontier.json").write_text(frontier.to_json(), encoding="utf-8")
        _write_manifest(folder, {key: manifest[key] for key in ("backbone", "network", "inputs")})


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    check_replaceable(path)
    with whole_folder(path) as folder:
        yield folder


def check_replaceable(path: Path) -> None:
    """Find out whether ``save`` would refuse a path; worth asking before long work.

    Raises:
        StorageError: something else than an artifact is there.
    """
    with storage_errors(path):
        objection = _objection(path)
    if objection:
        raise StorageError(f"{path} {objection}; choose another folder or remove it")


def _objection(folder: Path) -> str:
    """Why a path must not be replaced; empty where nothing is there, or an artifact and nothing else."""
    if not folder.exists():
        return ""
    if not folder.is_dir():
        return "is a file"
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return ""
    try:
        document = parse_document(read_text(folder / MANIFEST), ARTIFACT_FORMAT, VERSION)
        strange = sorted(names - {MANIFEST, *document["files"]})
    except (ArtifactError, KeyError, TypeError):
        return "exists and is not an artifact"
    return f"holds more than an artifact: {', '.join(strange)}" if strange else ""


def _check_fit(positions: Sequence[str], heads: Sequence[str], frontier: Frontier, costs: CostTable) -> None:
    shape = (len(positions), len(heads))
    if costs.heads.shape != shape:
        raise InputError(
            f"costs: expected {shape[0]} positions and {shape[1]} heads as in the network, "
            f"got {costs.heads.shape[0]} and {costs.heads.shape[1]}; measure them again"
        )
    for config in (*frontier, *frontier.by_tradeoff.values()):
        for choice in config.choices:
            if choice.position not in positions or choice.head not in heads:
                raise InputError(
                    f"frontier: the network has no head {choice.head!r} at {choice.position!r}; search again"
                )


def _example(net: ExitNetwork) -> dict[str, Tensor]:
    """Inputs to trace with. Real values of a user's data do not belong in a file that is passed on."""
    generator = torch.Generator().manual_seed(0)
    example = {}
    for name, value in zip(net.partition.spec.names, net.partition.flow.trace.example, strict=True):
        few = value[:2]
        noisy = few.dtype.is_floating_point
        example[name] = torch.randn(few.shape, generator=generator).to(few.dtype) if noisy else few
    return example


def _description(net: ExitNetwork) -> dict[str, Any]:
    spec, cuts = net.partition.spec, net.partition.cuts
    return {
        "backbone": {"digest": model_digest(net.backbone), "class": type(net.backbone).__qualname__},
        "network": {
            "cuts": [cut.name for cut in cuts],
            "layouts": {cut.name: cut.layout for cut in cuts},
            "heads": list(net.head_names),
            "task": net.task.name,
            "confidence": net.confidence,
            "output": net.output,
        },
        "inputs": {"names": list(spec.names), "keyword": spec.keyword},
    }


def _write_manifest(folder: Path, description: Mapping[str, Any]) -> None:
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


def _tensors(folder: Path, manifest: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    path = _path(folder, manifest, name)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def _restore(folder: Path, manifest: Mapping[str, Any], model: nn.Module) -> None:
    if "backbone.safetensors" not in manifest["files"]:
        raise ArtifactError(f"{folder} holds no backbone weights; save with include_backbone=True")
    stored, own = _tensors(folder, manifest, "backbone.safetensors"), model.state_dict()
    wrong = sorted(name for name in stored.keys() | own.keys() if _kind(stored, name) != _kind(own, name))
    if wrong:  # seen before anything is loaded: the model stays as it was
        raise ArtifactError(
            f"{folder}: the stored backbone does not fit this {type(model).__qualname__}: {wrong[0]!r} is "
            f"{_kind(stored, wrong[0])} in the artifact and {_kind(own, wrong[0])} in the model"
        )
    model.load_state_dict(stored)


def _kind(state: Mapping[str, Any], name: str) -> str:
    value = state.get(name)
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_backbone(folder: Path, manifest: Mapping[str, Any], model: nn.Module) -> None:
    wanted, got = manifest["backbone"]["digest"], model_digest(model)
    if wanted != got:
        stored = "backbone.safetensors" in manifest["files"]
        hint = "pass restore_backbone=True" if stored else "load the weights that it was built with"
        raise ArtifactError(
            f"{folder} was made for another model: expected a {manifest['backbone']['class']} with weights "
            f"{wanted[:12]}, got a {type(model).__qualname__} with {got[:12]}; {hint}"
        )


def _attach(folder: Path, manifest: Mapping[str, Any], model: nn.Module) -> ExitNetwork:
    described, inputs = manifest["network"], manifest["inputs"]
    stored = _tensors(folder, manifest, "example.safetensors")
    if set(stored) != set(inputs["names"]):
        raise ArtifactError(f"{folder}: expected examples of {inputs['names']}, got {sorted(stored)}")
    state = (*model.parameters(), *model.buffers())
    device = state[0].device if state else torch.device("cpu")
    example: Any = {name: stored[name].to(device) for name in inputs["names"]}
    try:
        net = attach_exits(
            model,
            example if inputs["keyword"] else tuple(example.values()),
            heads=described["heads"],
            cuts=described["cuts"],
            task=described["task"],
            confidence=described["confidence"],
            output=described["output"],
            layouts=described["layouts"],
        )
        net.load_state_dict(_tensors(folder, manifest, "heads.safetensors"))
    except ArtifactError:
        raise
    except (OfframpError, RuntimeError) as error:
        raise ArtifactError(f"{folder}: its heads do not fit this model: {error}") from error
    return net.eval()
