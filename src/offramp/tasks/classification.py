"""Classification: one class per sample, or one per token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.activation import check_activation
from offramp.tasks.base import Task, check_shape, register_task, token_mean

IGNORED = -100
"""Label of a token that does not count, as in ``torch.nn.functional.cross_entropy``."""


@register_task("classification")
class Classification(Task):
    """One label of K per sample; quality is 1 where the largest output is the label's, else 0."""

    name = "classification"
    confidence = "max-probability"
    activations = ("softmax", "log_softmax", "sigmoid")

    def __init__(self, activation: str | None = None) -> None:
        check_activation(activation, self.activations)
        self.activation = activation

    def head_outputs(self, outputs: int) -> int:
        """K; ``InputError`` for a model of one output, which tells no classes apart."""
        if outputs < 2:
            raise InputError(
                f"task {self.name!r}: expected a model of two outputs or more, one per class, got one; use "
                "task='binary' where it is the score of a yes or no, task='regression' where it is a number"
            )
        return outputs

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` unless labels are (B,) integers in [0, K), or -100 where there is none."""
        _check_classes(labels, outputs, "sample", IGNORED)

    def counted(self, labels: Tensor) -> Tensor | None:
        """Samples (B,) whose label is not -100."""
        counted = labels != IGNORED
        return None if bool(counted.all()) else counted

    def usable(self, outputs: Tensor) -> bool:
        """Whether no score is NaN or plus infinity, and some class of each answer is not masked with -inf."""
        return bool((outputs < float("inf")).all()) and bool((outputs.amax(-1) > float("-inf")).all())

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, mean over the tokens that count (B,)."""
        flat, wanted = outputs.flatten(0, -2), labels.long().flatten()
        each = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none")
        return self._per_sample(each.view(labels.shape), labels != IGNORED, empty=0.0)

    def distillation(
        self, outputs: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        """KL divergence to the full model's softmax at temperature T, times T^2 (arXiv 1503.02531) (B,)."""
        soft = (teacher / temperature).softmax(-1)  # not its logarithm: classes masked with -inf stay finite
        each = F.kl_div((outputs / temperature).log_softmax(-1), soft, reduction="none").sum(-1)
        return self._per_sample(each * temperature**2, mask, empty=0.0)

    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Share of the labels that count whose output is the largest (B,); 0 for a sample without a label."""
        return self._per_sample((outputs.argmax(-1) == labels).float(), labels != IGNORED)

    def agreement(self, outputs: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Share of answers whose largest output is the full model's too (B,)."""
        return self._per_sample((outputs.argmax(-1) == teacher.argmax(-1)).float(), mask)

    def _per_sample(self, values: Tensor, counted: Tensor | None, empty: float = 1.0) -> Tensor:
        return values


@register_task("token-classification")
class TokenClassification(Classification):
    """One label of K per token, outputs (B, L, K); quality is the share of labelled tokens that are right.

    Labels are (B, L), -100 where a token does not count; padding is left out too where the model has a mask.
    A sample without tokens that count has quality 1: there is nothing to get wrong.
    """

    name = "token-classification"
    per_token = True

    def counted(self, labels: Tensor) -> Tensor | None:
        """None: a sample without labels counts as right."""
        return None

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` unless labels are (B, L) integers in [0, K), or -100."""
        _check_classes(labels, outputs, "token", IGNORED)

    def real_labels(self, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Labels (B, L), with -100 at padding. Labels that do not fit the mask are left for the check."""
        if mask is None or not _is_integer(labels) or labels.shape[:1] != mask.shape[:1] or labels.ndim != 2:
            return labels
        if labels.shape[1] < mask.shape[1]:  # the inputs were padded
            labels = F.pad(labels, (0, mask.shape[1] - labels.shape[1]), value=IGNORED)
        if labels.shape != mask.shape:
            return labels
        return labels.long().masked_fill(~mask, IGNORED)

    def _per_sample(self, values: Tensor, counted: Tensor | None, empty: float = 1.0) -> Tensor:
        return token_mean(values, counted, empty)


def _check_classes(labels: Tensor, outputs: Tensor, unit: str, ignored: int | None = None) -> None:
    if labels.shape in (outputs.shape, (*outputs.shape[:-1], 1)) and labels.ndim == outputs.ndim:
        fix = "labels.argmax(-1)" if labels.shape == outputs.shape else "labels.squeeze(-1)"
        raise InputError(
            f"labels: expected shape {tuple(outputs.shape[:-1])}, one class per {unit}; got "
            f"{tuple(labels.shape)}; pass {fix}"
        )
    check_shape(labels, outputs.shape[:-1], f"one class per {unit}")
    if not _is_integer(labels):
        raise InputError(f"labels: expected integers, got {labels.dtype}; pass class indices")
    classes = outputs.shape[-1]
    labels = labels.long()  # small unsigned types have no minimum
    labels = labels if ignored is None else labels[labels != ignored]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        also = "" if unit == "sample" else f" (or {ignored} for a {unit} that does not count)"
        raise InputError(
            f"labels: expected 0 to {classes - 1}{also} because the model has {classes} outputs, "
            f"got {int(labels.min())} to {int(labels.max())}; map the labels or use the matching model"
        )


def _is_integer(labels: Tensor) -> bool:
    return not (labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool)
