"""From a model and three disjoint splits to everything an artifact holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from offramp._progress import progress_bar
from offramp.config import Frontier
from offramp.cost import CostTable, measure_cost
from offramp.errors import InputError
from offramp.features import checked_batches
from offramp.network import ExitNetwork, attach_exits
from offramp.project import Splits
from offramp.records import ExitRecords, record_outputs
from offramp.search import search
from offramp.training import TrainConfig, TrainReport, train_exits


@dataclass(frozen=True)
class BuildConfig:
    """What ``build`` does; the defaults are good for most classifiers.

    Args:
        heads: kinds of heads to try.
        cuts: "auto", "all", or names.
        confidence: name, or None for the task's own.
        output: key of the answer in what the model returns.
        quality: "labels", or "agreement" with the full model, which needs none.
        max_exits: at most this many exits in a configuration.
        train: how heads are trained.
    """

    heads: Sequence[str] = ("linear", "mlp", "conv")
    cuts: str | Sequence[str] = "auto"
    confidence: str | None = None
    output: str | int | None = None
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
        StorageError: the working folder cannot be written or is full.
    """
    config = config or BuildConfig()
    found = {"search": splits.search, "report": splits.report}
    loaders = {name: loader for name, loader in found.items() if loader is not None}
    net = attach_exits(
        model,
        splits.example,
        heads=config.heads,
        cuts=config.cuts,
        confidence=config.confidence,
        output=config.output,
        seed=config.train.seed,
    )
    if config.quality == "labels":
        _check_labelled(net, loaders)
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
    frontier = find_frontier(records["search"], costs, max_exits=config.max_exits, progress=progress)
    return Built(net, frontier, costs, records, training)


def find_frontier(
    records: ExitRecords,
    costs: CostTable,
    *,
    method: str = "exact",
    regularise: str | float | None = "auto",
    max_exits: int | None = None,
    progress: bool | None = None,
) -> Frontier:
    """``search`` with a progress bar."""
    with progress_bar("Searching configurations", None, progress) as advance:
        return search(
            records,
            costs,
            method=method,
            regularise=regularise,
            max_exits=max_exits,
            progress=lambda done, _total: advance(done),
        )


@contextmanager
def _named(split: str) -> Iterator[None]:
    """Say which split an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{split} split: {error}") from error


def _check_labelled(net: ExitNetwork, loaders: Mapping[str, Iterable[Any]]) -> None:
    """Find out before hours of training that what is searched and reported on has no labels or no samples."""
    for name, loader in loaders.items():
        if isinstance(loader, Iterator):
            continue  # looking would use it up
        with _named(name):
            _, labels = next(iter(checked_batches(net.partition.spec, loader)))
            if labels is None:
                raise InputError(
                    "the loader gives no labels; judge by agreement with the full model instead "
                    "(quality='agreement', on the command line --agreement)"
                )


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
