"""What is exported of a network: its spans and exits as modules, with examples and the tensors' names.

Spans run between neighbouring positions that some configuration of the frontier uses, so that every
configuration is a chain of them; only heads that some configuration uses are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from offramp.core import Frontier, resolve
from offramp.errors import InputError
from offramp.export.manifest import BATCH, MASK, ExitGraph, Port, Signature, SpanGraph, every_config
from offramp.graph import Span, evaluating
from offramp.network import ExitFn, ExitNetwork, InputExit


@dataclass(frozen=True)
class Piece:
    """One graph to write: a module, an example of its inputs, and its results for that."""

    graph: SpanGraph | ExitGraph
    module: nn.Module
    example: tuple[Tensor, ...]
    results: tuple[Tensor, ...]


class SpanModule(nn.Module):
    """A span with its parameters as buffers; the activations it takes are left as they are."""

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.body, self._names = span.module, [f"parameter_{i}" for i in range(len(span.slots))]
        for name, (owner, key) in zip(self._names, span.slots, strict=True):
            self.register_buffer(name, owner[key].detach())

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Activations at its start to those at its end, or to the model's flat outputs."""
        parameters = [getattr(self, name) for name in self._names]
        found: tuple[Tensor, ...] = self.body(*[value.clone() for value in values], *parameters)
        return found


class AnswerModule(nn.Module):
    """An exit, or the last span as column 0 of position P, with its confidence.

    ``outputs_fn`` takes activations and mask to outputs; ``parts`` are the modules it runs: what they hold
    belongs to the graph.
    """

    def __init__(
        self, net: ExitNetwork, position: int, column: int, outputs_fn: ExitFn, **parts: nn.Module
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.calibrator = net.calibrator(position, column)
        self._outputs_fn, self._confidence_fn = outputs_fn, net.confidence_of(position, column)
        self._task = net.task
        self.masked = net.uses_mask(position, column)

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        """Activations, and the mask (B, L) where it is wanted, to (outputs (B, K), confidence (B,))."""
        activations, mask = (values[:-1], values[-1] != 0) if self.masked else (values, None)
        outputs = self._outputs_fn(activations, mask)
        return self._task.answer(outputs), self._confidence_fn(outputs, mask)


def signature_of(net: ExitNetwork, classes: Sequence[str] | None = None) -> Signature:
    """What a network takes and answers; an ``InputError`` if there are not K names of classes."""
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
        mask_input=net.mask_input,
        answer=Port("outputs", (BATCH, *net.answer_shape), _dtype(net.output_field.dtype)),
        classes=None if classes is None else tuple(classes),
    )


def check_exportable(net: ExitNetwork) -> None:
    """Refuse, with an ``InputError``, what is no network, is not on the CPU, or has packed layers."""
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


def pieces(
    net: ExitNetwork, frontier: Frontier, ending: str = "", samples: int | None = None
) -> Iterator[Piece]:
    """Spans and exits in order of position, the exits of a position before the span that begins there.

    ``ending`` is that of the files' names; ``samples`` of the example are used, None takes all.
    """
    values = tuple(value[:samples] for value in net.partition.flow.trace.example)
    plans = (resolve(net.positions, net.head_names, net.exists, each) for each in every_config(frontier))
    exits = sorted({(position, column) for plan in plans for position, column, _ in plan})
    last = len(net.positions)
    mask = () if net.mask_input is None else (values[net.mask_input],)
    ports, activations = signature_of(net).inputs, values
    for start, stop in pairwise(sorted({0, *(position for position, _ in exits), last})):
        for column in (column for position, column in exits if position == start):
            head = net.head(start, net.head_names[column])
            module = AnswerModule(net, start, column, net.exit_fn(start, column), head=head)
            count = len(activations) if isinstance(head, InputExit) else 1
            graph = partial(ExitGraph, file=f"exit-{start}-{column}{ending}", position=start, head=column)
            yield _piece(graph, module, ports[:count], activations[:count], mask)
        span = partial(SpanGraph, file=f"span-{start}-{stop}{ending}", start=start, stop=stop)
        body = SpanModule(net.partition.span(start, stop))
        if stop == last:
            module = AnswerModule(net, last, 0, lambda flat, _: net.answer(body(*flat)), span=body)  # noqa: B023
            yield _piece(span, module, ports, activations, mask)
        else:
            per_sample = (True, *net.partition.carried_per_sample(stop))
            names = [(f"h{stop}_{i}", each) for i, each in enumerate(per_sample)]
            piece = _piece(span, body, ports, activations, (), names)
            ports, activations = piece.graph.outputs, piece.results
            yield piece


def _piece(
    graph: Callable[..., SpanGraph | ExitGraph],
    module: SpanModule | AnswerModule,
    inputs: tuple[Port, ...],
    example: tuple[Tensor, ...],
    mask: tuple[Tensor, ...],
    results: Sequence[tuple[str, bool]] = (("outputs", True), ("confidence", True)),
) -> Piece:
    """A module with its results on the example; of each result, ``results`` has (name, per sample)."""
    if isinstance(module, AnswerModule) and module.masked:
        inputs = (*inputs, *(_port(MASK, value, True) for value in mask))
        example = (*example, *mask)
    with evaluating(module):
        values = tuple(module(*[value.clone() for value in example]))
    pairs = zip(results, values, strict=True)
    outputs = tuple(_port(name, value, per_sample) for (name, per_sample), value in pairs)
    return Piece(graph(inputs=inputs, outputs=outputs), module, example, values)


def _port(name: str, value: Tensor, per_sample: bool) -> Port:
    shape = tuple(value.shape)
    return Port(name, (BATCH, *shape[1:]) if per_sample else shape, _dtype(value.dtype))


def _dtype(dtype: torch.dtype) -> str:
    """NumPy's name of a dtype; an ``InputError`` if it has none."""
    try:
        return str(torch.empty(0, dtype=dtype).numpy().dtype)
    except TypeError as error:
        raise InputError(
            f"export: NumPy has no {dtype}; export the model in float32, and let the runtime choose"
        ) from error
