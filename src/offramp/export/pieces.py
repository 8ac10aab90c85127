"""What is exported of a network: its spans and exits as modules, with examples and the tensors' names.

Spans run between neighbouring positions that some configuration of the frontier uses, so that every
configuration is a chain of them; only heads that some configuration uses are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from offramp.core import Frontier, resolve
from offramp.errors import InputError
from offramp.export.manifest import BATCH, MASK, ExitGraph, Port, Signature, SpanGraph, every_config
from offramp.graph import Span, evaluating
from offramp.network import ExitNetwork, InputExit


@dataclass(frozen=True)
class Piece:
    """One graph to write.

    Args:
        graph: how the folder will describe it; its file has no ending yet.
        module: what it computes.
        example: what it is called with, at the example's batch size.
        results: what it gives for that.
    """

    graph: SpanGraph | ExitGraph
    module: nn.Module
    example: tuple[Tensor, ...]
    results: tuple[Tensor, ...]


class SpanModule(nn.Module):
    """A span with its parameters as buffers; what it is handed is left as it is."""

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.body, self._names = span.module, [f"parameter_{i}" for i in range(len(span.slots))]
        for name, (owner, key) in zip(self._names, span.slots, strict=True):
            self.register_buffer(name, owner[key].detach())

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """What was handed on to what is handed on next, or to the model's flat outputs."""
        parameters = [getattr(self, name) for name in self._names]
        found: tuple[Tensor, ...] = self.body(*[value.clone() for value in values], *parameters)
        return found


class LastModule(nn.Module):
    """The last span, up to outputs and confidence; the mask comes last where the confidence wants it."""

    def __init__(self, net: ExitNetwork, start: int) -> None:
        super().__init__()
        last = len(net.positions)
        self.span, self.calibrator = SpanModule(net.partition.span(start, last)), net.calibrator(last, 0)
        self._to_outputs, self._sure, self._task = net.answer, net.confidence_of(last), net.task
        self._masked = net.uses_mask(last, 0)

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        """(outputs (B, K), confidence (B,))."""
        activations, mask = _parted(values, self._masked)
        outputs = self._to_outputs(self.span(*activations))
        return self._task.answer(outputs), self._sure(outputs, mask)


class ExitModule(nn.Module):
    """A head with its confidence; the mask comes last where one of them wants it."""

    def __init__(self, net: ExitNetwork, position: int, column: int) -> None:
        super().__init__()
        self.head = net.head(position, net.head_names[column])
        self.calibrator = net.calibrator(position, column)
        self._ask, self._sure = net.exit_fn(position, column), net.confidence_of(position, column)
        self._task, self._masked = net.task, net.uses_mask(position, column)

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        """(outputs (B, K), confidence (B,))."""
        activations, mask = _parted(values, self._masked)
        outputs = self._ask(activations, mask)
        return self._task.answer(outputs), self._sure(outputs, mask)


def used_exits(net: ExitNetwork, frontier: Frontier) -> list[tuple[int, int]]:
    """(position, column) of every exit of a frontier's configurations, in order."""
    plans = (resolve(net.positions, net.head_names, net.exists, each) for each in every_config(frontier))
    return sorted({(position, column) for plan in plans for position, column, _ in plan})


def signature_of(net: ExitNetwork, classes: Sequence[str] | None = None) -> Signature:
    """What a network takes and answers.

    Raises:
        InputError: there are not K names of classes.
    """
    if classes is not None and len(classes) != net.outputs:
        raise InputError(f"classes: expected {net.outputs} names, one per output, got {len(classes)}")
    spec = net.partition.spec
    inputs = tuple(
        Port(f"x{i}", (BATCH, *shape), _dtype(dtype))
        for i, (shape, dtype) in enumerate(zip(spec.shapes, spec.dtypes, strict=True))
    )
    return Signature(
        positions=net.positions,
        heads=net.head_names,
        task=net.task.name,
        confidence=net.confidence,
        names=spec.names,
        inputs=inputs,
        keyword=spec.keyword,
        mask=net.mask_input,
        answer=Port("outputs", (BATCH, *net.answer_shape), _dtype(net.output_field.dtype)),
        classes=None if classes is None else tuple(classes),
    )


def check_exportable(net: ExitNetwork) -> None:
    """Refuse networks that no export can hold.

    Raises:
        InputError: not a network, on a device, with packed layers, or of a dtype that NumPy lacks.
    """
    if not isinstance(net, ExitNetwork):
        raise InputError(f"export: expected a network from attach_exits, got a {type(net).__name__}")
    if net.partition.spec.device.type != "cpu":
        raise InputError(
            f"export: expected a network on the CPU, got one on {net.partition.spec.device}; "
            'load the artifact with model.to("cpu")'
        )
    if net.partition.flow.trace.packed:
        raise InputError(
            "export: layers of quantize_dynamic hold packed weights that no other runtime reads; export the "
            "model as it was before"
        )


def pieces(net: ExitNetwork, frontier: Frontier, samples: int | None = None) -> Iterator[Piece]:
    """Spans and exits in order of position, the exits of a position before the span that begins there.

    Args:
        net: with trained heads, on the CPU.
        frontier: whose configurations will run.
        samples: of the example; None takes all.
    """
    values = tuple(value[:samples] for value in net.partition.flow.trace.example)
    exits, last = used_exits(net, frontier), len(net.positions)
    masks = () if net.mask_input is None else (values[net.mask_input],)
    ports, activations = signature_of(net).inputs, values
    for start, stop in pairwise(sorted({0, *(position for position, _ in exits), last})):
        for column in (column for position, column in exits if position == start):
            mask = masks if net.uses_mask(start, column) else ()
            yield _exit(net, start, column, ports, activations, mask)
        piece = _span(net, start, stop, ports, activations, masks)
        yield piece
        ports, activations = piece.graph.outputs, piece.results


def _exit(
    net: ExitNetwork,
    position: int,
    column: int,
    ports: tuple[Port, ...],
    activations: tuple[Tensor, ...],
    mask: tuple[Tensor, ...],
) -> Piece:
    given = isinstance(net.head(position, net.head_names[column]), InputExit)
    count = len(activations) if given else 1
    module, example = ExitModule(net, position, column), (*activations[:count], *mask)
    results = _run(module, example)
    inputs, outputs = (*ports[:count], *map(_mask_port, mask)), _answer_ports(results)
    graph = ExitGraph(f"exit-{position}-{column}", position, column, inputs, outputs)
    return Piece(graph, module, example, results)


def _span(
    net: ExitNetwork,
    start: int,
    stop: int,
    ports: tuple[Port, ...],
    activations: tuple[Tensor, ...],
    masks: tuple[Tensor, ...],
) -> Piece:
    name, last = f"span-{start}-{stop}", len(net.positions)
    if stop == last:
        mask = masks if net.uses_mask(last, 0) else ()
        module, example = LastModule(net, start), (*activations, *mask)
        results = _run(module, example)
        graph = SpanGraph(name, start, stop, (*ports, *map(_mask_port, mask)), _answer_ports(results))
        return Piece(graph, module, example, results)
    span = SpanModule(net.partition.span(start, stop))
    results = _run(span, activations)
    per_sample = (True, *net.partition.cuts[stop - 1].carried_per_sample)
    outputs = tuple(
        _port(f"h{stop}_{i}", value, each)
        for i, (value, each) in enumerate(zip(results, per_sample, strict=True))
    )
    return Piece(SpanGraph(name, start, stop, ports, outputs), span, activations, results)


def _run(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with evaluating(module):
        return tuple(module(*[value.clone() for value in example]))


def _answer_ports(results: tuple[Tensor, ...]) -> tuple[Port, ...]:
    return tuple(_port(*each, True) for each in zip(("outputs", "confidence"), results, strict=True))


def _mask_port(value: Tensor) -> Port:
    return _port(MASK, value, True)


def _port(name: str, value: Tensor, per_sample: bool) -> Port:
    shape = tuple(value.shape)
    return Port(name, (BATCH, *shape[1:]) if per_sample else shape, _dtype(value.dtype))


def _parted(values: tuple[Tensor, ...], masked: bool) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """What was handed over, and the mask (B, L) bool."""
    return (values[:-1], values[-1] != 0) if masked else (values, None)


def _dtype(dtype: torch.dtype) -> str:
    """NumPy's name of a dtype.

    Raises:
        InputError: NumPy has none.
    """
    try:
        return str(torch.empty(0, dtype=dtype).numpy().dtype)
    except TypeError as error:
        raise InputError(
            f"export: NumPy has no {dtype}; export the model in float32, and let the runtime choose"
        ) from error
