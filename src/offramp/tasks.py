"""What an answer is: how to read it off the model's output, and how good one is.

A task turns outputs and labels into a loss to train heads with and a quality in [0, 1] to search with. A
new one is a class with the methods of ``Task``, under ``register_task``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InputError
from offramp.registry import Registry


class Task(Protocol):
    """The protocol of a task. ``outputs`` are (B, K) throughout."""

    name: str
    confidence: str
    """Default confidence, by name."""

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` if the labels do not fit the outputs."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss (B,) against labels."""
        ...

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Per-sample loss (B,) against the full model's outputs."""
        ...

    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Per-sample quality (B,) in [0, 1] against labels."""
        ...

    def agreement(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Per-sample quality (B,) in [0, 1] against the full model's outputs."""
        ...


_TASKS: Registry[Callable[[], Task]] = Registry("task")
register_task = _TASKS.register


def make_task(name: str) -> Task:
    """A task by name.

    Raises:
        InputError: none is registered under ``name``.
    """
    return _TASKS[name]()


@register_task("classification")
class Classification:
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
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise InputError(f"labels: expected integers, got {labels.dtype}; pass class indices")
        labels = labels.long()  # small unsigned types have no minimum
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise InputError(
                f"labels: expected 0 to {classes - 1} because the model has {classes} outputs, "
                f"got {int(labels.min())} to {int(labels.max())}; map the labels or use the matching model"
            )

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy (B,)."""
        return F.cross_entropy(outputs, labels.long(), reduction="none")

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL divergence (B,) to the full model's softmax at a temperature T, times T^2 (arXiv 1503.02531)."""
        soft = (teacher / temperature).softmax(1)  # not its logarithm: classes masked with -inf stay finite
        divergence = F.kl_div((outputs / temperature).log_softmax(1), soft, reduction="none")
        return divergence.sum(1) * temperature**2

    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """1 where the largest output is the label's (B,)."""
        return (outputs.argmax(1) == labels).float()

    def agreement(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """1 where the largest output is the full model's too (B,)."""
        return (outputs.argmax(1) == teacher.argmax(1)).float()


def select_output(output: object, key: str | int | None) -> Tensor:
    """Read the (B, K) answer off whatever the model returns.

    Args:
        output: a tensor, or a mapping, dataclass-like object or tuple that holds one.
        key: which one; None takes the tensor itself, "logits", or the only tensor there is.

    Raises:
        InputError: it is not there, is ambiguous, or is not (B, K).
    """
    found = _lookup(output, key)
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"model output: expected a tensor (batch, outputs), got {shape}; pass output=<key or index>"
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
