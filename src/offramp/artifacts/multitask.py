"""Save and load several tasks: a folder of artifacts, one per task, over one backbone.

tasks.json     format, version, a digest of what each task's artifact holds, in the order of the tasks
what/          an artifact as ``save`` writes it: ``load`` and the command line take it as it is
where/         another artifact; only the first holds the backbone, if asked for
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from offramp.artifacts.artifact import Stored, attached, read_stored, save
from offramp.artifacts.manifest import ARTIFACT, pinned, pinned_by
from offramp.core import CostTable, ExitRecords, Frontier, check_arguments, names_of
from offramp.errors import ArtifactError, InputError
from offramp.network import ExitNetwork, check_names
from offramp.storage import atomic_folder, check_replaceable, dump_document, is_file, parse_document, read_as

TASKS_FORMAT = "offramp.tasks"
VERSION = 1
TASKS = "tasks.json"


def save_tasks(
    path: str | Path,
    networks: Mapping[str, ExitNetwork],
    frontiers: Mapping[str, Frontier],
    costs: Mapping[str, CostTable],
    *,
    records: Mapping[str, Mapping[str, ExitRecords]] | None = None,
    include_backbone: bool = False,
) -> None:
    """Write a folder with an artifact per task, whole or not at all; one already there is replaced.

    Args:
        path: of the folder.
        networks: by task, from ``attach_tasks``.
        frontiers: by task.
        costs: by task.
        records: by task, and within a task by name as in ``save``.
        include_backbone: also store the backbone's weights, once.

    Raises:
        InputError: networks that do not share a partition, a task without its frontier or costs, or what
            ``save`` refuses.
        StorageError: the folder cannot be written, is full, or holds something else.
    """
    check_arguments(
        "save_tasks",
        {
            "path": (path, (str, Path)),
            "networks": (networks, Mapping),
            "frontiers": (frontiers, Mapping),
            "costs": (costs, Mapping),
        },
    )
    check_names(networks)
    for kind, given in (("frontier", frontiers), ("costs", costs)):
        if set(given) != set(networks):
            raise InputError(
                f"save_tasks: expected a {kind} for each of {names_of(networks)}, got {names_of(given)}"
            )
    if len({id(net.partition) for net in networks.values()}) > 1:
        raise InputError("save_tasks: expected networks that share their segments, from attach_tasks")
    check_replaceable(Path(path), "a folder of tasks", _replaceable_names)
    digests = dict[str, str]()
    with atomic_folder(Path(path)) as folder:
        for name, net in networks.items():
            save(
                folder / name,
                net,
                frontiers[name],
                costs[name],
                records=(records or {}).get(name),
                include_backbone=include_backbone and not digests,  # with the first task only
            )
            digests[name] = pinned(folder / name)
        document = {"format": TASKS_FORMAT, "version": VERSION, "tasks": digests}
        (folder / TASKS).write_text(dump_document(document), encoding="utf-8")


def load_tasks(
    path: str | Path,
    model: nn.Module,
    *,
    restore_backbone: bool = False,
    input_exits: Mapping[str, Mapping[str, nn.Module]] | None = None,
) -> tuple[dict[str, ExitNetwork], dict[str, Frontier], dict[str, CostTable]]:
    """Read what ``save_tasks`` wrote; the model is traced once.

    Args:
        path: of the folder.
        model: the backbone, with the same weights, in any mode, on any device.
        restore_backbone: first load the weights stored with the first task into ``model``.
        input_exits: by task, the modules that were given as exits at the input, by name.

    Returns:
        Networks, frontiers and costs, each by task; ready for ``MultiEngine``.

    Raises:
        ArtifactError: missing, damaged, of a newer version, or made for another model.
    """
    check_arguments("load_tasks", {"path": (path, (str, Path)), "model": (model, nn.Module)})
    folder, given = Path(path), input_exits or {}
    stored = ARTIFACT.consistent(folder, lambda: _read_stored(folder, restore_backbone))
    unknown = [name for name in given if name not in stored]
    if unknown:
        raise ArtifactError(f"{folder}: input_exits: no task {unknown[0]!r}; it has {names_of(stored)}")
    networks, frontiers, tables = dict[str, ExitNetwork](), dict[str, Frontier](), dict[str, CostTable]()
    parts = None
    for name, each in stored.items():
        net, frontiers[name], tables[name] = attached(
            folder / name, each, model, given.get(name) or {}, parts, every_output=True
        )
        networks[name] = net
        parts = net.partition
    return networks, frontiers, tables


def _read_stored(folder: Path, restore_backbone: bool) -> dict[str, Stored]:
    """What each task's artifact holds; all are those that were saved together."""
    found = dict[str, Stored]()
    for name, digest in _read_tasks(folder).items():
        # only the first holds the weights
        found[name] = read_stored(folder / name, restore_backbone and not found)
        _check_pinned(folder / name, found[name].manifest, digest)
    return found


def _read_tasks(folder: Path) -> dict[str, str]:
    """Digests by task; every manifest has been compared with its one."""
    if not is_file(folder / TASKS):
        raise ArtifactError(f"{folder} holds no {TASKS}; expected a folder from save_tasks, check the path")
    document = read_as(folder / TASKS, lambda text: parse_document(text, TASKS_FORMAT, VERSION))
    tasks = document.get("tasks")
    try:
        check_names(tasks)  # type: ignore[arg-type]  # it checks that too
    except InputError as error:
        raise ArtifactError(f"{folder / TASKS}: {error}; save the tasks again") from None
    for name, digest in tasks.items():  # type: ignore[union-attr]
        _check_pinned(folder / name, ARTIFACT.unchecked(folder / name), digest)
    return dict(tasks)  # type: ignore[arg-type]


def _check_pinned(folder: Path, document: Mapping[str, Any], digest: str) -> None:
    if pinned_by(document) != digest:
        raise ArtifactError(
            f"{folder}: is not what was saved with the other tasks; copy the whole folder again"
        )


def _replaceable_names(folder: Path) -> set[str]:
    """What a folder of tasks holds; an error where one of them holds more than an artifact."""
    tasks = _read_tasks(folder)
    for name in tasks:
        ARTIFACT.check_replaceable(folder / name)
    return {TASKS, *tasks}
