"""Classification: one class per sample, or one per token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.base import Task, register_task, token_mean
from offramp.tasks.multi_label import _whole
from offramp.tasks.outputs import _check_classes

IGNORED = -100
"""Label of a token that does not count, as in ``torch.nn.functional.cross_entropy``."""


@register_task("classification")
class Classification(Task):
    """One label of K per sample; quality is 1 where the largest output is the label's, else 0."""

    name = "classification"
    confidence = "max-probability"

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` unless labels are (B,) integers in [0, K)."""
        classes = outputs.shape[1]
        if labels.shape != outputs.shape[:1]:
            raise InputError(
                f"labels: expected shape ({len(outputs)},), one class per sample; got {tuple(labels.shape)}"
            )
        _check_classes(labels, classes)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy (B,)."""
        return F.cross_entropy(outputs, labels.long(), reduction="none")

    def distillation(
        self, outputs: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        """KL divergence (B,) to the full model's softmax at a temperature T, times T^2 (arXiv 1503.02531)."""
        return _divergence(outputs, teacher, temperature)

    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """1 where the largest output is the label's (B,)."""
        return (outputs.argmax(1) == labels).float()

    def agreement(self, outputs: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """1 where the largest output is the full model's too (B,)."""
        return (outputs.argmax(1) == teacher.argmax(1)).float()


@register_task("token-classification")
class TokenClassification(Task):
    """One label of K per token, outputs (B, L, K); quality is the share of labelled tokens that are right.

    Labels are (B, L), -100 where a token does not count; padding is left out too where the model has a mask.
    A sample without tokens that count has quality 1: there is nothing to get wrong.
    """

    name = "token-classification"
    confidence = "max-probability"
    per_token = True

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` unless labels are (B, L) integers in [0, K), or -100."""
        if labels.shape != outputs.shape[:2]:
            raise InputError(
                f"labels: expected shape {tuple(outputs.shape[:2])}, one class per token; got "
                f"{tuple(labels.shape)}"
            )
        _check_classes(labels, outputs.shape[2], ignored=IGNORED)

    def real_labels(self, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Labels (B, L), with -100 at padding. Labels that do not fit the mask are left for the check."""
        if mask is None or labels.shape != mask.shape or not _whole(labels):
            return labels
        return labels.long().masked_fill(~mask, IGNORED)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy (B,), mean over the tokens that count."""
        flat, wanted = outputs.flatten(0, 1), labels.long().flatten()
        each = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none")
        return token_mean(each.view(labels.shape), labels != IGNORED, empty=0.0)

    def distillation(
        self, outputs: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        """KL divergence (B,) as in classification, mean over real tokens."""
        each = _divergence(outputs.flatten(0, 1), teacher.flatten(0, 1), temperature)
        return token_mean(each.view(outputs.shape[:2]), mask, empty=0.0)

    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Share of the tokens that count whose largest output is the label's (B,)."""
        return token_mean((outputs.argmax(2) == labels).float(), labels != IGNORED)

    def agreement(self, outputs: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Share of real tokens whose largest output is the full model's too (B,)."""
        return token_mean((outputs.argmax(2) == teacher.argmax(2)).float(), mask)


def _divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, K) twice to (N,)."""
    soft = (teacher / temperature).softmax(1)  # not its logarithm: classes masked with -inf stay finite
    divergence = F.kl_div((outputs / temperature).log_softmax(1), soft, reduction="none")
    return divergence.sum(1) * temperature**2
