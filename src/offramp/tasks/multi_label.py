"""Several labels per sample, each there or not; quality is their share, all or nothing, or F1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.activation import check_activation
from offramp.tasks.base import Task, check_shape, register_task
from offramp.tasks.confidence import register_confidence


@register_task("multi-label")
class MultiLabel(Task):
    """Any of K labels per sample, one logit each, present where it is above 0.

    Quality is the share of the K labels that are right. Labels are 0 or 1, (B, K), or (B,) where K is 1.
    """

    name = "multi-label"
    confidence = "label-mean"
    scalar = True
    activations = ("sigmoid",)

    def __init__(self, activation: str | None = None) -> None:
        check_activation(activation, self.activations)
        self.activation = activation

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` unless labels are (B, K), or (B,) where K is 1, of zeros and ones."""
        check_shape(labels, outputs.shape, "0 or 1 for each output", flat=True)
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise InputError("labels: expected 0 or 1 for each output, got other values; pass labels > 0.5")

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Binary cross entropy (B,), mean over labels."""
        wanted = labels.view(outputs.shape).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").mean(1)

    def distillation(
        self, outputs: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        """KL divergence (B,) to the full model's sigmoids at a temperature T, times T^2, mean over labels."""
        both = torch.stack([outputs, -outputs], 2) / temperature
        soft = (torch.stack([teacher, -teacher], 2) / temperature).sigmoid()
        return F.kl_div(F.logsigmoid(both), soft, reduction="none").sum(2).mean(1) * temperature**2

    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How right the labels found are (B,)."""
        return self._score(outputs > 0, labels.view(outputs.shape) == 1)

    def agreement(self, outputs: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same against the labels that the full model finds (B,)."""
        return self._score(outputs > 0, teacher > 0)

    def _score(self, found: Tensor, wanted: Tensor) -> Tensor:
        """(B, K) bools to (B,) in [0, 1]."""
        return (found == wanted).float().mean(1)


@register_task("binary")
class Binary(MultiLabel):
    """Yes or no: one logit per sample, (B, 1) or (B,), yes where it is above 0.

    Quality is 1 where it is right, else 0. Labels are 0 or 1, (B,) or (B, 1), of any type.
    """

    name = "binary"
    confidence = "label-product"

    def head_outputs(self, outputs: int) -> int:
        """1; ``InputError`` for a model of more outputs."""
        if outputs != 1:
            raise InputError(
                f"task 'binary': expected a model of one output, got {outputs}; use task='classification' "
                "for one score per class, or task='multi-label' for several yes or no"
            )
        return outputs


@register_task("multi-label-exact")
class MultiLabelExact(MultiLabel):
    """Any of K labels per sample; quality is 1 where all K are right, else 0."""

    name = "multi-label-exact"
    confidence = "label-product"

    def _score(self, found: Tensor, wanted: Tensor) -> Tensor:
        return (found == wanted).all(1).float()


@register_task("multi-label-f1")
class MultiLabelF1(MultiLabel):
    """Any of K labels per sample; quality is F1, and 1 where no label is there and none is found.

    For many labels of which few are there: an answer without labels has quality 0, not nearly 1.
    """

    name = "multi-label-f1"
    confidence = "label-product"

    def _score(self, found: Tensor, wanted: Tensor) -> Tensor:
        hits, all_ = (found & wanted).sum(1), found.sum(1) + wanted.sum(1)
        return torch.where(all_ > 0, 2 * hits / all_.clamp(min=1), 1.0)


@register_confidence("label-mean")
def label_mean(logits: Tensor) -> Tensor:
    """Expected share of labels that are right: mean over K of the larger of p and 1 - p, p the sigmoid.

    >>> label_mean(torch.tensor([[0.0, 100.0], [-100.0, 100.0]])).tolist()
    [0.75, 1.0]
    """
    return logits.float().abs().sigmoid().mean(1)


@register_confidence("label-product")
def label_product(logits: Tensor) -> Tensor:
    """Chance that all K labels are right, were they independent: product of the larger of p and 1 - p.

    >>> label_product(torch.tensor([[0.0, 0.0], [-100.0, 0.0]])).tolist()
    [0.25, 0.5]
    """
    return F.logsigmoid(logits.float().abs()).sum(1).exp()


@register_confidence("label-least")
def label_least(logits: Tensor) -> Tensor:
    """The larger of p and 1 - p of the least certain label.

    >>> label_least(torch.tensor([[0.0, 100.0], [-100.0, 100.0]])).tolist()
    [0.5, 1.0]
    """
    return logits.float().abs().amin(1).sigmoid()
