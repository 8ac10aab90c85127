"""What a model is called with: one tensor, a tuple of tensors, or a dict of named tensors; batch first.

Texts come in batches of different lengths, each padded to its own longest (B, L). A network traced with a
length that varies runs them as they are; any other gets them padded to the length of its example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InputError

LABEL_KEYS = ("labels", "label", "target", "targets")
WEIGHT_KEYS = ("sample_weight", "sample_weights", "weight", "weights")


@dataclass(frozen=True)
class Lengths:
    """Inputs whose dimension 1 is the number of tokens, and what they are padded with.

    Args:
        inputs: their indices, in order.
        padding: one value for each of these inputs.
        longest: how many tokens the example has.
        limits: fewest and most tokens that the traced model takes; both are ``longest`` where it was traced
            for that length alone.
    """

    inputs: tuple[int, ...]
    padding: tuple[int, ...]
    longest: int
    limits: tuple[int, int]

    @property
    def vary(self) -> bool:
        """Whether the traced model runs shorter batches as they are."""
        return self.limits[0] < self.limits[1]


@dataclass(frozen=True)
class InputSpec:
    """Structure of a model's inputs: of each tensor its name, shape without the batch, and type.

    Names are keywords for a dict, where ``keyword`` is true, else "0", "1", ...; ``mapping`` is true for a
    model that takes one dict as its only argument. ``lengths`` tells of texts; None: every shape is fixed.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    keyword: bool
    mapping: bool = False
    lengths: Lengths | None = None

    @classmethod
    def of(cls, example: object) -> InputSpec:
        """Read the structure off example inputs; ``InputError`` where they are no batch on one device."""
        mapping = _is_wrapped(example)
        named = _named(example)
        if not named:
            raise InputError("example_inputs: expected a tensor, or a tuple or dict of tensors; got none")
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"example_inputs[{name!r}]: expected a tensor, got {type(value).__name__}; pass a batch "
                    "of inputs, such as next(iter(loader))[0], and wrap a model that takes other things"
                )
            if not _is_dense(value):
                raise InputError(
                    f"example_inputs[{name!r}]: expected a dense tensor, got a sparse or nested one; "
                    "call .to_dense() or pad it"
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
            keyword=mapping or isinstance(example, Mapping),
            mapping=mapping,
        )

    def as_mapping(self) -> InputSpec:
        """The same of a model that takes one dict as its only argument."""
        return replace(self, mapping=True)

    def with_lengths(self, lengths: Lengths) -> InputSpec:
        """The same of a model of texts."""
        return replace(self, lengths=lengths)

    def flatten(self, inputs: object) -> list[Tensor]:
        """Tensors of a call, in the order of ``names``; further keys of a mapping are ignored.

        ``InputError`` where a tensor is missing, or differs in shape, dtype, device or batch size.
        """
        if isinstance(inputs, Tensor) and len(self.names) == 1 and not self.keyword and self._fits(inputs):
            return [inputs]
        if self.keyword and _is_wrapped(inputs):
            inputs = inputs[0]  # type: ignore[index]
        if self.keyword != isinstance(inputs, Mapping):
            wanted = f"a dict with keys {', '.join(self.names)}" if self.keyword else "a tensor or a tuple"
            raise InputError(f"inputs: expected {wanted}, as in example_inputs; got {type(inputs).__name__}")
        named = _named(inputs)
        if self.keyword:
            if missing := [name for name in self.names if name not in named]:
                raise InputError(f"inputs: expected keys {self.names}, {missing} missing; got {tuple(named)}")
        elif len(named) != len(self.names):
            plural = "" if len(self.names) == 1 else "s"
            hint = "; labels are no inputs, and a list of samples is stacked first (torch.stack)"
            raise InputError(f"inputs: expected {len(self.names)} tensor{plural}, got {len(named)}{hint}")
        values = [named[name] for name in self.names]
        if self.lengths is not None and not self.lengths.vary:
            values = self.padded(values)
        self.check(values)
        return values

    def padded(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of a batch of texts, padded to the length of the example; longer ones as they are."""
        values = list(values)
        if self.lengths is not None:
            for i, value in zip(self.lengths.inputs, self.lengths.padding, strict=True):
                each = values[i]
                if (
                    isinstance(each, Tensor)
                    and _is_dense(each)
                    and each.ndim > 1
                    and each.shape[1] < self.lengths.longest
                ):
                    beyond = (0, 0) * (each.ndim - 2) + (0, self.lengths.longest - each.shape[1])
                    values[i] = F.pad(each, beyond, value=value)
        return values

    def tokens_given(self, inputs: object) -> int | None:
        """How many tokens the texts of a call have before they are filled up; None where nothing is."""
        if self.lengths is None or not isinstance(inputs, Mapping):
            return None
        first = self.lengths.inputs[0]
        after = len(self.shapes[first])  # dimensions of one sample
        return int(inputs[self.names[first]].shape[-after])

    def length(self, values: Sequence[Tensor]) -> int | None:
        """How many tokens checked texts have, padding included; None where lengths do not vary."""
        if self.lengths is None or not self.lengths.vary:
            return None
        return values[self.lengths.inputs[0]].shape[1]

    def shapes_at(self, length: int | None) -> list[tuple[int, ...]]:
        """``shapes`` for texts of this length; None: the example's."""
        shapes = list(self.shapes)
        if self.lengths is not None and length is not None:
            for i in self.lengths.inputs:
                shapes[i] = (length, *shapes[i][1:])
        return shapes

    def _fits(self, value: Tensor) -> bool:
        """The usual case of ``check``, in a microsecond."""
        if value.is_nested:
            return False
        shape = value.shape
        return (
            len(shape) > 0
            and value.layout is torch.strided
            and shape[1:] == self.shapes[0]
            and value.dtype == self.dtypes[0]
            and value.device == self.device
        )

    def check(self, values: Sequence[Tensor]) -> None:
        """Raise ``InputError`` for tensors that the traced graph was not made for."""
        shapes = self.shapes if self.lengths is None else self._shapes_of(values, self.lengths)
        for name, value, shape, dtype in zip(self.names, values, shapes, self.dtypes, strict=True):
            if not isinstance(value, Tensor):
                wrong = f"a tensor, got {type(value).__name__}"
            elif not _is_dense(value):
                wrong = "a dense tensor, got a sparse or nested one; call .to_dense() or pad it"
            elif value.shape == shape and shape:
                wrong = (
                    f"a batch, shape ({', '.join(['B', *map(str, shape)])}), got one sample {tuple(shape)}; "
                    "add a dimension by unsqueeze(0), or wrap a data set in a DataLoader"
                )
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

    def _shapes_of(self, values: Sequence[Tensor], lengths: Lengths) -> Sequence[tuple[int, ...]]:
        """The shapes that a batch of texts must have: all as long as the first, within the limits."""
        first = values[lengths.inputs[0]]
        if not isinstance(first, Tensor) or not _is_dense(first) or first.ndim < 2:
            return self.shapes
        fewest, most = lengths.limits
        length = first.shape[1]
        if not fewest <= length <= most:
            wanted = f"{fewest} to {most}" if lengths.vary else f"at most {most}, as in example_inputs"
            longer = "; attach the model with an example padded to the longest text" * (length > most)
            raise InputError(
                f"input {self.names[lengths.inputs[0]]!r}: expected {wanted} tokens, got {length}{longer}"
            )
        return self.shapes_at(length)

    def call(self, values: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
        """(args, kwargs) of a call to the user's model."""
        if self.mapping:
            return (dict(zip(self.names, values, strict=True)),), {}
        if self.keyword:
            return (), dict(zip(self.names, values, strict=True))
        return tuple(values), {}

    def read_batch(self, batch: object) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """A loader's batch to (inputs, labels, sample weights), moved to the model's device.

        Understood: ``inputs``; ``(inputs, labels)``; ``(inputs, labels, weights)``; ``(input_1, ..., input_n,
        labels)`` and that with weights; a dict of inputs with an optional key of ``LABEL_KEYS`` and one of
        ``WEIGHT_KEYS``. Texts are padded to the length of the example. ``InputError`` for others, and what
        ``flatten`` refuses.
        """
        inputs, *rest = self._separate(batch)
        labels, weights = map(_numbers, ("labels", "sample weights"), rest)
        values = self.padded(self.flatten(_moved(inputs, self.device)))
        if weights is not None and not isinstance(batch, Mapping) and not weights.is_floating_point():
            raise InputError(
                f"loader: expected sample weights in floating point as third item, got {weights.dtype}; drop "
                "what is something else (an index, say), or pass weights.float()"
            )
        if weights is not None:
            weights = _checked_weights(weights, len(values[0])).to(self.device)
        return values, None if labels is None else labels.to(self.device), weights

    def _separate(self, batch: object) -> tuple[object, Any, Any]:
        if isinstance(batch, Mapping):
            found = [
                next((batch[key] for key in keys if key in batch and key not in self.names), None)
                for keys in (LABEL_KEYS, WEIGHT_KEYS)
            ]
            return batch, found[0], found[1]
        if not isinstance(batch, (tuple, list)):
            return batch, None, None
        if len(batch) in (2, 3) and isinstance(batch[0], (Mapping, tuple, list)):
            return batch[0], batch[1], batch[2] if len(batch) > 2 else None
        count = len(self.names)
        if self.keyword or not count <= len(batch) <= count + 2:
            raise InputError(
                f"loader: expected batches of {count} inputs with or without labels, (inputs, labels) or "
                f"(inputs, labels, weights); got {len(batch)} items"
            )
        rest = [*batch[count:], None, None]
        return batch[:count], rest[0], rest[1]


def _numbers(what: str, given: Any) -> Tensor | None:
    if given is None:
        return None
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"loader: expected {what} as a tensor or as numbers, got {given!r:.80}") from error


def _checked_weights(weights: Tensor, rows: int) -> Tensor:
    """Weights (B,) as float32; ``InputError`` unless there is one per sample, finite and not negative."""
    if weights.shape == (rows, 1):
        weights = weights.squeeze(1)
    if weights.shape != (rows,) or weights.dtype.is_complex:
        raise InputError(
            f"sample weights: expected one number for each of {rows} samples, got shape "
            f"{tuple(weights.shape)}"
        )
    weights = weights.float()
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InputError("sample weights: expected finite numbers of at least 0, got others")
    return weights


def _is_dense(value: Tensor) -> bool:
    return not value.is_nested and value.layout is torch.strided


def has_arrays(inputs: object) -> bool:
    """Whether NumPy arrays are among what is given."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    if isinstance(values, np.ndarray):
        return True
    several = isinstance(inputs, (tuple, list, Mapping))
    return several and any(isinstance(value, np.ndarray) for value in values)  # type: ignore[attr-defined]


def as_tensors(inputs: object) -> object:
    """The same with tensors in place of NumPy arrays; they share memory where they can."""
    if not has_arrays(inputs):
        return inputs
    if isinstance(inputs, Mapping):
        return {name: as_tensors(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map(as_tensors, inputs))
    return torch.as_tensor(np.ascontiguousarray(inputs)) if isinstance(inputs, np.ndarray) else inputs


def _is_wrapped(inputs: object) -> bool:
    """Whether inputs are one dict in a tuple: positional arguments of a model that takes a dict."""
    return isinstance(inputs, (tuple, list)) and len(inputs) == 1 and isinstance(inputs[0], Mapping)


def _named(inputs: object) -> dict[str, Any]:
    if _is_wrapped(inputs):
        inputs = inputs[0]  # type: ignore[index]
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
    return inputs.to(device) if isinstance(inputs, Tensor) else as_tensors(inputs)
