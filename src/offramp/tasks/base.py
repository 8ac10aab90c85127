"""What a task is: how an answer is read, what it is worth, and how heads learn to give it.

    head ── from_head ──▶ outputs (B, M) ── answer ──▶ what the user gets (B, K)
    model ─ from_model ─▶    │
                             └── loss, distillation, quality, agreement, confidence

For most tasks outputs are the answer and the three arrows do nothing.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.registry import Registry
from offramp.tasks.activation import activate, check_activation, undone


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

    scalar: bool = False
    """Whether a model may answer (B,), which is taken for (B, 1)."""

    activations: tuple[str, ...] = ()
    """Last functions of a model that the task can undo, by name (``offramp.tasks.activation``)."""

    activation: str | None = None
    """The one that the model ends with, applied by ``answer``; None: outputs are the answer."""

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
        """Outputs to what the user gets; ``answer(from_model(y))`` is y, bit for bit.

        For a model that ends with an ``activation`` y is what comes before that.
        """
        return activate(self.activation, outputs)

    def from_answer(self, answer: Tensor) -> Tensor:
        """What the user got to outputs, up to rounding."""
        return self.from_model(answer if self.activation is None else undone(self.activation, answer))

    def real_labels(self, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Labels that leave padding out, given which tokens are real."""
        return labels

    def counted(self, labels: Tensor) -> Tensor | None:
        """Which samples (B,) have a label, as bools; None where all do."""
        return None

    def usable(self, outputs: Tensor) -> bool:
        """Whether outputs can be read at all: none is NaN or infinite."""
        return bool(torch.isfinite(outputs).all())

    def with_activation(self, name: str | None) -> Task:
        """The same task for a model that ends with this function.

        Raises:
            InputError: the task cannot undo it.
        """
        check_activation(name, self.activations)
        if name == self.activation:
            return self
        changed = copy.copy(self)
        changed.activation = name
        return changed

    def options(self) -> dict[str, Any]:
        """What ``make_task`` needs besides the name to make an equal task; plain JSON values."""
        return {} if self.activation is None else {"activation": self.activation}

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


def select_output(
    output: object, key: str | int | None, per_token: bool = False, scalar: bool = False
) -> Tensor:
    """The answer (B, K), or (B, L, K) per token, in whatever a model returns: a tensor, or what holds one.

    ``key`` says which one: a key, an index, or several of them joined by dots ("out.logits"). None takes the
    tensor itself, "logits", or the only one there is. With ``scalar`` an answer (B,) becomes (B, 1).
    ``InputError`` where it is not there, is ambiguous, or does not have these dimensions.
    """
    found = output if key is None else _item(output, key)
    while key is None and not isinstance(found, Tensor):
        found = _item(found, None)
    if scalar and isinstance(found, Tensor) and found.ndim == 1:
        found = found.unsqueeze(1)
    if not isinstance(found, Tensor) or found.ndim != (3 if per_token else 2):
        wanted = "(batch, tokens, outputs)" if per_token else "(batch, outputs)"
        three = isinstance(found, Tensor) and found.ndim == 3
        other = ", or task='token-classification' if each token has an answer" if three else ""
        if isinstance(found, Tensor) and found.ndim == 1 and not per_token:
            other = ", or task='binary' or 'regression' if there is one number per sample"
        raise InputError(
            f"model output: expected a tensor {wanted}, got {_structure(found)}; "
            f"pass output=<key or index>{other}"
        )
    if not found.dtype.is_floating_point:
        raise InputError(f"model output: expected floating point scores, got {found.dtype}")
    return found


def _item(output: object, key: str | int | None) -> Any:
    items = _items(output)
    if key is None:
        key = "logits" if "logits" in items else next(iter(items)) if len(items) == 1 else None
        if key is None:
            raise InputError(
                f"model output: expected one tensor, got {_structure(output)}; say which one is the answer: "
                f"output={_example_of_key(output)!r}"
            )
    if key in items:
        return items[key]
    first, dot, rest = str(key).partition(".")
    name: str | int = int(first) if first.lstrip("-").isdigit() and first not in items else first
    if isinstance(name, int) and name < 0:
        name += len(items)
    names = list(items)
    if isinstance(name, int) and name not in items and name < len(names):
        name = names[name]  # a named tuple by number
    if name not in items:
        raise InputError(f"model output: no {key!r} in {_structure(output)}; pass output=<one of its keys>")
    return _item(items[name], rest) if dot else items[name]


def _items(output: object) -> Mapping[Any, Any]:
    """What holds tensors, by key, field or index."""
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    return {} if output is None or isinstance(output, Tensor) else dict(getattr(output, "__dict__", {}))


def _structure(output: object) -> str:
    """Keys and shapes of what a model returned, for messages."""
    if isinstance(output, Tensor):
        sizes = [str(size) if type(size) is int else "L" for size in output.shape[1:]]  # a length that varies
        shape = ["B", *sizes] if output.ndim else []
        return f"({', '.join(shape)})"
    items = _items(output)
    if not items:
        return type(output).__name__
    return "{" + ", ".join(f"{key!r}: {_structure(value)}" for key, value in items.items()) + "}"


def _example_of_key(output: object) -> str | int:
    """A key that might be meant: the first that leads to a tensor of two dimensions."""
    items = _items(output)
    for key, value in items.items():
        if isinstance(value, Tensor) and value.ndim == 2:
            return key  # type: ignore[no-any-return]
        if not isinstance(value, Tensor) and _items(value):
            return f"{key}.{_example_of_key(value)}"
    return next(iter(items), 0)


def joined_key(key: object) -> str | int | None:
    """A key of the answer as it is stored: ("out", "logits") is "out.logits".

    Raises:
        InputError: it is no key, no index and no tuple of these.
    """
    if isinstance(key, (tuple, list)) and key and all(type(each) in (str, int) for each in key):
        return ".".join(map(str, key)) if len(key) > 1 else key[0]
    if key is None or (isinstance(key, (str, int)) and not isinstance(key, bool)):
        return key
    raise InputError(
        f"output: expected a key or an index of the answer, such as 'logits', 0 or 'out.logits'; got "
        f"{key!r:.80}"
    )
