"""From a model and three disjoint splits to everything an artifact holds."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from offramp.sources import Splits
from offramp.tasks import Task
from offramp.training import DTYPES, TrainConfig, TrainReport, reduction, train_exits


@dataclass(frozen=True)
class BuildConfig:
    """What ``build`` does; the defaults are good for most classifiers.

    Args:
        heads: kinds of heads to try, or "auto" for a few that pay at each position.
        cuts: "auto", "all", or names.
        task: what an answer is.
        confidence: name, or None for the task's own.
        output: key of the answer in what the model returns.
        input_exits: exits at the input, by name: modules, or kinds of heads.
        mask: the input that says which tokens are real; None finds "attention_mask".
        quality: "labels", or "agreement" with the full model, which needs none.
        max_exits: at most this many exits in a configuration.
        train: how heads are trained.
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
        if self.quality not in ("labels", "agreement"):
            raise InputError(f"BuildConfig.quality: expected 'labels' or 'agreement', got {self.quality!r}")
        if self.max_exits is not None and self.max_exits < 0:
            raise InputError(f"BuildConfig.max_exits: expected at least 0, got {self.max_exits}")


@dataclass(frozen=True)
class Built:
    """A network with trained heads, its frontier, and the records it was searched and is reported on."""

    net: ExitNetwork
    frontier: Frontier
    costs: CostTable
    records: Mapping[str, ExitRecords]
    training: TrainReport


def build(
    model: nn.Module,
    splits: Splits,
    config: BuildConfig | None = None,
    *,
    work_dir: str | Path | None = None,
    progress: bool | None = None,
) -> Built:
    """Attach, train, record, search.

    Args:
        model: trained; not changed.
        splits: of disjoint samples. Heads train on one, the search sees another, the third is only recorded.
        config: what to do.
        work_dir: a run that was killed goes on from here.
        progress: None shows bars when standard error is a terminal.

    Raises:
        InputError: a loader does not fit the model.
        PartitionError: the model cannot be exported or cut.
        StorageError: the working folder cannot be written, is full, or has too little room.
    """
    config = config or BuildConfig()
    found = {"search": splits.search, "report": splits.report}
    loaders = {name: loader for name, loader in found.items() if loader is not None}
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
    _check_labels(net, {"train": splits.train, **loaders}, config.quality == "labels")
    _check_room(net, splits, config.train, Path(work_dir or tempfile.gettempdir()).absolute())
    with _named("train"):
        training = train_exits(net, splits.train, config=config.train, work_dir=work_dir, progress=progress)
    records: dict[str, ExitRecords] = {}
    for name, loader in loaders.items():
        work = None if work_dir is None else Path(work_dir) / name
        with _named(name):
            records[name] = record_outputs(
                net, loader, quality=config.quality, work_dir=work, progress=progress
            )
    costs = measure_cost(net)
    frontier = search(records["search"], costs, max_exits=config.max_exits, progress=progress)
    return Built(net, frontier, costs, records, training)


@contextmanager
def _named(split: str) -> Iterator[None]:
    """Say which split an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{split} split: {error}") from error


def _check_labels(net: ExitNetwork, loaders: Mapping[str, Iterable[Any]], needed: bool) -> None:
    """Find out before hours of work that labels do not fit, or are missing where they are needed.

    Only the first batch of each split is looked at.
    """
    for name, loader in loaders.items():
        if isinstance(loader, Iterator):
            continue  # looking would use it up
        with _named(name):
            values, labels = next(iter(checked_batches(net.partition.spec, loader)))
            if labels is not None and (needed or name == "train"):
                answer = torch.zeros(len(values[0]), *net.answer_shape, device=labels.device)
                real = net.task.real_labels(labels, net.mask(values))
                net.task.check_labels(real, net.task.from_model(answer))
            elif labels is None and needed and name != "train":
                raise InputError(
                    "the loader gives no labels; judge by agreement with the full model instead "
                    "(quality='agreement', on the command line --agreement)"
                )


def _check_room(net: ExitNetwork, splits: Splits, config: TrainConfig, folder: Path) -> None:
    """Find out before hours of work that the features do not fit on the disk, where that can be told."""
    try:
        batches = len(splits.train)  # type: ignore[arg-type]
    except TypeError:
        return
    values, _ = next(iter(checked_batches(net.partition.spec, splits.train)))
    needed = batches * len(values[0]) * config.views * kept_bytes(net, config.cache_dtype)
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
    low, high = built.frontier[0].expected, built.frontier[-1].expected
    assert low is not None
    assert high is not None
    return json.dumps(
        {
            "positions": list(built.net.positions),
            "exits": len(built.training.exits),
            "full_macs": built.costs.full,
            "configurations": len(built.frontier),
            "expected_cost": [low.relative_cost, high.relative_cost],
            "expected_quality": [low.quality, high.quality],
            "samples": {name: records.samples for name, records in built.records.items()},
        }
    )
