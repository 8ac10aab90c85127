"""Train every head of every position at once, the backbone frozen and run once per sample and view.

    loader ──backbone──▶ cached features (caching) ──▶ all heads, one optimiser (head_training) ──▶ net
                                  │
                                  └─ rows held out ──▶ fitted confidences (calibration)

Each head learns from the labels and from the full model's own outputs; without labels, from the outputs
alone. The network is changed only when training is complete. Only ``backbone="finetune"`` changes the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offramp.core import ExitConfig
from offramp.errors import InputError
from offramp.network import ConfidenceFn, ExitIndex, ExitNetwork, mac_table
from offramp.storage import scratch
from offramp.tasks import is_fitted
from offramp.training import survivors
from offramp.training.cache import Cache, Ints, in_parts, predicted, reduction, rows_to_device, run_backbone
from offramp.training.calibrate import Truth, fit_calibrators, install
from offramp.training.config import TrainConfig  # imported from here, beside the verb
from offramp.training.finetune import finetuned
from offramp.training.head_trainer import HeadTrainer


@dataclass(frozen=True)
class TrainedExit:
    """One head after training.

    Args:
        position: its name.
        head: its name.
        quality: mean quality on the loader's samples (optimistic; record a held-out split to judge).
        head_macs: of the head alone.
        total_macs: of the backbone up to here and the head.
        relative_cost: ``total_macs`` over the full model's.
    """

    position: str
    head: str
    quality: float
    head_macs: int
    total_macs: int
    relative_cost: float


@dataclass(frozen=True)
class BackboneChange:
    """What fine-tuning did to the full model.

    Args:
        before: its mean quality.
        after: the same, after fine-tuning.
        samples: these figures are of so many, held out by their place in the loader; where
            ``calibration`` is 0, of all that it was trained on.
        held_out: whether they were held out.
    """

    before: float
    after: float
    samples: int
    held_out: bool


@dataclass(frozen=True)
class TrainReport:
    """What training gave: one entry per trained exit, and the full model's quality on the same samples.

    Args:
        exits: in order.
        full_quality: of the full model, as it is now.
        samples: rows trained on and held out, all views counted.
        labelled: whether there were labels.
        held_out: rows that heads were not trained on, for the confidences.
        backbone: what became of the full model, where it was fine-tuned.
    """

    exits: tuple[TrainedExit, ...]
    full_quality: float
    samples: int
    labelled: bool
    held_out: int = 0
    backbone: BackboneChange | None = None


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
        loader: batches of inputs with or without labels (see ``InputSpec.split_labels``), of the training
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
    with scratch(work_dir) as base, torch.inference_mode(False), torch.enable_grad():
        run = _Run(net, loader, config, base, work_dir is not None, progress)
        cache = run.cache(frontier is not None)
        reach = None if frontier is None else run.reach(cache, frontier)
        if config.backbone == "finetune":
            return run.finetune(cache)
        return run.train(cache, reach)


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


@dataclass(frozen=True)
class _Run:
    """One call of ``train_exits``."""

    net: ExitNetwork
    loader: Iterable[Any]
    config: TrainConfig
    base: Path
    lasting: bool
    progress: bool | None

    def cache(self, given: bool = False) -> Cache:
        return run_backbone(
            self.net, self.loader, self.base, views=self.config.views, dtype=self.config.cache_dtype,
            given=given or self.fitted, lasting=self.lasting, progress=self.progress,
        )  # fmt: skip

    @property
    def fitted(self) -> bool:
        return is_fitted(self.net.confidence)

    @property
    def folder(self) -> Path | None:
        return self.base if self.lasting else None

    def heads(
        self, cache: Cache, reach: Mapping[ExitIndex, Tensor] | None = None
    ) -> dict[ExitIndex, nn.Module]:
        """Trained heads; the network's own are left alone."""
        rows = np.flatnonzero(~self.held_out(cache))
        return HeadTrainer(self.net, cache, self.config, rows, reach).run(self.folder, self.progress)

    def held_out(self, cache: Cache) -> npt.NDArray[np.bool_]:
        wanted = self.fitted or self.config.backbone == "finetune"
        return cache.held_out(self.config.calibration if wanted else 0.0, self.config.seed)

    def train(
        self, cache: Cache, reach: Mapping[ExitIndex, Tensor] | None, change: Any = None
    ) -> TrainReport:
        """Heads and confidences, into the network."""
        heads, held = self.heads(cache, reach), self.held_out(cache)
        calibrators = self.calibrators(cache, heads, np.flatnonzero(held))
        report = _report(self.net, heads, cache, int(held.sum()), change)
        states = [(self.net.head(p, self.net.head_names[c]), h.state_dict()) for (p, c), h in heads.items()]
        for head, state in states:
            head.load_state_dict(state)
        install(self.net, calibrators)
        return report

    @torch.no_grad()
    def calibrators(
        self, cache: Cache, heads: Mapping[ExitIndex, nn.Module], rows: Ints
    ) -> dict[str, nn.Module]:
        """Confidences fitted on the rows held out, by name; none where there is nothing to fit (on)."""
        if not (self.fitted and len(rows)):
            return {}
        pick = torch.from_numpy(rows)
        truth = _truth(cache, pick)
        outputs = {exit_: _outputs(self.net, exit_, head, cache, pick) for exit_, head in heads.items()}
        outputs |= {exit_: values[pick] for exit_, values in cache.given.items()}
        outputs[len(self.net.positions), 0] = truth.answers
        return fit_calibrators(self.net, outputs, truth, self.progress)

    @torch.no_grad()
    def reach(self, cache: Cache, frontier: Sequence[ExitConfig]) -> dict[ExitIndex, Tensor]:
        """How likely each row gets to each exit, with the heads that the network has now."""
        net, every, device = self.net, torch.arange(cache.rows()), self.net.partition.spec.device
        confidence = {}
        for p, c, head in net.exits():
            confidence_fn = net.confidence_of(p, c)

            def some(
                part: slice,
                exit_: ExitIndex = (p, c),
                head: nn.Module = head,
                confidence_fn: ConfidenceFn = confidence_fn,
            ) -> Tensor:
                given = cache.given.get(exit_)
                outputs = _outputs(net, exit_, head, cache, every[part]) if given is None else given[part]
                return confidence_fn(
                    outputs.to(device), None if cache.mask is None else cache.mask[part].to(device)
                )

            confidence[p, c] = in_parts(cache.rows(), some)
        return survivors.by_frontier(net, frontier, confidence)

    def finetune(self, cache: Cache) -> TrainReport:
        """Heads on the model as it is; both together; heads anew on what the model has become."""
        heads, held = self.heads(cache), self.held_out(cache)
        rows = held if held.any() else ~held
        with finetuned(self.net, heads, self.loader, cache, self.config, self.folder, self.progress):
            after = self.cache()
            some = torch.from_numpy(np.flatnonzero(rows))
            before, now = (_mean_quality(self.net, each, some) for each in (cache, after))
            change = BackboneChange(before, now, len(some), bool(held.any()))
            report = self.train(after, None, change)
        if change.after < change.before:
            warnings.warn(
                f"fine-tuning: the full model's quality fell from {change.before:.4f} to {change.after:.4f} "
                f"on {change.samples} samples; lower backbone_rate or raise distillation if that is too much",
                stacklevel=3,
            )
        return report


def _outputs(net: ExitNetwork, exit_: ExitIndex, head: nn.Module, cache: Cache, rows: Tensor) -> Tensor:
    """A trained head's outputs (n, ...) on cached rows, in float32 on the CPU."""
    features, device = cache.features[exit_[0], reduction(head, exit_[1])], net.partition.spec.device
    dtype = next((p.dtype for p in head.parameters()), torch.float32)
    head.eval()

    def some(part: slice) -> Tensor:
        return net.task.from_head(
            predicted(head, rows_to_device(features, rows[part], device).to(dtype))
        ).float()

    return in_parts(len(rows), some)


def _truth(cache: Cache, rows: Tensor) -> Truth:
    labels, mask = (None if values is None else values[rows] for values in (cache.labels, cache.mask))
    return Truth(cache.answers[rows], labels, mask)


@torch.no_grad()
def _report(
    net: ExitNetwork,
    heads: Mapping[ExitIndex, nn.Module],
    cache: Cache,
    held: int,
    change: BackboneChange | None,
) -> TrainReport:
    costs, entries, every = mac_table(net), [], torch.arange(cache.rows())
    for (p, c), head in heads.items():
        macs = int(costs.heads[p, c])
        total = int(costs.backbone[p]) + macs
        quality = _mean_quality(net, cache, every, ((p, c), head))
        entries.append(
            TrainedExit(net.positions[p], net.head_names[c], quality, macs, total, total / costs.full)
        )
    full = _mean_quality(net, cache, every)
    return TrainReport(tuple(entries), full, cache.rows(), cache.labels is not None, held, change)


def _mean_quality(
    net: ExitNetwork, cache: Cache, rows: Tensor, head: tuple[ExitIndex, nn.Module] | None = None
) -> float:
    """Of a head, or of the full model, on some rows."""

    def some(part: slice) -> Tensor:
        truth = _truth(cache, rows[part])
        outputs = truth.answers if head is None else _outputs(net, *head, cache, rows[part])
        return truth.quality(net, outputs).double()

    return float(in_parts(len(rows), some).mean())
