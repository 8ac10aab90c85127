"""The built-in tasks, and how to find the answer in what a model returns.

classification         one label of K; quality: the largest output is the label's
multi-label            any of K labels, a logit each; quality: share of the K that are right
multi-label-exact      the same; quality: all K are right
multi-label-f1         the same; quality: F1 of the labels found against the labels there are
token-classification   one label of K for every token; quality: share of the real tokens that are right
regression             K numbers (``offramp.regression``)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.confidence import register_confidence
from offramp.errors import InputError
from offramp.regression import Regression
from offramp.task import Task, as_task, make_task, register_task, token_mean

__all__ = [
    "IGNORED", "Classification", "MultiLabel", "MultiLabelExact", "MultiLabelF1", "Regression", "Task",
    "TokenClassification", "as_task", "make_task", "register_task", "select_output", "token_mean",
]  # fmt: skip

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


@register_task("multi-label")
class MultiLabel(Task):
    """Any of K labels per sample, one logit each, present where it is above 0.

    Quality is the share of the K labels that are right. Labels are 0 or 1, (B, K), or (B,) where K is 1.
    """

    name = "multi-label"
    confidence = "label-mean"

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` unless labels are (B, K), or (B,) where K is 1, of zeros and ones."""
        wanted = tuple(outputs.shape)
        if labels.shape != wanted and not (wanted[1] == 1 and labels.shape == wanted[:1]):
            raise InputError(
                f"labels: expected shape {wanted}, 0 or 1 for each output; got {tuple(labels.shape)}"
            )
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
    """The larger of p and 1 - p of the label that is least sure.

    >>> label_least(torch.tensor([[0.0, 100.0], [-100.0, 100.0]])).tolist()
    [0.5, 1.0]
    """
    return logits.float().abs().amin(1).sigmoid()


def _whole(labels: Tensor) -> bool:
    return not (labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool)


def _check_classes(labels: Tensor, classes: int, ignored: int | None = None) -> None:
    if not _whole(labels):
        raise InputError(f"labels: expected integers, got {labels.dtype}; pass class indices")
    labels = labels.long()  # small unsigned types have no minimum
    labels = labels if ignored is None else labels[labels != ignored]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        also = "" if ignored is None else f" (or {ignored} for a token that does not count)"
        raise InputError(
            f"labels: expected 0 to {classes - 1}{also} because the model has {classes} outputs, "
            f"got {int(labels.min())} to {int(labels.max())}; map the labels or use the matching model"
        )


def _divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, K) twice to (N,)."""
    soft = (teacher / temperature).softmax(1)  # not its logarithm: classes masked with -inf stay finite
    divergence = F.kl_div((outputs / temperature).log_softmax(1), soft, reduction="none")
    return divergence.sum(1) * temperature**2


def select_output(output: object, key: str | int | None, per_token: bool = False) -> Tensor:
    """Read the answer, (B, K) or (B, L, K), off whatever the model returns.

    Args:
        output: a tensor, or a mapping, dataclass-like object or tuple that holds one.
        key: which one; None takes the tensor itself, "logits", or the only tensor there is.
        per_token: whether there is an answer for each of L tokens.

    Raises:
        InputError: it is not there, is ambiguous, or does not have these dimensions.
    """
    found = _lookup(output, key)
    dimensions = 3 if per_token else 2
    if not isinstance(found, Tensor) or found.ndim != dimensions:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        wanted = "(batch, tokens, outputs)" if per_token else "(batch, outputs)"
        three = isinstance(found, Tensor) and found.ndim == 3
        other = ", or task='token-classification' if each token has an answer" if three else ""
        raise InputError(
            f"model output: expected a tensor {wanted}, got {shape}; pass output=<key or index>{other}"
        )
    if not found.dtype.is_floating_point:
        raise InputError(f"model output: expected floating point scores, got {found.dtype}")
    return found


def _lookup(output: object, key: str | int | None) -> Any:
    if isinstance(output, Tensor) and key is None:
        return output
    items: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        items = output
    elif isinstance(output, (tuple, list)):
        items = dict(enumerate(output))
    if key is None:
        key = "logits" if "logits" in items else next(iter(items)) if len(items) == 1 else None
    if key not in items:
        raise InputError(
            f"model output: no {key!r} in it; it has {list(items) or type(output).__name__}; pass output="
        )
    return items[key]
