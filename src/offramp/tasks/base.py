"""What a task is: how an answer is read, what it is worth, and how heads learn to give it.

    head ── from_head ──▶ outputs (B, M) ── answer ──▶ what the user gets (B, K)
    model ─ from_model ─▶    │
                             └── loss, distillation, quality, agreement, confidence

For most tasks outputs are the answer and the three arrows do nothing.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.registry import Registry


class Task(ABC):
    """Base of all tasks; a new one is a subclass under ``register_task``.

    ``outputs`` are (B, M) with M = ``head_outputs(K)`` for a model of K outputs; where ``per_token`` is true
    they are (B, L, K). ``mask`` is (B, L), True at real tokens, or None; only tasks per token look at it.
    What comes back is one number per sample, and no sample's number may depend on another sample.
    """

    name: str
    """What it is registered under."""

    confidence: str
    """Default confidence, by name."""

    per_token: bool = False
    """Whether every token has an answer."""

    @abstractmethod
    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` if the labels do not fit the outputs."""

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Per-sample loss (B,) against labels."""

    @abstractmethod
    def distillation(
        self, outputs: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        """Per-sample loss (B,) against the full model's outputs."""

    @abstractmethod
    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Per-sample quality (B,) in [0, 1] against labels."""

    @abstractmethod
    def agreement(self, outputs: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Per-sample quality (B,) in [0, 1] against the full model's outputs; 1 where they are equal."""

    def head_outputs(self, outputs: int) -> int:
        """M, how many outputs a head has where the model has K.

        Raises:
            InputError: the task's options are for another number of outputs.
        """
        return outputs

    def from_head(self, raw: Tensor) -> Tensor:
        """What a trained head returned to outputs."""
        return raw

    def from_model(self, answer: Tensor) -> Tensor:
        """What the model returned, (B, K), to outputs."""
        return answer

    def answer(self, outputs: Tensor) -> Tensor:
        """Outputs to what the user gets; ``answer(from_model(y))`` is y, bit for bit."""
        return outputs

    def real_labels(self, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Labels that leave padding out, given which tokens are real."""
        return labels

    def options(self) -> dict[str, Any]:
        """What ``make_task`` needs besides the name to make an equal task; plain JSON values."""
        return {}

    @property
    def identity(self) -> str:
        """Name and options as text: equal for tasks that do the same."""
        return json.dumps([self.name, self.options()], sort_keys=True)


_TASKS: Registry[Callable[..., Task]] = Registry("task")
register_task = _TASKS.register


def make_task(name: str, **options: Any) -> Task:
    """A task by its registered name, with options as ``Task.options`` gives them; most tasks have none.

    ``InputError`` where none is registered under the name, or where it does not have these options.
    """
    factory = _TASKS[name]
    try:
        task = factory(**options)
    except TypeError as error:
        raise InputError(
            f"task {name!r}: its options do not fit ({error}); make it from its class and pass task=<that>"
        ) from None
    if not isinstance(task, Task):
        raise InputError(f"task {name!r}: expected a subclass of Task registered there, got {type(task)}")
    return task


def as_task(task: str | Task) -> Task:
    """A task given by name, or as it is; ``InputError`` where it is neither, or needs options."""
    if isinstance(task, Task):
        return task
    if isinstance(task, str):
        return make_task(task)
    raise InputError(f"task: expected a name or a Task, got {task!r:.80}; for example task='classification'")


def check_shape(labels: Tensor, wanted: Sequence[int], meaning: str, flat: bool = False) -> None:
    """Raise ``InputError`` unless labels are of this shape; with ``flat``, (B,) may stand for (B, 1)."""
    if labels.shape != tuple(wanted) and not (flat and (*labels.shape, 1) == tuple(wanted)):
        raise InputError(f"labels: expected shape {tuple(wanted)}, {meaning}; got {tuple(labels.shape)}")


def token_mean(values: Tensor, mask: Tensor | None, empty: float = 1.0) -> Tensor:
    """Mean (B,) of values (B, L) over real tokens, where the mask (B, L) is True; None where all are.

    ``empty`` is what a sample without real tokens gets.
    """
    if mask is None:
        return values.mean(1)
    count = mask.sum(1)
    total = torch.where(mask, values, 0).sum(1)  # not a product: padding may hold anything, inf included
    return torch.where(count > 0, total / count.clamp(min=1), empty)


def select_output(output: object, key: str | int | None, per_token: bool = False) -> Tensor:
    """The answer (B, K), or (B, L, K) per token, in whatever a model returns: a tensor, or what holds one.

    ``key`` says which one; None takes the tensor itself, "logits", or the only tensor there is.
    ``InputError`` where it is not there, is ambiguous, or does not have these dimensions.
    """
    found = output if isinstance(output, Tensor) and key is None else _item(output, key)
    if not isinstance(found, Tensor) or found.ndim != (3 if per_token else 2):
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


def _item(output: object, key: str | int | None) -> Any:
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
