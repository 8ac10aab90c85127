"""Mixed training of a backbone and its exits, where the user allows that the model changes.

    loss = the full model's + the mean of the heads', each from the labels and from the model as it was

What the model said before is its own teacher, so it is pulled towards features that serve exits without
forgetting its task. Buffers (batch norm statistics) and modes stay; parameters that need no gradient stay.
On any error, and on Ctrl-C, the parameters are what they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.data import named_batches, threads_for
from offramp.errors import InputError
from offramp.heads import apply_head
from offramp.network import ExitIndex, ExitNetwork, work_of
from offramp.training.cache import Cache, feature_mask
from offramp.training.checkpoint import run_epochs
from offramp.training.config import TrainConfig
from offramp.training.head_trainer import adamw, check_finite, cycle, mixed_losses

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
    """The backbone trained, in place, together with trained heads; put back if what is done inside fails.

    ``loader`` gives the samples that ``cache`` was made of, which tells those held out by their place; it is
    gone through ``config.backbone_epochs`` times. ``base`` is for a checkpoint.
    """
    parameters = _trainable(net.backbone)
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    mixed = _Mixed(net, heads, loader, cache, config, parameters, before)
    try:
        with threads_for(3 * config.batch_size * work_of(net), "Training backbone and heads"):
            run_epochs(
                net, config, mixed.optimiser, {(-1, 0): nn.ParameterList(parameters), **heads}, mixed.epoch,
                {"cache": cache.digest}, epochs=config.backbone_epochs, folder=base, name="backbone",
                label="Training backbone and heads", every_epoch=True, progress=progress,
            )  # fmt: skip
        for head in heads.values():
            head.eval()
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
    """One optimiser over the backbone's parameters, which were ``before``, and the heads'."""

    def __init__(
        self,
        net: ExitNetwork,
        heads: Mapping[ExitIndex, nn.Module],
        loader: Iterable[Any],
        cache: Cache,
        config: TrainConfig,
        parameters: Sequence[nn.Parameter],
        before: Sequence[Tensor],
    ) -> None:
        self._net, self._heads, self._loader, self._config = net, heads, loader, config
        self._parameters, self._before = parameters, before
        self._held = cache.held_out(config.calibration, config.seed)[: cache.samples()]
        both = (list(parameters), [p for head in heads.values() for p in head.parameters()])
        self._rates = (config.backbone_rate, _HEADS_RATE * config.learning_rate)
        groups = [{"params": group, "lr": rate} for group, rate in zip(both, self._rates, strict=True)]
        self.optimiser = adamw(net, config, groups)

    def epoch(self, epoch: int) -> None:
        """One pass over the loader, without the samples that are held out."""
        seen, held, spec = 0, self._held, self._net.partition.spec
        for _, values, labels, weights in named_batches(spec, self._loader):
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
                here = keep.to(spec.device)
                kept = None if labels is None else labels.to(spec.device)[here]
                weights = None if weights is None else weights[here]
                self._step([value[here] for value in values], kept, weights, cycle(done))
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise InputError(
                "training diverged: the backbone is not finite any more, and is put back; lower "
                f"backbone_rate (it is {self._config.backbone_rate:g})"
            )
        check_finite(self._net, self._heads, self._config.learning_rate)

    def _step(self, values: list[Tensor], labels: Tensor | None, weights: Tensor | None, rate: float) -> None:
        for group, peak in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = peak * rate
        teacher = self._said_before(values)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(values, labels, weights, teacher)
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise InputError(
                f"backbone='finetune': {type(self._net.backbone).__name__} writes over what its gradient "
                "needs, so it cannot be trained as it is; replace the in-place operation, or keep 'frozen'"
            ) from error
        self.optimiser.step()

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

    def _loss(
        self, values: Sequence[Tensor], labels: Tensor | None, weights: Tensor | None, teacher: Tensor
    ) -> Tensor:
        net, config, mask = self._net, self._config, self._net.mask(values)
        labels = None if labels is None else net.task.real_labels(labels, mask)
        total = torch.zeros((), device=net.partition.spec.device)
        for p, feature in net.features(values):
            if p == len(net.positions):
                total = total + _mean(mixed_losses(net, feature, teacher, labels, mask, config), weights)
            for head in (head for (position, _), head in self._heads.items() if position == p):
                # a copy: the backbone may write to the feature before the gradient is taken
                seen = feature.clone()
                raw = apply_head(head.train(len(values[0]) > 1), seen, feature_mask(net, p, mask))
                losses = mixed_losses(net, net.task.from_head(raw), teacher, labels, mask, config)
                total = total + _mean(losses, weights) / len(self._heads)
        return total


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Of losses (B,), weighed by those of the samples."""
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum().clamp(min=1e-12)
