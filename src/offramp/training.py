"""Train every head of every position at once, the backbone frozen and run once per sample and view.

    loader ──backbone──▶ cached reduced features, answers, labels ──▶ all heads, one optimiser ──▶ net

Each head learns from the labels and from the full model's own outputs; without labels, from the outputs alone. Heads
start afresh from the seed, and the network is changed only when training is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp._progress import progress_bar
from offramp.errors import InputError
from offramp.features import Array, collect
from offramp.network import ExitNetwork
from offramp.state import Checkpoint, model_digest, scratch
from offramp.cost import measure_cost


@dataclass(frozen=True)
class TrainConfig:
    """How to train heads.

    Args:
        epochs: passes over the cached features.
        batch_size: samples per step.
        learning_rate: peak of a one-cycle cosine (AdamW).
        weight_decay: of AdamW.
        distillation: weight of the full model's outputs against the labels, 0 to 1; 1 where there are no labels.
        temperature: of the distillation.
        views: passes over the loader; more than one pays where the loader augments at random.
        seed: of initial weights and of the order of samples.

    Raises:
        InputError: a value is out of range.
    """

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    distillation: float = 0.5
    temperature: float = 2.0
    views: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "views"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"TrainConfig.{name}: expected an integer of at least 1, got {value!r}")
        for name, low, high in (
            ("learning_rate", 0, math.inf), ("weight_decay", -1e-300, math.inf),
            ("distillation", -1e-300, 1), ("temperature", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if not (low < value <= high and math.isfinite(value)):
                raise InputError(
                    f"TrainConfig.{name}: expected a number in ({max(low, 0)}, {high}], got {value!r}"
                )


@dataclass(frozen=True)
class TrainedExit:
    """One head after training.

    Args:
        position: its name.
        head: its name.
        quality: mean quality on the training samples (optimistic; record a held-out split to judge).
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
class TrainReport:
    """What training gave: one entry per exit, and the full model's quality on the same samples."""

    exits: tuple[TrainedExit, ...]
    full_quality: float
    samples: int
    labelled: bool


def train_exits(
    net: ExitNetwork,
    loader: Iterable[Any],
    *,
    config: TrainConfig | None = None,
    work_dir: str | Path | None = None,
    progress: bool | None = None,
) -> TrainReport:
    """Train all heads of a network; the backbone stays as it is.

    Args:
        net: from ``attach_exits``; its heads are replaced when training is complete.
        loader: batches of inputs with or without labels (see ``InputSpec.split_labels``), of the training split.
        config: how to train.
        work_dir: where cached features and checkpoints live; a killed run given the same folder goes on where it
            stopped and ends with the same weights. Without it a temporary folder is used.
        progress: None shows bars when standard error is a terminal.

    Raises:
        InputError: the loader yields nothing, changes, does not fit the model, has labels out of range, or the
            model gives NaN.
        StorageError: the folder cannot be written or is full.
    """
    config = config or TrainConfig()
    with scratch(work_dir) as base:
        folder = base / f"train-{_fingerprint(net, config)}"
        cache = _cache(net, loader, config, folder / "features", progress)
        heads = _train(net, cache, config, folder, progress)
        report = _report(net, heads, cache)
    for p, c, _ in net.exits():
        name = net.head_names[c]
        net.head(p, name).load_state_dict(heads[p, c].state_dict())
    return report


def _fingerprint(net: ExitNetwork, config: TrainConfig) -> str:
    parts = [
        model_digest(net.backbone),
        net.positions,
        net.head_names,
        asdict(config),
        net.task.name,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Cache:
    """Memory maps over N rows: reduced features by (position, reduction), answers (N, K), labels (N,) or None."""

    features: Mapping[tuple[int, str], Array]
    answers: Array
    labels: Array | None

    def rows(self) -> int:
        return len(self.answers)


def _cache(
    net: ExitNetwork, loader: Iterable[Any], config: TrainConfig, folder: Path, progress: bool | None
) -> _Cache:
    wanted: dict[int, dict[str, nn.Module]] = {}
    for p, _, head in net.exits():
        wanted.setdefault(p, {}).setdefault(_reduction(head), head)

    def compute(values: list[Tensor], labels: Tensor | None) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        with torch.inference_mode():
            for p, feature in net.features(values):
                if p == len(net.positions):
                    arrays["answers"] = _finite(feature, "the model's output")
                for key, head in wanted.get(p, {}).items():
                    reduced = head.reduce(feature) if hasattr(head, "reduce") else feature  # type: ignore[operator]
                    arrays[f"{p}|{key}"] = _finite(reduced, f"the feature at {net.positions[p]!r}")
        if labels is not None:
            net.task.check_labels(labels, torch.from_numpy(arrays["answers"]))
            arrays["labels"] = labels.cpu().numpy()
        return arrays

    arrays = collect(
        folder, net.partition.spec, loader, compute,
        label="Running the backbone once", passes=config.views, progress=progress,
    )  # fmt: skip
    keys = {tuple(name.split("|")): array for name, array in arrays.items() if "|" in name}
    features = {(int(p), key): array for (p, key), array in keys.items()}
    return _Cache(features, arrays["answers"], arrays.get("labels"))


def _reduction(head: nn.Module) -> str:
    return str(getattr(head, "reduction", "whole"))


def _finite(values: Tensor, what: str) -> Array:
    values = values.float()
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{what} is not finite for some inputs; check the inputs for NaN and the model's weights"
        )
    return values.cpu().numpy()


class _Scale:
    """Mean and standard deviation (F,) of one cached feature, over rows."""

    def __init__(self, array: Array, device: torch.device) -> None:
        flat = array.reshape(len(array), -1)
        total, square = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
        for start in range(0, len(flat), 4096):
            chunk = flat[start : start + 4096].astype(np.float64)
            total += chunk.sum(0)
            square += (chunk**2).sum(0)
        mean = total / len(flat)
        std = np.sqrt(np.maximum(square / len(flat) - mean**2, 0))
        floor = 0.05 * std.mean() + 1e-6  # a feature that hardly moves must not be blown up
        self.mean = torch.from_numpy(mean).float().to(device)
        self.std = torch.from_numpy(np.maximum(std, floor)).float().to(device)

    def __call__(self, z: Tensor) -> Tensor:
        return ((z.flatten(1) - self.mean) / self.std).view_as(z)


def _train(
    net: ExitNetwork, cache: _Cache, config: TrainConfig, folder: Path, progress: bool | None
) -> dict[tuple[int, int], nn.Module]:
    device = net.partition.spec.device
    heads = net.fresh_heads(config.seed)
    inputs = {exit_: (exit_[0], _reduction(head)) for exit_, head in heads.items()}
    scales = {
        inputs[e]: _Scale(cache.features[inputs[e]], device)
        for e, head in heads.items()
        if hasattr(head, "absorb_")
    }
    checkpoint = Checkpoint(folder / "heads.safetensors", heads, config.learning_rate, config.weight_decay)
    steps = math.ceil(cache.rows() / config.batch_size)
    first = checkpoint.resume()
    with progress_bar("Training all heads", config.epochs, progress) as advance, torch.random.fork_rng():
        for epoch in range(first, config.epochs):
            torch.manual_seed(config.seed * 1_000_003 + epoch)
            order = np.random.default_rng((config.seed, epoch)).permutation(cache.rows())
            for step, rows in enumerate(np.array_split(order, steps)):
                rate = _rate(config.learning_rate, (epoch * steps + step) / (config.epochs * steps))
                _step(net, heads, inputs, scales, cache, rows, config, checkpoint.optimiser, rate)
            checkpoint.save(epoch + 1, force=epoch + 1 == config.epochs)
            advance(epoch + 1)
    for exit_, head in heads.items():
        head.eval()
        if hasattr(head, "absorb_"):
            scale = scales[inputs[exit_]]
            head.absorb_(scale.mean, scale.std)  # type: ignore[operator]
    return heads


def _rate(peak: float, done: float) -> float:
    """One cycle: linear warm-up over the first tenth, cosine to zero after."""
    return peak * (done / 0.1 if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9))


def _step(
    net: ExitNetwork,
    heads: Mapping[tuple[int, int], nn.Module],
    inputs: Mapping[tuple[int, int], tuple[int, str]],
    scales: Mapping[tuple[int, str], _Scale],
    cache: _Cache,
    rows: Array,
    config: TrainConfig,
    optimiser: torch.optim.Optimizer,
    rate: float,
) -> None:
    device = net.partition.spec.device
    rows = np.sort(rows)
    teacher = torch.from_numpy(cache.answers[rows]).to(device)
    labels = None if cache.labels is None else torch.from_numpy(cache.labels[rows]).to(device)
    batch: dict[tuple[int, str], Tensor] = {}
    loss = torch.zeros((), device=device)
    for exit_, head in heads.items():
        key = inputs[exit_]
        if key not in batch:
            batch[key] = torch.from_numpy(cache.features[key][rows]).to(device)
        z = scales[key](batch[key]) if hasattr(head, "absorb_") else batch[key]
        out = _predict(head.train(len(rows) > 1), z)  # a norm over one sample has no variance
        soft = net.task.distillation(out, teacher, config.temperature).mean()
        if labels is None:
            loss = loss + soft
        else:
            hard = net.task.loss(out, labels).mean()
            loss = loss + config.distillation * soft + (1 - config.distillation) * hard
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _predict(head: nn.Module, z: Tensor) -> Tensor:
    out: Tensor = head.predict(z) if hasattr(head, "predict") else head(z)  # type: ignore[operator]
    return out


@torch.no_grad()
def _report(net: ExitNetwork, heads: Mapping[tuple[int, int], nn.Module], cache: _Cache) -> TrainReport:
    costs = measure_cost(net)
    entries = []
    for (p, c), head in heads.items():
        quality = _mean_quality(net, cache, lambda rows, h=head, p=p: _predict(h, rows(p, _reduction(h))))
        head_macs = int(costs.heads[p, c])
        total = int(costs.backbone[p]) + head_macs
        entries.append(
            TrainedExit(net.positions[p], net.head_names[c], quality, head_macs, total, total / costs.full)
        )
    full = _mean_quality(net, cache, None)
    return TrainReport(tuple(entries), full, cache.rows(), cache.labels is not None)


def _mean_quality(net: ExitNetwork, cache: _Cache, predict: Any) -> float:
    device, total = net.partition.spec.device, 0.0
    for start in range(0, cache.rows(), 1024):
        stop = start + 1024
        teacher = torch.from_numpy(np.array(cache.answers[start:stop])).to(device)

        def rows(p: int, key: str, start: int = start, stop: int = stop) -> Tensor:
            return torch.from_numpy(np.array(cache.features[p, key][start:stop])).to(device)

        out = teacher if predict is None else predict(rows)
        if cache.labels is None:
            total += float(net.task.agreement(out, teacher).sum())
        else:
            labels = torch.from_numpy(np.array(cache.labels[start:stop])).to(device)
            total += float(net.task.quality(out, labels).sum())
    return total / cache.rows()
