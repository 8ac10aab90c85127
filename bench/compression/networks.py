"""From a backbone, compressed or not, to an artifact with trained exits: the same pipeline for each.

Heads learn from the first images of the 55,000 the backbones were trained on, configurations are searched for
on the 5,000 held out, figures are of the 10,000 test images. What is stored is not made again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import offramp
from bench.fashion_mnist.exits import training
from bench.fashion_mnist.fashion import Fashion
from bench.shared import artifacts
from bench.shared.backbones import in_batches
from offramp import CostTable, ExitNetwork, ExitRecords, Frontier

BATCH = 64
"""Of everything that runs: int8 layers scale by the batch, so the timed batch is the recorded one."""
MOST_CUTS = 9  # a longer chain has exits at every third block


@dataclass(frozen=True)
class Setting:
    """How heads are trained and configurations searched.

    Args:
        images: of the backbone's training images, for the heads.
        epochs: of the heads.
        seed: of the heads.
        max_exits: enabled at most; each check takes time that MACs do not show.
    """

    images: int = 20_000
    epochs: int = 8
    seed: int = 0
    max_exits: int = 3


@dataclass(frozen=True)
class Made:
    """A network with exits, its records, and its frontier under the costs it is searched with.

    Args:
        net: with trained heads.
        frontier: searched for with ``costs``.
        costs: MACs, or seconds.
        search: records that configurations are chosen on.
        report: records that figures are of.
        macs: of the same network.
    """

    net: ExitNetwork
    frontier: Frontier
    costs: CostTable
    search: ExitRecords
    report: ExitRecords
    macs: CostTable


def cuts(model: nn.Module, example: Tensor) -> list[str]:
    """Names of the blocks that exits sit after."""
    names = [cut.name for cut in offramp.partition(model, example).cuts]
    return names if len(names) <= MOST_CUTS else names[::3]


def make(folder: Path, model: nn.Module, data: Fashion, setting: Setting) -> None:
    """Attach exits, train, record, search, save; nothing where the artifact is there already."""
    if (folder / "manifest.json").exists():
        return
    start, example = time.perf_counter(), data.train[0][:2]
    net = offramp.attach_exits(model, example, heads="auto", cuts=cuts(model, example), seed=setting.seed)
    learn, config = training(data, setting.images, setting.epochs, setting.seed, BATCH)
    parts = {"search": in_batches(data.held_out, BATCH), "report": in_batches(data.test, BATCH)}
    artifacts.make(folder, net, learn, parts, config, max_exits=setting.max_exits)
    print(f"  {folder.name}: saved, {time.perf_counter() - start:.0f} s", flush=True)


def load(folder: Path, model: nn.Module) -> Made:
    """Read what ``make`` saved.

    Raises:
        ArtifactError: there is none, or it is of another model.
    """
    net, frontier, costs, records = artifacts.load(folder, model)
    return Made(net=net, frontier=frontier, costs=costs, macs=costs, **records)


def in_seconds(made: Made, batch_size: int, images: Tensor) -> Made:
    """The same network, searched anew with what it costs on this machine.

    Args:
        made: of an artifact.
        batch_size: of the calls it will get.
        images: to measure on, at least one.
    """
    threads = torch.get_num_threads()
    costs = offramp.measure_cost(
        made.net, unit="seconds", batch_size=batch_size, threads=threads, inputs=images, progress=False
    )
    frontier = offramp.search(made.search, costs, max_exits=Setting.max_exits)
    return replace(made, frontier=frontier, costs=costs)
