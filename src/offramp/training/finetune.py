"""Mixed training of a backbone and its exits, where the user allows that the model changes.

    loss = the full model's + the mean of the heads', each from the labels and from the model as it was

What the model said before is its own teacher, so it is pulled towards features that serve exits without
forgetting its task. Buffers (batch norm statistics) and modes stay; parameters that need no gradient stay.
On any error, and on Ctrl-C, the parameters are what they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offramp._progress import progress_bar
from offramp.data import checked_batches
from offramp.errors import InputError
from offramp.heads import apply_head
from offramp.network import ExitIndex, ExitNetwork
from offramp.training.cache import Cache
from offramp.training.checkpoint import Checkpoint
from offramp.training.config import TrainConfig
from offramp.training.head_trainer import check_finite, cycle, mixed_losses, seeded

_HEADS_RATE = 0.1  # of config.learning_rate: the heads are trained already and follow


@contextmanager
def finetuned(
    net: ExitNetwork,
    heads: Mapping[ExitIndex, nn.Module],
    loader: Iterable[Any],
    cache: Cache,
    config: TrainConfig,
    base: Path | None,
    progress: bool | None,
) -> Iterator[None]:
    """The backbone trained together with heads; left as it was if what is done inside fails.

    Args:
        net: whose backbone is trained, in place.
        heads: trained on the backbone as it is; they change, too.
        loader: of the samples that ``cache`` was made of; gone through ``config.backbone_epochs`` times.
        cache: tells which samples are held out, by their place in the loader.
        config: how to train.
        base: folder for a checkpoint.
        progress: None shows a bar when standard error is a terminal.

    Raises:
        InputError: no parameter can be trained, training diverges, or the loader is not what it was.
    """
    parameters = _trainable(net.backbone)
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    try:
        _Mixed(net, heads, parameters, before, cache, config).run(loader, base, progress)
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        raise
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise InputError(
            f"backbone='finetune': no parameter of {type(model).__name__} requires a gradient; "
            "call requires_grad_(True) on those to train, or keep backbone='frozen'"
        )
    small = sorted({str(p.dtype) for p in found if p.dtype not in (torch.float32, torch.float64)})
    if small:
        raise InputError(
            f"backbone='finetune': expected parameters in float32, got {', '.join(small)}; steps are too "
            "small for such types. Fine-tune in float32 and convert afterwards"
        )
    return found


class _Mixed:
    """One optimiser over the backbone's parameters and the heads'."""

    def __init__(
        self,
        net: ExitNetwork,
        heads: Mapping[ExitIndex, nn.Module],
        parameters: Sequence[nn.Parameter],
        before: Sequence[Tensor],
        cache: Cache,
        config: TrainConfig,
    ) -> None:
        self._net, self._heads, self._cache, self._config = net, heads, cache, config
        self._parameters, self._before = parameters, before
        self._device = net.partition.spec.device
        self._samples = -(-cache.rows() // cache.views)
        self._rates = (config.backbone_rate, _HEADS_RATE * config.learning_rate)
        both = [list(parameters), [p for head in heads.values() for p in head.parameters()]]
        self._optimiser = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, rate in zip(both, self._rates, strict=True)],
            weight_decay=config.weight_decay,
            fused=self._device.type in ("cpu", "cuda"),
        )

    def run(self, loader: Iterable[Any], base: Path | None, progress: bool | None) -> None:
        """All epochs, from where a checkpoint stopped."""
        config, key = self._config, self._key()
        held = self._cache.held_out(config.calibration, config.seed)[: self._samples]
        # the parameters alone: what else a model's state holds does not change
        modules = {(-1, 0): nn.ParameterList(self._parameters), **self._heads}
        checkpoint = Checkpoint(
            base and base / f"backbone-{key[:16]}.safetensors", key, modules, self._optimiser
        )
        with progress_bar("Training backbone and heads", config.backbone_epochs, progress) as advance:
            for epoch in range(checkpoint.resume(), config.backbone_epochs):
                with seeded(self._device, config.seed * 1_000_003 + epoch):
                    self._epoch(epoch, loader, held)
                self._check()
                checkpoint.save(epoch + 1, force=True)
                advance(epoch + 1)
        for head in self._heads.values():
            head.eval()

    def _key(self) -> str:
        layers = [[*exit_, repr(head)] for exit_, head in self._heads.items()]
        parts = [self._cache.digest, asdict(self._config), layers, self._net.task.identity, torch.__version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _epoch(self, epoch: int, loader: Iterable[Any], held: npt.NDArray[np.bool_]) -> None:
        seen = 0
        for values, labels in checked_batches(self._net.partition.spec, loader):
            count = len(values[0])
            if seen + count > len(held):
                raise InputError(
                    f"backbone='finetune': the loader gives more than the {len(held)} samples of before; "
                    "pass one that can be gone through again, with the same samples"
                )
            keep = torch.from_numpy(~held[seen : seen + count])
            done = (epoch + seen / len(held)) / self._config.backbone_epochs
            seen += count
            if bool(keep.any()):
                here = keep.to(self._device)
                kept = None if labels is None else labels.to(self._device)[here]
                self._step([value[here] for value in values], kept, cycle(done))

    def _step(self, values: list[Tensor], labels: Tensor | None, rate: float) -> None:
        for group, peak in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = peak * rate
        teacher = self._said_before(values)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._loss(values, labels, teacher)
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise InputError(
                f"backbone='finetune': {type(self._net.backbone).__name__} writes over what its gradient "
                "needs, so it cannot be trained as it is; replace the in-place operation, or keep 'frozen'"
            ) from error
        self._optimiser.step()

    @torch.no_grad()
    def _said_before(self, values: Sequence[Tensor]) -> Tensor:
        """The outputs of the backbone with the parameters it came with."""
        now = [parameter.data for parameter in self._parameters]
        try:
            for parameter, value in zip(self._parameters, self._before, strict=True):
                parameter.data = value
            *_, (_, answer) = self._net.features(values)
        finally:
            for parameter, value in zip(self._parameters, now, strict=True):
                parameter.data = value
        return answer

    def _loss(self, values: Sequence[Tensor], labels: Tensor | None, teacher: Tensor) -> Tensor:
        net, mask = self._net, self._net.mask(values)
        labels = None if labels is None else net.task.real_labels(labels, mask)
        by_position: dict[int, list[nn.Module]] = {}
        for (p, _), head in self._heads.items():
            by_position.setdefault(p, []).append(head.train(len(values[0]) > 1))
        total = torch.zeros((), device=self._device)
        for p, feature in net.features(values):
            if p == len(net.positions):
                total = total + self._mixed(feature, teacher, labels, mask)
            for head in by_position.get(p, []):
                spec = net.specs[p]
                seen = mask if spec is not None and spec.mask else None
                # a copy: the backbone may write to the feature before the gradient is taken
                outputs = net.task.from_head(apply_head(head, feature.clone(), seen))
                total = total + self._mixed(outputs, teacher, labels, mask) / len(self._heads)
        return total

    def _mixed(self, outputs: Tensor, teacher: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        return mixed_losses(self._net, outputs, teacher, labels, mask, self._config).mean()

    def _check(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise InputError(
                "training diverged: the backbone is not finite any more, and is put back; lower "
                f"backbone_rate (it is {self._config.backbone_rate:g})"
            )
        check_finite(self._net, self._heads, self._config.learning_rate)
