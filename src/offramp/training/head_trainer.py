"""All heads at once on cached features: one optimiser, one loss, a checkpoint after every epoch.

Heads do not influence each other: the loss is the sum of theirs. They start afresh from the seed. Which
samples a head is to be good at may be weighed (``offramp.training.survivors``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.data import threads_for
from offramp.errors import InputError
from offramp.network import ExitIndex, ExitNetwork, mac_table
from offramp.training import survivors
from offramp.training.cache import (
    Cache,
    Ints,
    Scale,
    cached_confidences,
    predicted,
    reduction,
    rows_to_device,
)
from offramp.training.calibrate import unfitted
from offramp.training.checkpoint import run_epochs
from offramp.training.config import TrainConfig

_SETTLED = 0.25  # of the epochs; before, heads' confidences say little about who will leave


class HeadTrainer:
    """Fresh heads for a network, what each is given, and one optimiser.

    They train on the cached ``rows`` (n,), rising. ``reach`` (N,) for each exit is how likely a row is to get
    there; without it, and with ``config.survivors``, that is told from the heads' confidences, anew before
    each epoch.
    """

    def __init__(
        self,
        net: ExitNetwork,
        cache: Cache,
        config: TrainConfig,
        rows: Ints,
        reach: Mapping[ExitIndex, Tensor] | None = None,
    ) -> None:
        self._net, self._cache, self._config, self._rows = net, cache, config, rows
        self._device = net.partition.spec.device
        self._heads = net.fresh_heads(config.seed)
        self._keys = {(p, c): (p, reduction(head, c)) for (p, c), head in self._heads.items()}
        self._absorbing = {e: key for e, key in self._keys.items() if hasattr(self._heads[e], "absorb_")}
        scaled = sorted(set(self._absorbing.values()))
        self._scales = {key: Scale(cache.features[key], self._device) for key in scaled}
        self._weights = None if reach is None else self._weighed(reach)
        self._mean_weight = _mean_weight(cache, rows)
        self._reweigh = config.survivors > 0 and reach is None
        parameters = [parameter for head in self._heads.values() for parameter in head.parameters()]
        self._optimiser = adamw(net, config, [{"params": parameters, "lr": config.learning_rate}])

    def run(self, base: Path | None, progress: bool | None) -> dict[ExitIndex, nn.Module]:
        """Train to the end, from where the checkpoint in ``base`` stopped."""
        weights = self._weights
        depends_on = {
            "cache": self._cache.digest,
            "confidence": self._net.confidence,
            "rows": hashlib.sha256(np.ascontiguousarray(self._rows).data).hexdigest(),
            "weights": None if weights is None else hashlib.sha256(weights.numpy().data).hexdigest(),
        }
        with threads_for(self._work(), "Training all heads"):
            self._epochs(base, depends_on, progress)
        for exit_, head in self._heads.items():
            head.eval()
            if exit_ in self._absorbing:
                scale = self._scales[self._absorbing[exit_]]
                head.absorb_(scale.mean, scale.std)  # type: ignore[operator]
        return self._heads

    def _work(self) -> float:
        """Multiply-accumulates of one step: forward, and twice that backward."""
        try:
            heads = mac_table(self._net).heads
        except InputError:
            return math.inf
        return 3.0 * self._config.batch_size * sum(float(heads[exit_]) for exit_ in self._heads)

    def _epochs(self, base: Path | None, depends_on: Mapping[str, Any], progress: bool | None) -> None:
        run_epochs(
            self._net, self._config, self._optimiser, self._heads, self._epoch, depends_on,
            epochs=self._config.epochs, folder=base, name="heads", label="Training all heads",
            every_epoch=False, progress=progress,
        )  # fmt: skip

    def _epoch(self, epoch: int) -> None:
        config, rows = self._config, len(self._rows)
        if self._reweigh and epoch >= _SETTLED * config.epochs:
            confidence_fn = unfitted(self._net)
            scales = {exit_: self._scales[key] for exit_, key in self._absorbing.items()}
            confidence = cached_confidences(
                self._net, self._heads, self._cache, lambda _: confidence_fn, scales
            )
            self._weights = self._weighed(survivors.by_rank(confidence))
        order = self._rows[np.random.default_rng((config.seed, epoch)).permutation(rows)]
        steps = math.ceil(rows / config.batch_size)
        for step, batch in enumerate(np.array_split(order, steps)):
            done = (epoch * steps + step) / (config.epochs * steps)
            self._step(torch.from_numpy(np.sort(batch)), config.learning_rate * cycle(done))
        check_finite(self._net, self._heads, config.learning_rate)

    def _weighed(self, reach: Mapping[ExitIndex, Tensor]) -> Tensor:
        """(H, N) weights of mean 1 over the rows to train on, 0 elsewhere."""
        rows = torch.from_numpy(self._rows)
        inside = {exit_: reach[exit_][rows] for exit_ in self._heads}
        found = torch.zeros(len(self._heads), self._cache.rows())
        found[:, rows] = torch.stack([*survivors.weights(inside, self._config.survivors).values()])
        return found

    def _step(self, rows: Tensor, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        self._loss(rows).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def _loss(self, rows: Tensor) -> Tensor:
        """Sum over heads of the mean loss over the samples ``rows`` (B,)."""
        net, cache = self._net, self._cache
        batch = {key: rows_to_device(f, rows, self._device) for key, f in cache.features.items()}
        scaled = {key: scale(batch[key]) for key, scale in self._scales.items()}
        # all heads' outputs as one tensor (H*B, ...): one call of each loss instead of H
        outputs = torch.cat(
            [
                predicted(head.train(len(rows) > 1), (scaled if exit_ in self._absorbing else batch)[key])
                for (exit_, head), key in zip(self._heads.items(), self._keys.values(), strict=True)
            ]  # a batch norm over one sample has no variance
        )
        teacher = self._repeated(cache.answers[rows])
        labels, mask = (v if v is None else self._repeated(v[rows]) for v in (cache.labels, cache.mask))
        losses = mixed_losses(net, net.task.from_head(outputs), teacher, labels, mask, self._config)
        if self._weights is not None:
            losses = losses * self._weights[:, rows].to(self._device).flatten()
        if cache.weights is not None:
            losses = losses * self._repeated(cache.weights[rows] / self._mean_weight)
        return losses.sum() / len(rows)

    def _repeated(self, values: Tensor) -> Tensor:
        """(B, ...) to (H*B, ...): all, once for each head."""
        return values.to(self._device).repeat(len(self._heads), *[1] * (values.ndim - 1))


def _mean_weight(cache: Cache, rows: Ints) -> float:
    """Of the samples that heads are trained on, so that losses keep their size."""
    if cache.weights is None:
        return 1.0
    mean = float(cache.weights[torch.from_numpy(rows)].mean())
    if mean == 0:
        raise InputError("sample weights: all are 0; give those that count a weight above 0")
    return mean


def adamw(net: ExitNetwork, config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """The optimiser of groups of parameters, each with its learning rate."""
    fused = net.partition.spec.device.type in ("cpu", "cuda")  # one call instead of one per tensor
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def mixed_losses(
    net: ExitNetwork,
    outputs: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    config: TrainConfig,
) -> Tensor:
    """Losses (B,) of outputs against the full model's and the labels, weighed by ``config.distillation``."""
    weight = 1.0 if labels is None else config.distillation
    loss = outputs.new_zeros(len(outputs))
    if weight > 0:
        loss = weight * net.task.distillation(outputs, teacher, config.temperature, mask)
    if labels is not None and weight < 1:
        loss = loss + (1 - weight) * net.task.loss(outputs, labels)
    return loss


def check_finite(net: ExitNetwork, heads: Mapping[ExitIndex, nn.Module], rate: float) -> None:
    """Refuse heads with a weight that is not finite: training diverged."""
    for (p, c), head in heads.items():
        if not all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters()):
            raise InputError(
                f"training diverged: head {net.head_names[c]!r} at {net.positions[p]!r} is "
                f"not finite any more; lower learning_rate (it is {rate:g})"
            )


def cycle(done: float) -> float:
    """One cycle of the learning rate: linear warm-up over the first tenth, cosine to zero after."""
    return done / 0.1 if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9)
