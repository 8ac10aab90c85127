"""What a model is called with: one tensor, a tuple of tensors, or a dict of named tensors; batch first."""

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
    """Structure of a model's inputs: of each tensor its name, shape without the batch, and type.

    Names are keywords for a dict, where ``keyword`` is true, else "0", "1", ...
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    keyword: bool

    @classmethod
    def of(cls, example: object) -> InputSpec:
        """Read the structure off example inputs; ``InputError`` where they are no batch on one device."""
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
        return cls(
            names=tuple(named),
            shapes=tuple(tuple(value.shape[1:]) for value in named.values()),
            dtypes=tuple(value.dtype for value in named.values()),
            device=devices.pop(),
            keyword=isinstance(example, Mapping),
        )

    def flatten(self, inputs: object) -> list[Tensor]:
        """Tensors of a call, in the order of ``names``; further keys of a mapping are ignored.

        ``InputError`` where a tensor is missing, or differs in shape, dtype, device or batch size.
        """
        if isinstance(inputs, Tensor) and len(self.names) == 1 and not self.keyword and self._fits(inputs):
            return [inputs]
        if self.keyword != isinstance(inputs, Mapping):
            wanted = f"a dict with keys {', '.join(self.names)}" if self.keyword else "a tensor or a tuple"
            raise InputError(f"inputs: expected {wanted}, as in example_inputs; got {type(inputs).__name__}")
        named = _named(inputs)
        if self.keyword:
            if missing := [name for name in self.names if name not in named]:
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
        """Raise ``InputError`` for tensors that the traced graph was not made for."""
        for name, value, shape, dtype in zip(self.names, values, self.shapes, self.dtypes, strict=True):
            if not isinstance(value, Tensor):
                wrong = f"a tensor, got {type(value).__name__}"
            elif value.shape[1:] != shape or value.ndim == 0:
                wrong = f"shape ({', '.join(['B', *map(str, shape)])}), got {tuple(value.shape)}"
            elif value.dtype != dtype:
                wrong = f"{dtype}, got {value.dtype}; convert the batch"
            elif value.device != self.device:
                wrong = f"it on {self.device}, got {value.device}; move the batch"
            elif len(value) != len(values[0]):
                wrong = f"batch size {len(values[0])} like {self.names[0]!r}, got {len(value)}"
            else:
                continue
            raise InputError(f"input {name!r}: expected {wrong}")

    def call(self, values: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """(args, kwargs) of a call to the user's model."""
        if self.keyword:
            return (), dict(zip(self.names, values, strict=True))
        return tuple(values), {}

    def split_labels(self, batch: object) -> tuple[list[Tensor], Tensor | None]:
        """A loader's batch to (inputs, labels), moved to the model's device.

        Understood: ``inputs``; ``(inputs, labels)``; ``(input_1, ..., input_n, labels)``; a dict of inputs
        with an optional key of ``LABEL_KEYS``. ``InputError`` for others, and what ``flatten`` refuses.
        """
        inputs, labels = self._separate(batch)
        if labels is not None:
            try:
                labels = torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"loader: expected labels as a tensor or as numbers, got {labels!r:.80}"
                ) from error
        values = self.flatten(_moved(inputs, self.device))
        return values, None if labels is None else labels.to(self.device)

    def _separate(self, batch: object) -> tuple[object, Any]:
        if isinstance(batch, Mapping):
            found = (batch[key] for key in LABEL_KEYS if key in batch and key not in self.names)
            return batch, next(found, None)
        if not isinstance(batch, (tuple, list)):
            return batch, None
        if len(batch) == 2 and isinstance(batch[0], (Mapping, tuple, list)):
            return batch[0], batch[1]
        count = len(self.names)
        if self.keyword or len(batch) not in (count, count + 1):
            raise InputError(
                f"loader: expected batches of {count} inputs with or without labels, "
                f"or (inputs, labels); got {len(batch)} items"
            )
        return batch[:count], batch[count] if len(batch) > count else None


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
