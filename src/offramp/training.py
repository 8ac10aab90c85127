"""Train every head of every position at once, the backbone frozen and run once per sample and view.

    loader ──backbone──▶ cached reduced features, answers, labels ──▶ all heads, one optimiser ──▶ net

Each head learns from the labels and from the full model's own outputs; without labels, from the outputs
alone. Heads do not influence each other: the loss is the sum of theirs. They start afresh from the seed, and
the network is changed only when training is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp._progress import progress_bar
from offramp.cost import measure_cost
from offramp.errors import InputError
from offramp.features import Array, collect
from offramp.network import ExitNetwork
from offramp.state import Checkpoint, graph_digest, scratch

Exit = tuple[int, int]
"""(position, head index)."""

Key = tuple[int, str]
"""(position, reduction): heads with equal keys share cached features."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train heads.

    Args:
        epochs: passes over the cached features.
        batch_size: samples per step.
        learning_rate: peak of a one-cycle cosine (AdamW).
        weight_decay: of AdamW.
        distillation: weight of the full model's outputs against the labels, 0 to 1; 1 without labels.
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
        for name, least in (("epochs", 1), ("batch_size", 1), ("views", 1), ("seed", 0)):
            object.__setattr__(self, name, _integer(name, getattr(self, name), least))
        for name in ("learning_rate", "temperature"):
            object.__setattr__(self, name, _real(name, getattr(self, name), "above 0", lambda v: v > 0))
        for name, wanted, fits in (
            ("weight_decay", "of at least 0", lambda v: v >= 0),
            ("distillation", "from 0 to 1", lambda v: 0 <= v <= 1),
        ):
            object.__setattr__(self, name, _real(name, getattr(self, name), wanted, fits))


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number < 2**32:
        raise InputError(f"TrainConfig.{name}: expected an integer of at least {least}, got {value!r}")
    return number


def _real(name: str, value: Any, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and fits(number)):
        raise InputError(f"TrainConfig.{name}: expected a number {wanted}, got {value!r}")
    return number


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
        loader: batches of inputs with or without labels (see ``InputSpec.split_labels``), of the training
            split. A fixed order is enough, training shuffles by itself, and lets a killed run resume.
        config: how to train.
        work_dir: where cached features and checkpoints live; a killed run given the same folder goes on where
            it stopped and ends with the same weights. One process at a time. Without it a temporary folder is
            used.
        progress: None shows bars when standard error is a terminal.

    Raises:
        InputError: the loader yields nothing, changes, does not fit the model, has labels out of range, the
            model gives NaN, or training diverges.
        StorageError: the folder cannot be written or is full.
    """
    config = config or TrainConfig()
    with scratch(work_dir) as base, torch.inference_mode(False), torch.enable_grad():
        cache = _cache(net, loader, config, base, work_dir is not None, progress)
        heads = _Training(net, cache, config).run(base if work_dir else None, progress)
        report = _report(net, heads, cache)
    states = [(net.head(p, net.head_names[c]), head.state_dict()) for (p, c), head in heads.items()]
    for head, state in states:
        head.load_state_dict(state)
    return report


@dataclass(frozen=True)
class _Cache:
    """Rows of N samples, on disk: reduced features by key, answers (N, K), labels (N,) or None.

    ``digest`` is of the samples and of all that the features depend on.
    """

    features: Mapping[Key, Tensor]
    answers: Tensor
    labels: Tensor | None
    digest: str

    def rows(self) -> int:
        return len(self.answers)


def _cache(
    net: ExitNetwork,
    loader: Iterable[Any],
    config: TrainConfig,
    base: Path,
    lasting: bool,
    progress: bool | None,
) -> _Cache:
    wanted = {(p, _reduction(head, c)): head for p, c, head in net.exits()}

    def compute(values: list[Tensor], labels: Tensor | None) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        with torch.inference_mode():
            for p, feature in net.features(values):
                if p == len(net.positions):
                    arrays["answers"] = _finite(feature, "the model's output")
                for (position, key), head in wanted.items():
                    if position == p:
                        reduced = head.reduce(feature) if hasattr(head, "reduce") else feature  # type: ignore[operator]
                        arrays[f"{p}|{key}"] = _finite(reduced, f"the feature at {net.positions[p]!r}")
        if labels is not None:
            net.task.check_labels(labels, torch.from_numpy(arrays["answers"]))
            arrays["labels"] = labels.cpu().numpy()
        return arrays

    parts = [graph_digest(net), net.positions, sorted(wanted), net.output, config.views]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    rows = collect(
        base / f"features-{name}", net.partition.spec, loader, compute,
        label="Running the backbone once", passes=config.views, lasting=lasting, progress=progress,
    )  # fmt: skip
    tensors = {name: torch.from_numpy(array) for name, array in rows.arrays.items()}
    features = {(p, key): tensors[f"{p}|{key}"] for p, key in wanted}
    return _Cache(features, tensors["answers"], tensors.get("labels"), name + rows.digest)


def _reduction(head: nn.Module, index: int) -> str:
    """Which cached feature a head trains on: a shared one, one of its own, or the whole."""
    if not hasattr(head, "reduce"):
        return "whole"
    return str(getattr(head, "reduction", f"own {index}"))


def _finite(values: Tensor, what: str) -> Array:
    values = values.float()
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{what} is not finite; check the inputs for NaN and the model's weights")
    array: Array = values.cpu().numpy()
    return array


class _Scale:
    """Mean and standard deviation (F,) of one cached feature, over rows."""

    def __init__(self, features: Tensor, device: torch.device) -> None:
        flat = features.flatten(1)
        total, square = torch.zeros(2, flat.shape[1], dtype=torch.float64)
        for chunk in torch.split(flat, max(1, 2**21 // flat.shape[1])):  # 16 MiB of doubles at a time
            chunk = chunk.double()
            total += chunk.sum(0)
            square += chunk.square_().sum(0)
        mean = total / len(flat)
        std = (square / len(flat) - mean**2).clamp(min=0).sqrt()
        floor = 0.05 * std.mean() + 1e-6  # a feature that hardly moves must not be blown up
        self.mean = mean.float().to(device)
        self.std = std.clamp(min=floor).float().to(device)

    def __call__(self, z: Tensor) -> Tensor:
        scaled: Tensor = (z.flatten(1) - self.mean) / self.std
        return scaled.view_as(z)


class _Training:
    """All heads, what each is fed, and one optimiser."""

    def __init__(self, net: ExitNetwork, cache: _Cache, config: TrainConfig) -> None:
        self._net, self._cache, self._config = net, cache, config
        self._device = net.partition.spec.device
        self._heads = net.fresh_heads(config.seed)
        self._keys = {(p, c): (p, _reduction(head, c)) for (p, c), head in self._heads.items()}
        scaled = {self._keys[e] for e, head in self._heads.items() if hasattr(head, "absorb_")}
        self._scales = {key: _Scale(cache.features[key], self._device) for key in sorted(scaled)}
        self._optimiser = torch.optim.AdamW(
            [parameter for head in self._heads.values() for parameter in head.parameters()],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self._device.type in ("cpu", "cuda"),  # one call instead of one per tensor
        )

    def run(self, base: Path | None, progress: bool | None) -> dict[Exit, nn.Module]:
        """Train to the end, from where the checkpoint in ``base`` stopped."""
        config, rows = self._config, self._cache.rows()
        key = self._key()
        path = base and base / f"heads-{key[:16]}.safetensors"
        checkpoint = Checkpoint(path, key, self._heads, self._optimiser)
        steps = math.ceil(rows / config.batch_size)
        first = checkpoint.resume()
        with progress_bar("Training all heads", config.epochs, progress) as advance:
            for epoch in range(first, config.epochs):
                order = np.random.default_rng((config.seed, epoch)).permutation(rows)
                with _seeded(self._device, config.seed * 1_000_003 + epoch):
                    for step, batch in enumerate(np.array_split(order, steps)):
                        done = (epoch * steps + step) / (config.epochs * steps)
                        self._step(torch.from_numpy(np.sort(batch)), config.learning_rate * _cycle(done))
                self._check_finite()
                checkpoint.save(epoch + 1, force=epoch + 1 == config.epochs)
                advance(epoch + 1)
        for exit_, head in self._heads.items():
            head.eval()
            if hasattr(head, "absorb_"):
                scale = self._scales[self._keys[exit_]]
                head.absorb_(scale.mean, scale.std)  # type: ignore[operator]
        return self._heads

    def _key(self) -> str:
        """Of everything that the trained weights depend on."""
        layers = [[*exit_, repr(head)] for exit_, head in self._heads.items()]
        parts = [self._cache.digest, asdict(self._config), self._net.task.name, layers, torch.__version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _step(self, rows: Tensor, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        self._loss(rows).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def _loss(self, rows: Tensor) -> Tensor:
        """Sum over heads of the mean loss over the samples ``rows`` (B,)."""
        cache, task, weight = self._cache, self._net.task, self._config.distillation
        count, batch = len(self._heads), {key: self._take(f, rows) for key, f in cache.features.items()}
        scaled = {key: scale(batch[key]) for key, scale in self._scales.items()}
        # all heads' outputs as one tensor (H*B, K): one call of each loss instead of H
        outputs = torch.cat(
            [
                _predict(head.train(len(rows) > 1), (scaled if hasattr(head, "absorb_") else batch)[key])
                for head, key in zip(self._heads.values(), self._keys.values(), strict=True)
            ]  # a batch norm over one sample has no variance
        )
        loss = torch.zeros((), device=self._device)
        if cache.labels is None or weight > 0:
            teacher = self._take(cache.answers, rows).repeat(count, 1)
            soft = task.distillation(outputs, teacher, self._config.temperature).sum()
            loss = soft if cache.labels is None else weight * soft
        if cache.labels is not None and weight < 1:
            labels = self._take(cache.labels, rows)
            labels = labels.repeat(count, *[1] * (labels.ndim - 1))
            loss = loss + (1 - weight) * task.loss(outputs, labels).sum()
        return loss / len(rows)

    def _take(self, values: Tensor, rows: Tensor) -> Tensor:
        return values[rows].to(self._device)

    def _check_finite(self) -> None:
        for (p, c), head in self._heads.items():
            if not all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters()):
                raise InputError(
                    f"training diverged: head {self._net.head_names[c]!r} at {self._net.positions[p]!r} is "
                    f"not finite any more; lower learning_rate (it is {self._config.learning_rate:g})"
                )


def _cycle(done: float) -> float:
    """One cycle of the learning rate: linear warm-up over the first tenth, cosine to zero after."""
    return done / 0.1 if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The random state seeded inside (for heads with dropout), as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _predict(head: nn.Module, z: Tensor) -> Tensor:
    out: Tensor = head.predict(z) if hasattr(head, "predict") else head(z)  # type: ignore[operator]
    return out


@torch.no_grad()
def _report(net: ExitNetwork, heads: Mapping[Exit, nn.Module], cache: _Cache) -> TrainReport:
    costs, entries = measure_cost(net), []
    for (p, c), head in heads.items():
        features = cache.features[p, _reduction(head, c)]
        macs = int(costs.heads[p, c])
        total = int(costs.backbone[p]) + macs
        quality = _mean_quality(net, cache, head, features)
        share = total / costs.full
        entries.append(TrainedExit(net.positions[p], net.head_names[c], quality, macs, total, share))
    full = _mean_quality(net, cache, None, cache.answers)
    return TrainReport(tuple(entries), full, cache.rows(), cache.labels is not None)


def _mean_quality(net: ExitNetwork, cache: _Cache, head: nn.Module | None, fed: Tensor) -> float:
    device, total = net.partition.spec.device, 0.0
    for start in range(0, cache.rows(), 1024):
        part = slice(start, start + 1024)
        values = fed[part].to(device)
        out = values if head is None else _predict(head, values)
        if cache.labels is None:
            total += float(net.task.agreement(out, cache.answers[part].to(device)).sum())
        else:
            total += float(net.task.quality(out, cache.labels[part].to(device)).sum())
    return total / cache.rows()
