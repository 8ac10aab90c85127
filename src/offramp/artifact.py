"""Save and load: a folder of safetensors and JSON, versioned, checksummed, no pickle, nothing in it is executed.

manifest.json          format, version, what is needed to attach the heads again, SHA-256 of every other file
heads.safetensors      weights of the heads
example.safetensors    inputs to trace the model with (floating-point ones replaced by noise)
frontier.json, costs.json, records-NAME.safetensors
backbone.safetensors   only if asked for; else the backbone is referenced by the digest of its weights
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp._files import beside, canonical, file_digest, flush, read_text, storage_errors
from offramp.config import Frontier, parse_document
from offramp.cost import CostTable
from offramp.errors import ArtifactError, InputError, OfframpError, StorageError
from offramp.network import ExitNetwork, attach_exits
from offramp.records import ExitRecords
from offramp.state import model_digest

ARTIFACT_FORMAT = "offramp.artifact"
VERSION = 1
MANIFEST = "manifest.json"
_RECORDS = "records-{}.safetensors"


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
        InputError: a name of records is not a plain word.
    """
    for name in records or {}:
        if not name.isidentifier():
            raise InputError(f"records: expected plain names such as 'search', got {name!r}")
    with _whole_folder(Path(path)) as folder:
        _save_tensors(folder / "heads.safetensors", net.state_dict())
        _save_tensors(folder / "example.safetensors", _example(net))
        (folder / "frontier.json").write_text(frontier.to_json(), encoding="utf-8")
        (folder / "costs.json").write_text(costs.to_json(), encoding="utf-8")
        for name, each in (records or {}).items():
            each.save(folder / _RECORDS.format(name))
        if include_backbone:
            _save_tensors(folder / "backbone.safetensors", net.backbone.state_dict())
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
    document = parse_document(read_text(folder / MANIFEST), ARTIFACT_FORMAT, VERSION)
    claimed = document.pop("sha256", None)
    if hashlib.sha256(canonical(document).encode()).hexdigest() != claimed:
        raise ArtifactError(
            f"{folder / MANIFEST}: does not match its checksum; it was changed, copy the folder again"
        )
    for name, entry in document["files"].items():
        _check_file(folder, name, entry)
    return document


def load_frontier(folder: Path, manifest: Mapping[str, Any]) -> Frontier:
    """The artifact's configurations."""
    return Frontier.from_json(_text(folder, manifest, "frontier.json"))


def load_costs(folder: Path, manifest: Mapping[str, Any]) -> CostTable:
    """The artifact's costs."""
    return CostTable.from_json(_text(folder, manifest, "costs.json"))


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
        StorageError: it cannot be written.
    """
    source = Path(path)
    manifest = read_manifest(source)
    with _whole_folder(source) as folder:
        for name in manifest["files"]:
            shutil.copyfile(source / name, folder / name)
        (folder / "frontier.json").write_text(frontier.to_json(), encoding="utf-8")
        _write_manifest(folder, {key: manifest[key] for key in ("backbone", "network", "inputs")})


@contextmanager
def _whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that takes the final name only when it is complete."""
    final = final.absolute()
    if final.exists() and not _replaceable(final):
        raise StorageError(f"{final} exists and is not an artifact; choose another folder or remove it")
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(final)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                flush(file)
            _swap(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))


def _swap(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
        return
    old = beside(final)
    final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # copies: tied weights share storage, which the format refuses
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, path)


def _example(net: ExitNetwork) -> dict[str, Tensor]:
    """Inputs to trace with. Real values of a user's data do not belong in a file that is passed on."""
    generator = torch.Generator().manual_seed(0)
    example = {}
    for name, value in zip(net.partition.spec.names, net.partition.flow.trace.example, strict=True):
        noise = torch.randn(value.shape, generator=generator) if value.dtype.is_floating_point else value[:2]
        example[name] = noise[:2].to(value.dtype)
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


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(f"{folder}: {name!r} is missing; copy the whole folder again")
    if path.stat().st_size != entry["bytes"]:
        raise ArtifactError(
            f"{path}: expected {entry['bytes']} bytes, got {path.stat().st_size}; it is truncated, copy it again"
        )
    if file_digest(path) != entry["sha256"]:
        raise ArtifactError(f"{path}: does not match its checksum; it was changed or damaged, copy it again")


def _text(folder: Path, manifest: Mapping[str, Any], name: str) -> str:
    if name not in manifest["files"]:
        raise ArtifactError(f"{folder}: {name!r} is missing from the manifest; build the artifact again")
    return read_text(folder / name)


def _tensors(folder: Path, manifest: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    if name not in manifest["files"]:
        raise ArtifactError(f"{folder}: {name!r} is missing from the manifest; build the artifact again")
    try:
        return load_file(folder / name)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{folder / name}: not a whole safetensors file ({error}); copy it again"
        ) from error


def _restore(folder: Path, manifest: Mapping[str, Any], model: nn.Module) -> None:
    if "backbone.safetensors" not in manifest["files"]:
        raise ArtifactError(f"{folder} holds no backbone weights; save with include_backbone=True")
    try:
        model.load_state_dict(_tensors(folder, manifest, "backbone.safetensors"))
    except RuntimeError as error:
        raise ArtifactError(f"the stored backbone does not fit {type(model).__name__}: {error}") from error


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
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
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
    except (OfframpError, RuntimeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder}: its heads do not fit this model: {error}") from error
    return net.eval()
