"""From a model and three disjoint splits to everything an artifact holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from offramp.config import Frontier
from offramp.cost import CostTable, measure_cost
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
    net = attach_exits(
        model,
        splits.example,
        heads=config.heads,
        cuts=config.cuts,
        confidence=config.confidence,
        output=config.output,
        seed=config.train.seed,
    )
    training = train_exits(net, splits.train, config=config.train, work_dir=work_dir, progress=progress)
    loaders = {"search": splits.search, "report": splits.report}
    records = {
        name: record_outputs(
            net,
            loader,
            quality=config.quality,
            work_dir=None if work_dir is None else Path(work_dir) / name,
            progress=progress,
        )
        for name, loader in loaders.items()
        if loader is not None
    }
    costs = measure_cost(net)
    frontier = search(records["search"], costs, max_exits=config.max_exits)
    return Built(net, frontier, costs, records, training)


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
            "relative_cost": [low.relative_cost, high.relative_cost],
            "quality": [low.quality, high.quality],
            "samples": {name: records.samples for name, records in built.records.items()},
        }
    )
