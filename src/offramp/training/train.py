"""Train every head of every position at once, the backbone frozen and run once per sample and view.

    loader ──backbone──▶ cached features (cache) ──▶ all heads, one optimiser (head_trainer) ──▶ net
                                  │
                                  └─ rows held out ──▶ fitted confidences (calibrate)

Each head learns from the labels and from the full model's own outputs; without labels, from the outputs
alone. The network is changed only when training is complete. Only ``backbone="finetune"`` changes the model.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offramp.core import UNKNOWN, ExitConfig, evenly, html_table, percent
from offramp.errors import InputError
from offramp.network import ExitIndex, ExitNetwork, mac_table
from offramp.storage import scratch
from offramp.tasks import is_fitted, tell_of_probabilities
from offramp.training import survivors
from offramp.training.cache import (
    Cache,
    cached_confidences,
    cached_outputs,
    in_parts,
    run_backbone,
)
from offramp.training.calibrate import fit_calibrators, install
from offramp.training.config import TrainConfig
from offramp.training.finetune import finetuned
from offramp.training.head_trainer import HeadTrainer


@dataclass(frozen=True)
class TrainedExit:
    """One head after training: names of position and head, quality, and costs in MACs.

    ``quality`` is the mean on the loader's samples (optimistic; record a held-out split to judge),
    ``total_macs`` of the backbone up to here and the head, ``relative_cost`` that over the full model's.
    """

    position: str
    head: str
    quality: float
    head_macs: int
    total_macs: int
    relative_cost: float


@dataclass(frozen=True)
class BackboneChange:
    """The full model's mean quality before and after fine-tuning, on so many samples.

    They were held out by their place in the loader; where ``calibration`` is 0, ``held_out`` is false and the
    samples are all that it was trained on.
    """

    before: float
    after: float
    samples: int
    held_out: bool


@dataclass(frozen=True)
class TrainReport:
    """What training gave: one entry per trained exit, and the full model's quality on the same samples.

    ``samples`` counts rows trained on and held out, of all views; ``held_out`` those that heads were not
    trained on; ``backbone`` is what became of the full model, where it was fine-tuned.
    """

    exits: tuple[TrainedExit, ...]
    full_quality: float
    samples: int
    labelled: bool
    held_out: int = 0
    backbone: BackboneChange | None = None

    def __repr__(self) -> str:
        quality = [each.quality for each in self.exits]
        reached = f", quality {min(quality):.4f} to {max(quality):.4f}" if quality else ""
        return (
            f"TrainReport({len(self.exits)} exits{reached}, full model {self.full_quality:.4f}, on "
            f"{self.samples} samples)"
        )

    def _repr_html_(self) -> str:
        """Quality by position and head, and what it costs to get there; of many positions, some."""
        positions = tuple(dict.fromkeys(each.position for each in self.exits))
        heads = tuple(dict.fromkeys(each.head for each in self.exits))
        quality = {(each.position, each.head): percent(each.quality) for each in self.exits}
        cost = {each.position: percent(each.relative_cost) for each in reversed(self.exits)}
        shown = [positions[at] for at in evenly(len(positions))]
        rows = [(name, cost[name], *(quality.get((name, head), UNKNOWN) for head in heads)) for name in shown]
        kind = "quality" if self.labelled else "agreement with the full model"
        caption = (
            f"{len(self.exits)} exits trained on {self.samples:,} samples: {kind} on these samples "
            f"(in-sample: optimistic), full model {percent(self.full_quality)}"
        )
        return html_table(caption, ("position", "cost with first head", *heads), rows, total=len(positions))


def train_exits(
    net: ExitNetwork,
    loader: Iterable[Any],
    *,
    config: TrainConfig | None = None,
    frontier: Sequence[ExitConfig] | None = None,
    work_dir: str | Path | None = None,
    progress: bool | None = None,
) -> TrainReport:
    """Train all heads of a network; the backbone stays as it is, unless ``config.backbone`` says otherwise.

    Args:
        net: from ``attach_exits``; its heads are replaced when training is complete, and its confidences
            fitted where they are of a fitted kind. Modules given as input exits are not trained.
        loader: batches of inputs with or without labels (see ``InputSpec.read_batch``), of the training
            split. A fixed order is enough, training shuffles by itself, and lets a killed run resume.
        config: how to train.
        frontier: from a first search with the heads as they are: a second round. Heads are trained again,
            from the start, weighed by ``config.survivors`` for the samples that reach them under the
            frontier's configurations.
        work_dir: where cached features and checkpoints live; a killed run given the same folder goes on where
            it stopped and ends with the same weights. One process at a time. Without it a temporary folder is
            used.
        progress: None shows bars when standard error is a terminal.

    Raises:
        InputError: the loader yields nothing, changes, does not fit the model, has labels out of range, the
            model gives NaN, training diverges, or ``frontier`` is of another network or comes without
            ``survivors``.
        StorageError: the folder cannot be written or is full.
    """
    config = config or TrainConfig()
    if frontier is not None:
        _check_second_round(config)
    fitted, finetuning = is_fitted(net.confidence), config.backbone == "finetune"
    share = config.calibration if fitted or finetuning else 0.0

    with scratch(work_dir) as base, torch.inference_mode(False), torch.enable_grad():
        folder = None if work_dir is None else base

        def cached(given: bool) -> Cache:
            return run_backbone(
                net, loader, base, views=config.views, dtype=config.cache_dtype,
                given=given, lasting=folder is not None, progress=progress,
            )  # fmt: skip

        cache = cached(fitted or frontier is not None)
        if net.task.activations and net.task.activation is None:
            tell_of_probabilities(net.task.name, type(net.backbone).__name__, cache.answers, stacklevel=2)
        reach = None if frontier is None else _reach(net, cache, frontier)
        held = cache.held_out(share, config.seed)
        rows = np.flatnonzero(~held)
        heads = HeadTrainer(net, cache, config, rows, reach).run(folder, progress)
        if not finetuning:
            return _replaced(net, cache, heads, held, progress)
        with finetuned(net, heads, loader, cache, config, folder, progress):
            after = cached(fitted)
            some = torch.from_numpy(np.flatnonzero(held if held.any() else ~held))
            before, now = (_mean_quality(net, each, some) for each in (cache, after))
            change = BackboneChange(before, now, len(some), bool(held.any()))
            heads = HeadTrainer(net, after, config, rows).run(folder, progress)
            report = _replaced(net, after, heads, held, progress)
        if change.after < change.before:
            warnings.warn(
                f"fine-tuning: the full model's quality fell from {change.before:.4f} to {change.after:.4f} "
                f"on {change.samples} samples; lower backbone_rate or raise distillation if that is too much",
                stacklevel=2,
            )
        return dataclasses.replace(report, backbone=change)


def _check_second_round(config: TrainConfig) -> None:
    if not config.survivors:
        raise InputError(
            "train_exits(frontier=...): a second round weighs samples by TrainConfig.survivors, which is 0; "
            "set it, for example survivors=0.5"
        )
    if config.backbone != "frozen":
        raise InputError(
            "train_exits(frontier=...): expected backbone='frozen'; fine-tune first, search, then come back"
        )


def _reach(net: ExitNetwork, cache: Cache, frontier: Sequence[ExitConfig]) -> dict[ExitIndex, Tensor]:
    """How likely each row gets to each exit, with the heads that the network has now."""
    exits = {(p, c): head for p, c, head in net.exits()}
    confidence = cached_confidences(net, exits, cache, lambda exit_: net.confidence_of(*exit_), {})
    return survivors.by_frontier(net, frontier, confidence)


@torch.no_grad()
def _replaced(
    net: ExitNetwork,
    cache: Cache,
    heads: Mapping[ExitIndex, nn.Module],
    held: npt.NDArray[np.bool_],
    progress: bool | None,
) -> TrainReport:
    """Put trained heads, and confidences fitted on the rows ``held`` out, into the network."""
    rows, calibrators = torch.from_numpy(np.flatnonzero(held)), dict[str, nn.Module]()
    if is_fitted(net.confidence) and len(rows):
        truth = cache.truth(rows)
        outputs = {exit_: _outputs(net, exit_, head, cache, rows) for exit_, head in heads.items()}
        outputs |= {exit_: values[rows] for exit_, values in cache.given.items()}
        outputs[len(net.positions), 0] = truth.answers
        calibrators = fit_calibrators(net, outputs, truth, progress)
    costs, every, entries = mac_table(net), torch.arange(cache.rows()), list[TrainedExit]()
    for (p, c), head in heads.items():
        macs = int(costs.heads[p, c])
        total = int(costs.backbone[p]) + macs
        entries.append(
            TrainedExit(
                position=net.positions[p],
                head=net.head_names[c],
                quality=_mean_quality(net, cache, every, ((p, c), head)),
                head_macs=macs,
                total_macs=total,
                relative_cost=total / costs.full,
            )
        )
    report = TrainReport(
        exits=tuple(entries),
        full_quality=_mean_quality(net, cache, every),
        samples=cache.rows(),
        labelled=cache.labels is not None,
        held_out=len(rows),
    )
    install((net.head(p, net.head_names[c]), head) for (p, c), head in heads.items())
    install((net.calibrators[name], calibrator) for name, calibrator in calibrators.items())
    return report


def _outputs(net: ExitNetwork, exit_: ExitIndex, head: nn.Module, cache: Cache, rows: Tensor) -> Tensor:
    """A head's outputs (n, ...) on cached rows, in float32 on the CPU."""
    return in_parts(len(rows), lambda part: cached_outputs(net, exit_, head, cache, rows[part]))


@torch.no_grad()
def _mean_quality(
    net: ExitNetwork, cache: Cache, rows: Tensor, exit_: tuple[ExitIndex, nn.Module] | None = None
) -> float:
    """Of an exit, or of the full model, on some rows."""

    def of_part(part: slice) -> Tensor:
        truth = cache.truth(rows[part])
        outputs = truth.answers if exit_ is None else _outputs(net, *exit_, cache, rows[part])
        quality, counted = truth.quality(net, outputs).double(), truth.counted(net)
        return quality if counted is None else quality[counted]

    return float(in_parts(len(rows), of_part).mean())
