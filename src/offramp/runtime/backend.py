"""What an engine asks for functions: a network's spans and exits, computed one way.

    span(start, stop) ──plain──▶ the partition's own
                      ──other──▶ draft ─ quantise, narrow, lay out ─▶ frozen or compiled ─▶ compared

Every way but the plain one converts the parameters when a span is made: after a change of weights, make a
new runner. Exits are never converted: a head gets the feature in its own type, reduced first where it can be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.graph import Flow, operation_name
from offramp.network import ExitFn, ExitNetwork, InputExit
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
"""What is handed over at one position -> what is handed over at another, or the model's answer."""

_ROWS = 4
"""Samples that a span is compared on; and one alone."""


class SpanProvider:
    """A network's spans and exits, computed one way. Safe from any thread.

    Attributes:
        net: the network.
        execution: how its spans are computed.
        enter: flat inputs -> what the first span and the exits at the input take.
        span: (start, stop) -> the function of the positions between; made here and now, never while it runs.
        caller: (position, column) -> how to ask an exit.
        answer: what the last span returns -> the model's answer (B, M), in the model's own type.

    Args:
        net: see above.
        execution: see above; None: plain.

    Raises:
        InputError: the network cannot be computed this way.
    """

    enter: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    span: Callable[[int, int], SpanFn]
    exit_fn: Callable[[int, int], ExitFn]
    answer: Callable[[Sequence[Tensor]], Tensor]

    def __init__(self, net: ExitNetwork, execution: Execution | None = None) -> None:
        self.net, self.execution = net, Execution() if execution is None else execution
        self.enter, self.answer = tuple, net.answer
        self.span, self.exit_fn = net.partition.span, net.exit_fn
        if not self.execution.plain:
            other = _ConvertedSpans(net, self.execution)
            self.span, self.exit_fn, self.answer = other.span, other.exit_fn, other.answer


class _ConvertedSpans:
    """Spans and exits, not computed the plain way."""

    def __init__(self, net: ExitNetwork, execution: Execution) -> None:
        _check(net, execution)
        self._net, self._execution = net, execution
        self._dtype = None if execution.dtype is None else getattr(torch, execution.dtype)
        self._parameters = Parameters()
        self._spans: dict[tuple[int, int], SpanFn] = {}
        self._plain: dict[int, tuple[Tensor, ...]] = {}
        self._building = threading.Lock()

    def span(self, start: int, stop: int) -> SpanFn:
        """As ``Runner.span``.

        Raises:
            InputError: it cannot be made, or what it computes is too far from what the plain span does.
        """
        with self._building, torch.inference_mode(False), torch.no_grad():
            if (start, stop) not in self._spans:
                self._spans[start, stop] = self._compared(start, stop)
            return self._spans[start, stop]

    def answer(self, flat: Sequence[Tensor]) -> Tensor:
        """The answer alone is what the last span returns."""
        return self._net.task.from_model(flat[0].to(self._net._answer.dtype))

    def exit_fn(self, position: int, column: int) -> ExitFn:
        """As ``ExitNetwork.caller``; the feature is converted to the type of the head."""
        net = self._net
        plain, head = net.exit_fn(position, column), net.head(position, net.head_names[column])
        if position == 0 or self._dtype is None or isinstance(head, InputExit):
            return plain
        dtype = net.partition.cuts[position - 1].dtype
        reduce, predict = getattr(head, "reduce", None), getattr(head, "predict", None)
        if reduce is None or predict is None:
            return lambda activations, mask: plain((activations[0].to(dtype),), mask)
        spec, task = net.specs[position], net.task
        if spec is not None and spec.mask and getattr(head, "uses_mask", False):
            return lambda activations, mask: task.from_head(predict(reduce(activations[0], mask).to(dtype)))
        return lambda activations, mask: task.from_head(predict(reduce(activations[0]).to(dtype)))

    def _made(self, start: int, stop: int) -> SpanFn:
        parts, execution = self._net.partition, self._execution
        found = editable_graph(parts.span(start, stop), parts.flow, parts.border(start))
        if self._last(stop):
            found.hand_on([found.results()[self._net._answer.index]])
        if self._dtype is not None:
            cast_features(found, self._dtype)
        if execution.int8:
            quantise(found, self._parameters)
        if execution.channels_last:
            to_channels_last(found)
        if execution.compile is None:
            return bind_parameters(found, self._parameters)
        example, rows = self._handed(start), (True, *self._per_sample(start))
        return compile_span(
            found, self._parameters, execution.compile, example, rows, execution.channels_last
        )

    def _handed(self, position: int) -> tuple[Tensor, ...]:
        """What is handed in at a position for the network's example, as this way has it."""
        values = [value.clone() for value in self._plainly(position)]
        if position and self._dtype is not None:
            values[0] = values[0].to(self._dtype)
        return tuple(values)

    def _plainly(self, position: int) -> tuple[Tensor, ...]:
        """What is handed over at a position for the network's example; the plain way, done once."""
        if position not in self._plain:
            parts = self._net.partition
            example = parts.flow.trace.example
            more = -(-_ROWS // len(example[0]))
            values = tuple(torch.cat([value] * more)[:_ROWS] for value in example)
            if position:
                values = parts.span(0, position)(*values)
            self._plain[position] = values
        return self._plain[position]

    def _per_sample(self, position: int) -> tuple[bool, ...]:
        parts = self._net.partition
        if position == 0:
            return (True,) * (len(parts.spec.names) - 1)
        return parts.cuts[position - 1].carried_per_sample

    def _last(self, stop: int) -> bool:
        return stop == len(self._net.positions)

    def _compared(self, start: int, stop: int) -> SpanFn:
        """A span that has been run, on a few samples and on one, and is close enough to the plain one."""
        names, tolerance = (*self._net.positions, "output"), self._execution.tolerance
        where = f"{self._execution}: from {names[start]!r} to {names[stop]!r}"
        try:
            run = self._made(start, stop)
            far = max(self._apart(run, start, stop, count) for count in (_ROWS, 1))
        except InputError:
            raise
        except Exception as error:
            says = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{where} expected operations that can be computed so; got {says[0][:300]}; "
                + _advice(self._execution)
            ) from error
        if not far <= tolerance:
            raise InputError(
                f"{where} expected outputs within {tolerance:g} of the plain ones, relative to the largest; "
                f"got {far:.2g}; {_advice(self._execution)}"
            )
        return run

    def _apart(self, run: SpanFn, start: int, stop: int, count: int) -> float:
        rows = (True, *self._per_sample(start))
        given, wanted = (
            [
                value[:count].clone() if each else value.clone()
                for value, each in zip(values, rows, strict=True)
            ]
            for values in (self._handed(start), self._plainly(start))
        )
        with torch.inference_mode():
            found, expected = run(*given), self._net.partition.span(start, stop)(*wanted)
        if self._last(stop):
            expected = (expected[self._net._answer.index],)
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
    flow = net.partition.flow
    if flow.trace.packed and (execution.dtype is not None or execution.compile is not None):
        raise InputError(
            f"{execution}: expected layers of floating point, got a model with int8 layers; "
            "use channels_last alone, or the model as it was before quantize_dynamic"
        )
    if execution.channels_last and not any(operation_name(node) == "conv2d" for node in flow.nodes):
        raise InputError(
            f"{execution}: expected convolutions on images, found none: there is nothing to lay out; "
            "use channels_last=False"
        )
    if execution.int8:
        _check_int8(net, flow, execution)


def _check_int8(net: ExitNetwork, flow: Flow, execution: Execution) -> None:
    slots = flow.trace.slots
    layers = filter(None, (linear_layer(node, slots) for node in flow.nodes))
    found = [slots[weight][0][slots[weight][1]] for _, weight, _, _ in layers]
    if not found:
        raise InputError(
            f"{execution}: expected linear layers to quantise, found none in {type(net.backbone).__name__}; "
            "use int8=False"
        )
    strange = next((w for w in found if w.dtype != torch.float32 or w.device.type != "cpu"), None)
    if strange is not None:
        raise InputError(
            f"{execution}: expected layers in float32 on the CPU, got {strange.dtype} on {strange.device}; "
            "use int8=False"
        )
