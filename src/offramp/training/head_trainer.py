"""All heads at once on cached features: one optimiser, one loss, a checkpoint after every epoch.

Heads do not influence each other: the loss is the sum of theirs. They start afresh from the seed. Which
samples a head is to be good at may be weighed (``offramp.survivors``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from offramp._progress import progress_bar
from offramp.errors import InputError
from offramp.network import ExitIndex, ExitNetwork
from offramp.training import survivors
from offramp.training.cache import Cache, Ints, Scale, in_parts, predicted, reduction, rows_to_device
from offramp.training.calibrate import unfitted
from offramp.training.checkpoint import Checkpoint
from offramp.training.config import TrainConfig

_SETTLED = 0.25  # of the epochs; before, heads' confidences say little about who will leave


class HeadTrainer:
    """All heads, what each is fed, and one optimiser.

    Args:
        net: whose heads are trained; it is not changed.
        cache: of N rows.
        config: how to train.
        rows: (n,) those to train on, rising.
        reach: (N,) for each exit: how likely a row is to get there. Without it, and with
            ``config.survivors``, that is told from the heads' confidences, anew before each epoch.
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
        scaled = {self._keys[e] for e, head in self._heads.items() if hasattr(head, "absorb_")}
        self._scales = {key: Scale(cache.features[key], self._device) for key in sorted(scaled)}
        self._weights = None if reach is None else self._weighed(reach)
        self._given_weights = reach is not None
        self._optimiser = torch.optim.AdamW(
            [parameter for head in self._heads.values() for parameter in head.parameters()],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self._device.type in ("cpu", "cuda"),  # one call instead of one per tensor
        )

    def run(self, base: Path | None, progress: bool | None) -> dict[ExitIndex, nn.Module]:
        """Train to the end, from where the checkpoint in ``base`` stopped."""
        config, rows = self._config, len(self._rows)
        key = self._key()
        path = base and base / f"heads-{key[:16]}.safetensors"
        checkpoint = Checkpoint(path, key, self._heads, self._optimiser)
        steps = math.ceil(rows / config.batch_size)
        first = checkpoint.resume()
        with progress_bar("Training all heads", config.epochs, progress) as advance:
            for epoch in range(first, config.epochs):
                if config.survivors and not self._given_weights and epoch >= _SETTLED * config.epochs:
                    self._weights = self._weighed(survivors.by_rank(self._confidences()))
                order = self._rows[np.random.default_rng((config.seed, epoch)).permutation(rows)]
                with seeded(self._device, config.seed * 1_000_003 + epoch):
                    for step, batch in enumerate(np.array_split(order, steps)):
                        done = (epoch * steps + step) / (config.epochs * steps)
                        self._step(torch.from_numpy(np.sort(batch)), config.learning_rate * cycle(done))
                check_finite(self._net, self._heads, config.learning_rate)
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
        rows = hashlib.sha256(np.ascontiguousarray(self._rows).data).hexdigest()
        weights = self._weights
        weighed = None if weights is None else hashlib.sha256(weights.numpy().data).hexdigest()
        parts = [
            self._cache.digest, asdict(self._config), self._net.task.identity, self._net.confidence, layers,
            rows, weighed, torch.__version__,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _weighed(self, reach: Mapping[ExitIndex, Tensor]) -> Tensor:
        """(H, N) weights of mean 1 over the rows to train on, 0 elsewhere."""
        rows = torch.from_numpy(self._rows)
        inside = survivors.weights(
            {exit_: reach[exit_][rows] for exit_ in self._heads}, self._config.survivors
        )
        found = torch.zeros(len(self._heads), self._cache.rows())
        found[:, rows] = torch.stack([inside[exit_] for exit_ in self._heads])
        return found

    @torch.no_grad()
    def _confidences(self) -> dict[ExitIndex, Tensor]:
        """(N,) of every head as it is now."""
        confidence_fn, cache, found = unfitted(self._net), self._cache, {}
        for exit_, head in self._heads.items():
            head.eval()

            def apply_head(part: slice, exit_: ExitIndex = exit_, head: nn.Module = head) -> Tensor:
                z = rows_to_device(cache.features[self._keys[exit_]], part, self._device)
                z = self._scales[self._keys[exit_]](z) if hasattr(head, "absorb_") else z
                mask = None if cache.mask is None else cache.mask[part].to(self._device)
                return confidence_fn(self._net.task.from_head(predicted(head, z)), mask)

            found[exit_] = in_parts(cache.rows(), apply_head)
        return found

    def _step(self, rows: Tensor, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        self._loss(rows).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def _loss(self, rows: Tensor) -> Tensor:
        """Sum over heads of the mean loss over the samples ``rows`` (B,)."""
        batch = {key: rows_to_device(f, rows, self._device) for key, f in self._cache.features.items()}
        scaled = {key: scale(batch[key]) for key, scale in self._scales.items()}
        # all heads' outputs as one tensor (H*B, ...): one call of each loss instead of H
        outputs = torch.cat(
            [
                predicted(head.train(len(rows) > 1), (scaled if hasattr(head, "absorb_") else batch)[key])
                for head, key in zip(self._heads.values(), self._keys.values(), strict=True)
            ]  # a batch norm over one sample has no variance
        )
        losses = self._losses(self._net.task.from_head(outputs), rows)
        if self._weights is not None:
            losses = losses * self._weights[:, rows].to(self._device).flatten()
        return losses.sum() / len(rows)

    def _losses(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Per head and sample, (H*B,)."""
        cache, config = self._cache, self._config
        teacher, mask = self._repeated(cache.answers, rows), self._repeated(cache.mask, rows)
        labels = self._repeated(cache.labels, rows)
        return mixed_losses(self._net, outputs, teacher, labels, mask, config)

    def _repeated(self, values: Tensor | None, rows: Tensor) -> Tensor | None:
        """(N, ...) to (H*B, ...): the samples ``rows``, once for each head."""
        if values is None:
            return None
        return values[rows].to(self._device).repeat(len(self._heads), *[1] * (values.ndim - 1))


def mixed_losses(
    net: ExitNetwork,
    outputs: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    config: TrainConfig,
) -> Tensor:
    """Losses (B,) of outputs against the full model's and the labels, weighed by ``config.distillation``."""
    weight = 1.0 if labels is None else config.distillation
    loss = outputs.new_zeros(len(outputs))
    if weight > 0:
        assert teacher is not None  # there always is a full model
        loss = weight * net.task.distillation(outputs, teacher, config.temperature, mask)
    if labels is not None and weight < 1:
        loss = loss + (1 - weight) * net.task.loss(outputs, labels)
    return loss


def check_finite(net: ExitNetwork, heads: Mapping[ExitIndex, nn.Module], rate: float) -> None:
    """Refuse heads with a weight that is not finite.

    Raises:
        InputError: training diverged.
    """
    for (p, c), head in heads.items():
        if not all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters()):
            raise InputError(
                f"training diverged: head {net.head_names[c]!r} at {net.positions[p]!r} is "
                f"not finite any more; lower learning_rate (it is {rate:g})"
            )


def cycle(done: float) -> float:
    """One cycle of the learning rate: linear warm-up over the first tenth, cosine to zero after."""
    return done / 0.1 if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The random state seeded inside (for heads with dropout), as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
