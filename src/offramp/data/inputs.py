"""What a model is called with: one tensor, a tuple of tensors, or a dict of named tensors; batch first.

spec = InputSpec.of(example)        # structure, shapes without batch, dtypes, device
spec.flatten(batch)                 # -> list of tensors in a fixed order, checked
spec.split_labels(batch)            # a loader's batch -> (tensors, labels or None)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError

LABEL_KEYS = ("labels", "label", "target", "targets")


@dataclass(frozen=True)
class InputSpec:
    """Structure of a model's inputs.

    Args:
        names: one per tensor; keyword names for a dict, "0", "1", ... for positional ones.
        shapes: of one sample each, without the batch dimension.
        dtypes: of each tensor.
        device: common to all.
        keyword: True where the model is called with keywords.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    keyword: bool

    @classmethod
    def of(cls, example: object) -> InputSpec:
        """Read the structure off example inputs.

        Raises:
            InputError: not tensors, no batch dimension, or batch sizes or devices differ.
        """
        keyword = isinstance(example, Mapping)
        named = _named(example)
        if not named:
            raise InputError("example_inputs: expected a tensor, or a tuple or dict of tensors; got none")
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"example_inputs[{name!r}]: expected a tensor, got {type(value).__name__}; "
                    "wrap the model so that it takes tensors only"
                )
            if value.ndim == 0:
                raise InputError(f"example_inputs[{name!r}]: expected a batch dimension first, got a scalar")
        sizes = {len(value) for value in named.values()}
        devices = {value.device for value in named.values()}
        if len(sizes) > 1 or len(devices) > 1 or 0 in sizes:
            raise InputError(
                "example_inputs: expected one batch size of at least 1 and one device, "
                f"got sizes {sorted(sizes)} on {sorted(map(str, devices))}"
            )
        shapes = tuple(tuple(value.shape[1:]) for value in named.values())
        dtypes = tuple(value.dtype for value in named.values())
        return cls(tuple(named), shapes, dtypes, devices.pop(), keyword)

    def flatten(self, inputs: object) -> list[Tensor]:
        """Tensors of a call, in the order of ``names``.

        Args:
            inputs: a tensor, a tuple or list, or a mapping (extra keys are ignored).

        Raises:
            InputError: a tensor is missing, or differs in shape, dtype, device or batch size.
        """
        if isinstance(inputs, Tensor) and len(self.names) == 1 and not self.keyword and self._fits(inputs):
            return [inputs]
        if self.keyword != isinstance(inputs, Mapping):
            wanted = f"a dict with keys {', '.join(self.names)}" if self.keyword else "a tensor or a tuple"
            raise InputError(f"inputs: expected {wanted}, as in example_inputs; got {type(inputs).__name__}")
        named = _named(inputs)
        if self.keyword:
            missing = [name for name in self.names if name not in named]
            if missing:
                raise InputError(f"inputs: expected keys {self.names}, {missing} missing; got {tuple(named)}")
        elif len(named) != len(self.names):
            raise InputError(f"inputs: expected {len(self.names)} tensors, got {len(named)}")
        values = [named[name] for name in self.names]
        self.check(values)
        return values

    def _fits(self, value: Tensor) -> bool:
        """The usual case of ``check``, in a microsecond."""
        shape = value.shape
        return (
            len(shape) > 0
            and shape[1:] == self.shapes[0]
            and value.dtype == self.dtypes[0]
            and value.device == self.device
        )

    def check(self, values: Sequence[Tensor]) -> None:
        """Refuse tensors that the traced graph was not made for.

        Raises:
            InputError: naming the input, what was expected and what came.
        """
        for name, value, shape, dtype in zip(self.names, values, self.shapes, self.dtypes, strict=True):
            if not isinstance(value, Tensor):
                raise InputError(f"input {name!r}: expected a tensor, got {type(value).__name__}")
            if value.shape[1:] != shape or value.ndim == 0:
                raise InputError(f"input {name!r}: expected shape ({_dims(shape)}), got {tuple(value.shape)}")
            if value.dtype != dtype:
                raise InputError(f"input {name!r}: expected {dtype}, got {value.dtype}; convert the batch")
            if value.device != self.device:
                raise InputError(
                    f"input {name!r}: expected it on {self.device}, got {value.device}; move the batch"
                )
            if len(value) != len(values[0]):
                raise InputError(
                    f"input {name!r}: expected batch size {len(values[0])} like {self.names[0]!r}, "
                    f"got {len(value)}"
                )

    def call(self, values: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """(args, kwargs) of a call to the user's model."""
        if self.keyword:
            return (), dict(zip(self.names, values, strict=True))
        return tuple(values), {}

    def split_labels(self, batch: object) -> tuple[list[Tensor], Tensor | None]:
        """A loader's batch to (inputs, labels).

        Understood: ``inputs``; ``(inputs, labels)``; ``(input_1, ..., input_n, labels)``; a dict of inputs
        with an optional key "labels" (or "label", "target", "targets"). Tensors are moved to the model's
        device.

        Raises:
            InputError: any other structure, or inputs that ``flatten`` refuses.
        """
        inputs, labels = self._separate(batch)
        if labels is not None:
            labels = _as_labels(labels).to(self.device)
        return self.flatten(_moved(inputs, self.device)), labels

    def _separate(self, batch: object) -> tuple[object, Any]:
        if isinstance(batch, Mapping):
            return batch, next(
                (batch[key] for key in LABEL_KEYS if key in batch and key not in self.names), None
            )
        if not isinstance(batch, (tuple, list)):
            return batch, None
        if len(batch) == 2 and isinstance(batch[0], (Mapping, tuple, list)):
            return batch[0], batch[1]
        if self.keyword or len(batch) not in (len(self.names), len(self.names) + 1):
            raise InputError(
                f"loader: expected batches of {len(self.names)} inputs with or without labels, "
                f"or (inputs, labels); got {len(batch)} items"
            )
        labelled = len(batch) > len(self.names)
        return tuple(batch[: len(self.names)]), batch[-1] if labelled else None


def _named(inputs: object) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return {str(name): value for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return {str(i): value for i, value in enumerate(inputs)}
    return {"0": inputs}


def _moved(inputs: object, device: torch.device) -> object:
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_moved(value, device) for value in inputs)
    return inputs.to(device) if isinstance(inputs, Tensor) else inputs


def _as_labels(labels: object) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"loader: expected labels as a tensor or as numbers, got {labels!r:.80}") from error


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(["B", *map(str, shape)])
