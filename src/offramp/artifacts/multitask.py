"""Save and load several tasks: a folder of artifacts, one per task, over one backbone.

tasks.json     format, version, a digest of what each task's artifact holds, in the order of the tasks
what/          an artifact as ``save`` writes it: ``load`` and the command line take it as it is
where/         likewise; only the first holds the backbone, if asked for
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from offramp.artifacts.artifact import check_replaceable, load, names_in, save
from offramp.artifacts.manifest import pinned
from offramp.core import CostTable, ExitRecords, Frontier, names_of
from offramp.errors import ArtifactError, InputError, StorageError
from offramp.network import ExitNetwork, check_names
from offramp.storage import atomic_folder, dump_document, parse_document, read_text, storage_errors

TASKS_FORMAT = "offramp.tasks"
VERSION = 1
TASKS = "tasks.json"

Loaded = tuple[dict[str, ExitNetwork], dict[str, Frontier], dict[str, CostTable]]


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
    check_names(networks)
    for kind, given in (("frontier", frontiers), ("costs", costs)):
        if set(given) != set(networks):
            raise InputError(
                f"save_tasks: expected a {kind} for each of {names_of(networks)}, got {names_of(given)}"
            )
    if len({id(net.partition) for net in networks.values()}) > 1:
        raise InputError("save_tasks: expected networks that share their segments, from attach_tasks")
    with _replacing(Path(path)) as folder:
        digests = {}
        for i, (name, net) in enumerate(networks.items()):
            with_backbone = include_backbone and i == 0
            own = (records or {}).get(name)
            save(
                folder / name, net, frontiers[name], costs[name], records=own, include_backbone=with_backbone
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
) -> Loaded:
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
    folder, given = Path(path), input_exits or {}
    first, *others = _read_tasks(folder)
    strange = [name for name in given if name not in (first, *others)]
    if strange:
        raise ArtifactError(
            f"{folder}: input_exits: no task {strange[0]!r}; it has {names_of((first, *others))}"
        )
    networks, frontiers, tables = {}, {}, {}
    parts = None
    for name in (first, *others):
        loaded = load(
            folder / name,
            model,
            restore_backbone=restore_backbone and name == first,
            input_exits=given.get(name),
            parts=parts,
        )
        networks[name], frontiers[name], tables[name] = loaded
        parts = networks[first].partition
    return networks, frontiers, tables


def _read_tasks(folder: Path) -> list[str]:
    """Names of the tasks; every manifest has been compared with its digest."""
    if not (folder / TASKS).is_file():
        raise ArtifactError(f"{folder} holds no {TASKS}; expected a folder from save_tasks, check the path")
    document = parse_document(read_text(folder / TASKS), TASKS_FORMAT, VERSION)
    tasks = document.get("tasks")
    try:
        check_names(tasks)  # type: ignore[arg-type]  # it checks that too
    except InputError as error:
        raise ArtifactError(f"{folder / TASKS}: {error}; save the tasks again") from None
    for name, digest in tasks.items():  # type: ignore[union-attr]
        if pinned(folder / name) != digest:
            raise ArtifactError(
                f"{folder / name}: is not what was saved with the other tasks; copy the whole folder again"
            )
    return list(tasks)  # type: ignore[arg-type]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    with storage_errors(path):
        objection = _objection(path)
    if objection:
        raise StorageError(f"{path} {objection}; choose another folder or remove it")
    with atomic_folder(path) as folder:
        yield folder


def _objection(folder: Path) -> str:
    """Why a path must not be replaced; empty where nothing is there, or tasks and nothing else."""
    names = names_in(folder)
    if not names:
        return "" if names is not None else "is a file"
    try:
        tasks = _read_tasks(folder)
    except ArtifactError:
        return "exists and does not hold tasks"
    for name in tasks:
        check_replaceable(folder / name)
    strange = sorted(names - {TASKS, *tasks})
    return f"holds more than tasks: {', '.join(strange)}" if strange else ""
