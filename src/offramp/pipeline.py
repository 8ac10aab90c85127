"""From a model and three disjoint splits to everything an artifact holds."""

from __future__ import annotations

import json
import operator
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from offramp.core import CostTable, ExitRecords, Frontier
from offramp.data import checked_batches
from offramp.errors import InputError, StorageError
from offramp.heads import reduced
from offramp.measure import measure_cost, record_outputs
from offramp.network import ExitNetwork, attach_exits
from offramp.solver import search
from offramp.sources import DataSummary, Splits
from offramp.storage import folder_lock
from offramp.tasks import Task, is_fitted
from offramp.training import (
    DTYPES,
    TrainConfig,
    TrainReport,
    check_quality,
    checked_labels,
    reduction,
    stored_bytes,
    train_exits,
)


@dataclass(frozen=True)
class BuildConfig:
    """What ``build`` does; the defaults are good for most classifiers.

    Most are options of ``attach_exits``; ``train`` says how heads are trained, ``quality`` what answers are
    compared with ("labels", or "agreement" with the full model, which needs none), and ``max_exits`` how many
    exits a configuration may have.
    """

    heads: str | Sequence[str] = "auto"
    cuts: str | Sequence[str] = "auto"
    task: str | Task = "classification"
    confidence: str | None = None
    output: str | int | None = None
    input_exits: Mapping[str, nn.Module | str] = field(default_factory=dict)
    mask: str | None = None
    quality: Literal["labels", "agreement"] = "labels"
    max_exits: int | None = None
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_quality("BuildConfig.quality", self.quality)
        if self.max_exits is not None and self.max_exits < 0:
            raise InputError(f"BuildConfig.max_exits: expected at least 0, got {self.max_exits}")


@dataclass(frozen=True)
class Built:
    """A network with trained heads, its frontier, and the records it was searched and is reported on.

    ``summary`` is what was found in the data, where somebody looked: for ``save(..., summary=)``.
    """

    net: ExitNetwork
    frontier: Frontier
    costs: CostTable
    records: Mapping[str, ExitRecords]
    training: TrainReport
    summary: DataSummary | None = None


def build(
    model: nn.Module,
    splits: Splits,
    config: BuildConfig | None = None,
    *,
    work_dir: str | Path | None = None,
    progress: bool | None = None,
    ready: Callable[[ExitNetwork], None] | None = None,
) -> Built:
    """Attach, train, record, search.

    Heads train on one of the disjoint ``splits``, the search sees another, the third is only recorded. The
    trained ``model`` is not changed. A run that was killed goes on from ``work_dir``; ``progress`` None shows
    bars when standard error is a terminal; ``ready`` is called with the network once everything is checked,
    before the work.

    Raises:
        InputError: a loader does not fit the model.
        PartitionError: the model cannot be exported or cut.
        StorageError: the working folder cannot be written, is full, has too little room, or another process
            works in it.
    """
    config = config or BuildConfig()
    loaders = {"search": splits.search} | ({} if splits.report is None else {"report": splits.report})
    net = attach_exits(
        model,
        splits.example,
        heads=config.heads,
        cuts=config.cuts,
        task=config.task,
        confidence=config.confidence,
        output=config.output,
        input_exits=config.input_exits,
        mask=config.mask,
        seed=config.train.seed,
    )
    if splits.classes is not None and splits.classes > net.outputs:
        raise InputError(
            f"train split: expected at most {net.outputs} classes because the model has {net.outputs} "
            f"outputs, got {splits.classes}; use the model trained for these classes"
        )
    _check_labels(net, {"train": splits.train, **loaders}, config.quality == "labels", splits.label_hint)
    _check_room(net, splits, config.train, Path(work_dir or tempfile.gettempdir()).absolute())
    if ready is not None:
        ready(net)
    records: dict[str, ExitRecords] = {}
    with nullcontext() if work_dir is None else folder_lock(Path(work_dir)):
        with _named("train"):
            training = train_exits(
                net, splits.train, config=config.train, work_dir=work_dir, progress=progress
            )
        for name, loader in loaders.items():
            work = None if work_dir is None else Path(work_dir) / name
            with _named(name):
                records[name] = record_outputs(
                    net,
                    loader,
                    quality=config.quality,
                    groups=splits.groups.get(name),
                    work_dir=work,
                    progress=progress,
                )
    costs = measure_cost(net)
    frontier = search(records["search"], costs, max_exits=config.max_exits, progress=progress)
    return Built(
        net=net,
        frontier=frontier,
        costs=costs,
        records=records,
        training=training,
        summary=splits.summary,
    )


@contextmanager
def _named(split: str) -> Iterator[None]:
    """Say which split an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{split} split: {error}") from error


def _check_labels(net: ExitNetwork, loaders: Mapping[str, Iterable[Any]], needed: bool, hint: str) -> None:
    """Find out before hours of work, on first batches, that labels do not fit, or are missing."""
    for name, loader in loaders.items():
        if isinstance(loader, Iterator):
            continue  # looking would use it up
        with _named(name):
            values, labels = next(iter(checked_batches(net.partition.spec, loader)))
            if labels is not None and (needed or name == "train"):
                answer = torch.zeros(len(values[0]), *net.answer_shape, device=labels.device)
                checked_labels(net, labels, net.task.from_model(answer), net.mask(values))
            elif labels is None and needed and name != "train":
                raise InputError(
                    "the loader gives no labels; judge by agreement with the full model instead "
                    f"(quality='agreement', on the command line --agreement){hint and f'; or {hint}'}"
                )


def _check_room(net: ExitNetwork, splits: Splits, config: TrainConfig, folder: Path) -> None:
    """Find out before hours of work that the features do not fit on the disk, where that can be told."""
    batches = 0 if isinstance(splits.train, Iterator) else operator.length_hint(splits.train)
    if not batches:
        return
    values, _ = next(iter(checked_batches(net.partition.spec, splits.train)))
    needed = batches * len(values[0]) * config.views * kept_bytes(net, config.cache_dtype)
    given = is_fitted(net.confidence)
    needed -= stored_bytes(net, folder, views=config.views, dtype=config.cache_dtype, given=given)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"training keeps about {needed / 1e9:,.1f} GB of features on disk, {folder} has "
            f"{free / 1e9:,.1f} GB free; give fewer training samples, fewer positions (cuts) or heads that "
            "keep less (linear), or a folder elsewhere"
        )


def kept_bytes(net: ExitNetwork, dtype: str = "float32") -> int:
    """What training keeps on disk of one sample, for all heads together."""
    kept = {}
    for p, c, head in net.trained_exits():
        spec = net.specs[p]
        assert spec is not None
        parameter = next(head.parameters(), torch.empty(0))
        feature = torch.zeros(1, *spec.shape, dtype=parameter.dtype, device=parameter.device)
        mask = torch.ones(1, spec.shape[0], dtype=torch.bool, device=parameter.device) if spec.mask else None
        kept[p, reduction(head, c)] = reduced(head, feature, mask).numel()
    return sum(kept.values()) * DTYPES[dtype].itemsize


def summary(built: Built) -> str:
    """One line of JSON about a build, for a machine to read."""
    ends = [config.expected for config in (built.frontier[0], built.frontier[-1]) if config.expected]
    return json.dumps(
        {
            "positions": list(built.net.positions),
            "exits": len(built.training.exits),
            "full_macs": built.costs.full,
            "configurations": len(built.frontier),
            "expected_cost": [end.relative_cost for end in ends],
            "expected_quality": [end.quality for end in ends],
            "samples": {name: records.samples for name, records in built.records.items()},
            "data": None if built.summary is None else built.summary.to_dict(),
        }
    )
