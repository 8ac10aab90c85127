"""What an engine runs: a network's spans and exits as functions, on one execution backend.

    span(start, stop) ──eager──▶ the partition's own
                      ──other──▶ editable graph ─ quantise, cast, lay out ─▶ bound or compiled ─▶ compared

Every backend but the eager one converts the parameters when a span is made: after a change of weights, make
a new provider. Exits are never converted: a head gets the feature in its own type.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offramp.core import PlanCache
from offramp.errors import InputError
from offramp.graph import operation_name
from offramp.network import ExitFn, ExitNetwork
from offramp.runtime.compile import compile_span
from offramp.runtime.execution import Execution
from offramp.runtime.rewrite import (
    Parameters,
    bind_parameters,
    cast_features,
    editable_graph,
    linear_layer,
    quantise,
    to_channels_last,
)

Activations = tuple[Any, ...]
"""What crosses a border of the chain: the feature first, then what later segments need of the inputs."""

SpanFn = Callable[..., Activations]
"""Activations at one position to those at another, or to the model's flat outputs."""

_ROWS = 4
"""Samples that a span is compared on; and one alone."""


class SpanProvider:
    """A network's spans and exits on one execution backend (None: eager). Safe from any thread.

    InputError: the network has nothing that this backend could change, or parts that it does not take.
    """

    def __init__(self, net: ExitNetwork, execution: Execution | None = None) -> None:
        self.net, self.execution = net, Execution() if execution is None else execution
        _check(net, self.execution)
        self._dtype = None if self.execution.dtype is None else getattr(torch, self.execution.dtype)
        self._parameters = Parameters()
        self._spans = PlanCache[tuple[int, int], SpanFn]()
        self._expected: dict[int, tuple[Tensor, ...]] = {}
        self._converting = threading.Lock()

    def span(self, start: int, stop: int) -> SpanFn:
        """The function between two positions, made once; unless eager, it ends with the answer alone.

        InputError: it cannot be made, or what it computes is too far from what the eager span does.
        """
        build = self.net.partition.span if self.execution.plain else self._compared
        return self._spans.get((start, stop), lambda: build(start, stop))

    def exit_fn(self, position: int, column: int = 0) -> ExitFn:
        """As ``ExitNetwork.exit_fn``; the activations are converted to the type that the exit wants."""
        net, task = self.net, self.net.task
        if position == len(net.positions) and not self.execution.plain:
            answer = net.output_field.dtype
            return lambda activations, mask: task.from_model(activations[0].to(answer))
        if position in (0, len(net.positions)) or self._dtype is None:
            return net.exit_fn(position, column)
        head: Any = net.head(position, net.head_names[column])
        dtype = net.partition.cuts[position - 1].dtype
        if hasattr(head, "reduce") and hasattr(head, "predict"):
            reduce, predict = head.reduce, head.predict
            return net.exit_fn(position, column, lambda x, *mask: predict(reduce(x, *mask).to(dtype)))
        return net.exit_fn(position, column, lambda x, *mask: head(x.to(dtype), *mask))

    def _convert(self, start: int, stop: int) -> SpanFn:
        parts, execution = self.net.partition, self.execution
        found = editable_graph(parts.span(start, stop), parts.flow, parts.border(start))
        if stop == len(self.net.positions):
            found.set_results([found.results()[self.net.output_field.index]])
        if self._dtype is not None:
            cast_features(found, self._dtype)
        if execution.int8:
            quantise(found, self._parameters)
        if execution.channels_last:
            to_channels_last(found)
        if execution.compile is None:
            return bind_parameters(found, self._parameters)
        example, rows = self._example(start), (True, *parts.carried_per_sample(start))
        return compile_span(
            found, self._parameters, execution.compile, example, rows, execution.channels_last
        )

    def _example(self, position: int) -> tuple[Tensor, ...]:
        """Activations at a position for the network's example, as this backend has them."""
        values = [value.clone() for value in self._eager_example(position)]
        if position and self._dtype is not None:
            values[0] = values[0].to(self._dtype)
        return tuple(values)

    def _eager_example(self, position: int) -> tuple[Tensor, ...]:
        """Activations at a position for the network's example, computed eagerly and once."""
        if position not in self._expected:
            example = self.net.partition.flow.trace.example
            more = -(-_ROWS // len(example[0]))
            values = tuple(torch.cat([value] * more)[:_ROWS] for value in example)
            self._expected[position] = self.net.partition.span(0, position)(*values) if position else values
        return self._expected[position]

    def _compared(self, start: int, stop: int) -> SpanFn:
        """A span that has been run, on a few samples and on one, and is close enough to the eager one."""
        names, execution = (*self.net.positions, "output"), self.execution
        where = f"cannot run the span from {names[start]!r} to {names[stop]!r} in {execution.name}"
        with self._converting, torch.inference_mode(False), torch.no_grad():
            try:
                span = self._convert(start, stop)
                far = max(self._difference(span, start, stop, count) for count in (_ROWS, 1))
            except InputError:
                raise
            except Exception as error:
                says = str(error).strip().splitlines() or [type(error).__name__]
                raise InputError(
                    f"{where}: expected operations that support it, got {says[0][:300]}; {_advice(execution)}"
                ) from error
        if not far <= execution.tolerance:
            raise InputError(
                f"{where}: expected outputs within {execution.tolerance:g} of the eager ones, relative to "
                f"the largest; got {far:.2g}; {_advice(execution)}"
            )
        return span

    def _difference(self, span: SpanFn, start: int, stop: int, count: int) -> float:
        rows = (True, *self.net.partition.carried_per_sample(start))
        given, eager = (
            [value[:count].clone() if each else value.clone() for value, each in zip(v, rows, strict=True)]
            for v in (self._example(start), self._eager_example(start))
        )
        with torch.inference_mode():
            found, expected = span(*given), self.net.partition.span(start, stop)(*eager)
        if stop == len(self.net.positions):
            expected = (expected[self.net.output_field.index],)
        return max(map(difference, found, expected))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest |difference| over largest |expected|; infinite where one is not finite and the other is.

    >>> difference(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    0.25
    """
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    a, b = found.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    largest, apart = b[finite].abs().max(), (a - b)[finite].abs().max()
    return float(apart / largest) if largest > 0 else float(apart)


def _advice(execution: Execution) -> str:
    if execution.int8:
        return "this model needs more than eight bits; try int8=False"
    if execution.dtype is not None:
        return f"this model needs more than {execution.dtype}; try dtype=None"
    return "please report it, and use Execution()"


def _check(net: ExitNetwork, execution: Execution) -> None:
    flow, slots = net.partition.flow, net.partition.flow.trace.slots
    if flow.trace.packed and (execution.dtype is not None or execution.compile is not None):
        raise InputError(
            f"{execution}: expected layers of floating point, got a model with int8 layers; "
            "use channels_last alone, or the model as it was before quantize_dynamic"
        )
    if execution.channels_last and not any(operation_name(node) == "conv2d" for node in flow.nodes):
        raise InputError(
            f"{execution}: expected convolutions on images, found none whose layout in memory could change; "
            "use channels_last=False"
        )
    if not execution.int8:
        return
    layers = filter(None, (linear_layer(node, slots) for node in flow.nodes))
    weights = [slots[weight][0][slots[weight][1]] for _, weight, _, _ in layers]
    if not weights:
        raise InputError(
            f"{execution}: expected linear layers to quantise, found none in {type(net.backbone).__name__}; "
            "use int8=False"
        )
    other = next((w for w in weights if w.dtype != torch.float32 or w.device.type != "cpu"), None)
    if other is not None:
        raise InputError(
            f"{execution}: expected layers in float32 on the CPU, got {other.dtype} on {other.device}; "
            "use int8=False"
        )
