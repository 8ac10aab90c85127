"""Save and load: a folder of safetensors and JSON, versioned and checksummed; nothing in it is executed.

manifest.json          format, version, what is needed to attach the heads again, SHA-256 of every other file
heads.safetensors      weights of the heads
example.safetensors    two samples of inputs to trace the model with, floating-point ones replaced by noise
frontier.json, costs.json, records-NAME.safetensors
backbone.safetensors   only if asked for; else the backbone is referenced by the digest of its weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.artifacts.manifest import (
    ARTIFACT,
    DATA,
    DESCRIPTION,
    RECORDS,
    check_replaceable,
    load_costs,
    load_frontier,
    load_tensors,
    read_manifest,
    write_manifest,
)
from offramp.artifacts.tensors import save_tensors, storable_state
from offramp.core import CostTable, ExitRecords, Frontier, check_arguments
from offramp.errors import ArtifactError, InputError, OfframpError
from offramp.graph import INPUT, Partition, TraceOptions, partition, unwrapped
from offramp.network import ExitNetwork, HeadPlacement, answer_options, model_digest, network_on
from offramp.sources import DataSummary
from offramp.storage import atomic_folder
from offramp.tasks import Task, make_task

BACKBONE = "backbone.safetensors"


def save(
    path: str | Path,
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    *,
    records: Mapping[str, ExitRecords] | None = None,
    include_backbone: bool = False,
    summary: DataSummary | None = None,
) -> None:
    """Write an artifact folder, whole or not at all; an artifact already there is replaced.

    Args:
        path: of the folder.
        net: with trained heads.
        frontier: its configurations.
        costs: its costs.
        records: by name, ``records={"search": ..., "report": ...}``, to search, certify and report again
            later without the model; the commands ``offramp search`` and ``offramp report`` need them.
        include_backbone: also store the backbone's weights.
        summary: what model and data turned out to be, for ``offramp run`` and ``load_predictor``.

    Raises:
        StorageError: the folder cannot be written, is full, or holds something else than an artifact.
        InputError: a name of records is not a plain word; frontier, costs or records are of another network;
            or the backbone to include has state that is not made of tensors.
    """
    check_arguments(
        "save",
        {
            "path": (path, (str, Path)),
            "net": (net, ExitNetwork),
            "frontier": (frontier, Frontier),
            "costs": (costs, CostTable),
        },
    )
    if isinstance(records, ExitRecords):
        raise InputError("save(records=...): expected records by name; give records={'search': records}")
    for name, each in (records or {}).items():
        if not isinstance(each, ExitRecords):
            raise InputError(
                f"save(records=...): expected ExitRecords as {name!r}, got {type(each).__name__}"
            )
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"records: expected plain names such as 'search', got {name!r}")
        if (each.positions, each.heads) != (net.positions, net.head_names):
            raise InputError(
                f"records {name!r}: their positions or heads are not the network's; record again"
            )
    _check_fit(net.positions, net.head_names, frontier, costs)
    check_replaceable(Path(path))
    with atomic_folder(Path(path)) as folder:
        save_tensors(folder / "heads.safetensors", storable_state(net, "a head or an exit at the input"))
        save_tensors(folder / "example.safetensors", _example(net))
        (folder / "frontier.json").write_text(frontier.to_json(), encoding="utf-8")
        (folder / "costs.json").write_text(costs.to_json(), encoding="utf-8")
        for name, each in (records or {}).items():
            each.save(folder / RECORDS.format(name))
        if include_backbone:
            state = storable_state(net.backbone, "the backbone", "; save with include_backbone=False")
            save_tensors(folder / BACKBONE, state)
        found = {} if summary is None else {DATA: summary.to_dict()}
        write_manifest(folder, {**_description(net), **found})


def load(
    path: str | Path,
    model: nn.Module,
    *,
    restore_backbone: bool = False,
    input_exits: Mapping[str, nn.Module] | None = None,
    parts: Partition | None = None,
) -> tuple[ExitNetwork, Frontier, CostTable]:
    """Read an artifact and attach its heads to a model.

    Everything is of one artifact, also where it is replaced by another meanwhile.

    Args:
        path: of the folder.
        model: the backbone it was made for, with the same weights, in any mode, on any device.
        restore_backbone: first load the weights stored in the artifact into ``model``.
        input_exits: the modules that were given as exits at the input, by name, with any weights: they get
            the stored ones. Heads that were trained on the raw input need not be given.
        parts: the model cut already in the same places, for instance another network's ``partition``, to
            share; None traces and cuts the model.

    Returns:
        (network, frontier, costs).

    Raises:
        ArtifactError: missing, damaged, truncated, of a newer version, or made for another model.
    """
    check_arguments("load", {"path": (path, (str, Path)), "model": (model, nn.Module)})
    folder = Path(path)
    return attached(folder, read_stored(folder, restore_backbone), model, input_exits or {}, parts)


@dataclass(frozen=True, eq=False)
class Stored:
    """What an artifact holds, each file compared with one manifest; ``backbone`` only where asked for."""

    manifest: Mapping[str, Any]
    frontier: Frontier
    costs: CostTable
    heads: Mapping[str, Tensor]
    example: Mapping[str, Tensor]
    backbone: Mapping[str, Tensor] | None


def read_stored(folder: Path, restore_backbone: bool) -> Stored:
    """Read an artifact, again where it is replaced meanwhile; ``ArtifactError``: it is damaged or no one."""

    def read() -> Stored:
        manifest = read_manifest(folder)
        if restore_backbone and BACKBONE not in manifest["files"]:
            raise ArtifactError(f"{folder} holds no backbone weights; save with include_backbone=True")
        return Stored(
            manifest=manifest,
            frontier=load_frontier(folder, manifest),
            costs=load_costs(folder, manifest),
            heads=load_tensors(folder, manifest, "heads.safetensors"),
            example=load_tensors(folder, manifest, "example.safetensors"),
            backbone=load_tensors(folder, manifest, BACKBONE) if restore_backbone else None,
        )

    return ARTIFACT.consistent(folder, read)


def attached(
    folder: Path,
    stored: Stored,
    model: nn.Module,
    input_exits: Mapping[str, nn.Module],
    parts: Partition | None,
    every_output: bool = False,
) -> tuple[ExitNetwork, Frontier, CostTable]:
    """What ``load`` returns; ``folder`` is where it was read, for errors.

    With ``every_output`` the model is traced with all it returns, to be shared between tasks.
    """
    model = unwrapped(model)
    _check_backbone(folder, stored, model)
    described = stored.manifest["network"]
    try:  # before any weight of a given module is touched
        _check_fit((INPUT, *described["cuts"]), described["heads"], stored.frontier, stored.costs)
    except InputError as error:
        raise ArtifactError(f"{folder}: its parts do not belong together: {error}") from error
    net = _attach(folder, stored, model, input_exits, parts, every_output)
    return net, stored.frontier, stored.costs


def replace_frontier(path: str | Path, frontier: Frontier) -> None:
    """Put another frontier into an artifact; everything else stays byte for byte.

    An ``ArtifactError`` if it is damaged, an ``InputError`` if the frontier is of another network.
    """
    check_arguments("replace_frontier", {"path": (path, (str, Path)), "frontier": (frontier, Frontier)})
    source = Path(path)
    manifest = read_manifest(source)
    described = manifest["network"]
    _check_fit((INPUT, *described["cuts"]), described["heads"], frontier, load_costs(source, manifest))
    with atomic_folder(source) as folder:
        ARTIFACT.copy_files(source, folder, manifest)
        (folder / "frontier.json").write_text(frontier.to_json(), encoding="utf-8")
        write_manifest(folder, {key: manifest[key] for key in (*DESCRIPTION, DATA) if key in manifest})
        ARTIFACT.copy_strangers(source, folder, manifest)


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
        few = example[name] = value[:2]
        if few.dtype.is_floating_point:
            example[name] = torch.randn(few.shape, generator=generator).to(few.dtype)
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
            "kinds": [[p, c, net.kind(p, c)] for p, c, _ in net.exits()],
            "task_options": net.task.options(),
            "input_layout": None if net.specs[0] is None else net.specs[0].layout,
            "mask": None if net.mask_input is None else spec.names[net.mask_input],
        },
        "inputs": {"names": list(spec.names), "keyword": spec.keyword},
    }


def _check_backbone(folder: Path, stored: Stored, model: nn.Module) -> None:
    """Refuse another backbone than the artifact's; where weights were read, give it those first."""
    weights, own = stored.backbone, model.state_dict()
    if weights is not None:
        wrong = sorted(key for key in weights.keys() | own.keys() if _kind(weights, key) != _kind(own, key))
        if wrong:  # seen before anything is loaded: the model stays as it was
            raise ArtifactError(
                f"{folder}: the stored backbone does not fit this {type(model).__qualname__}: {wrong[0]!r} "
                f"is {_kind(weights, wrong[0])} in the artifact and {_kind(own, wrong[0])} in the model"
            )
        model.load_state_dict(weights)
    backbone, got = stored.manifest["backbone"], model_digest(model)
    if backbone["digest"] != got:
        there = BACKBONE in stored.manifest["files"]
        hint = "pass restore_backbone=True" if there else "load the weights that it was built with"
        raise ArtifactError(
            f"{folder} was made for another model: expected a {backbone['class']} with weights "
            f"{backbone['digest'][:12]}, got a {type(model).__qualname__} with {got[:12]}; {hint}"
        )


def _kind(state: Mapping[str, Any], name: str) -> str:
    value = state.get(name)
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _cut(folder: Path, stored: Stored, model: nn.Module, task: Task | None) -> Partition:
    """The model, traced with the stored example and cut where it was."""
    described, inputs = stored.manifest["network"], stored.manifest["inputs"]
    if set(stored.example) != set(inputs["names"]):
        raise ArtifactError(f"{folder}: expected examples of {inputs['names']}, got {sorted(stored.example)}")
    state = (*model.parameters(), *model.buffers())
    device = state[0].device if state else torch.device("cpu")
    example: Any = {name: stored.example[name].to(device) for name in inputs["names"]}
    called = example if inputs["keyword"] else tuple(example.values())
    options = TraceOptions()
    if task is not None:
        options = answer_options(task, described["output"], task.activation, described.get("mask"))
    return partition(model, called, cuts=described["cuts"], layouts=described["layouts"], options=options)


def _attach(
    folder: Path,
    stored: Stored,
    model: nn.Module,
    input_exits: Mapping[str, nn.Module],
    parts: Partition | None,
    every_output: bool,
) -> ExitNetwork:
    described = stored.manifest["network"]
    if "kinds" not in described:
        raise ArtifactError(f"{folder}: made by a version whose heads were others; build it again")
    if parts is not None and {cut.name: cut.layout for cut in parts.cuts} != described["layouts"]:
        raise ArtifactError(
            f"{folder}: parts: the model is cut in other places than the artifact's; leave it out"
        )
    try:
        heads, at_input = _placed(folder, described, input_exits)
        task = make_task(described["task"], **described.get("task_options", {}))
        net = network_on(
            _cut(folder, stored, model, None if every_output else task) if parts is None else parts,
            heads=heads,
            task=task,
            confidence=described["confidence"],
            output=described["output"],
            input_layout=described.get("input_layout"),
            input_exits=at_input,
            mask=described.get("mask"),
        )
        net.load_state_dict(stored.heads)
    except ArtifactError:
        raise
    except (OfframpError, RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise ArtifactError(f"{folder}: its heads do not fit this model: {error}") from error
    if net.head_names != tuple(described["heads"]):
        raise ArtifactError(
            f"{folder}: expected heads {', '.join(described['heads'])}, got {', '.join(net.head_names)}; "
            "it was changed, or made by another version: build it again"
        )
    return net.eval()


def _placed(
    folder: Path, described: Mapping[str, Any], given: Mapping[str, nn.Module]
) -> tuple[HeadPlacement, dict[str, nn.Module | str]]:
    """Which kinds sit where, and the exits at the input, with the modules that were given for them."""
    at_input = {described["heads"][c]: kind for p, c, kind in described["kinds"] if p == 0}
    wanted = {name for name, kind in at_input.items() if kind is None}
    if set(given) != wanted:
        names = ", ".join(sorted(wanted)) or "none"
        raise ArtifactError(
            f"{folder}: expected input exits {names}, got {', '.join(sorted(given)) or 'none'}; "
            "pass them as input_exits={name: module}"
        )
    inner = tuple(name for name in described["heads"] if name not in at_input)
    placement = HeadPlacement(inner, {(p, c): kind for p, c, kind in described["kinds"] if p})
    return placement, {name: given[name] if kind is None else kind for name, kind in at_input.items()}
