"""A run of operations between two cuts as one Python function.

A span takes what was handed on at its first cut (or the model's inputs) and returns what is handed on at its last
(or the model's outputs). Operations are the traced ones, in the traced order: results equal the model's bit for bit.
Sizes are read from the first tensor handed in, so a batch that has shrunk on the way is all right; free values are
computed again inside the span that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from offramp.errors import PartitionError
from offramp.flow import Flow, is_size, is_tensor
from offramp.tracing import Slot


@dataclass(frozen=True)
class Border:
    """A place between two operations.

    Args:
        after: index of the last operation before it; -1 for the model's input, the last index for its output.
        handed: the values passed over it: the feature first, then the carried ones. Empty at the output.
    """

    after: int
    handed: tuple[Node, ...]


class Span:
    """A callable run of operations; parameters are looked up in the model at each call."""

    def __init__(self, function: Callable[..., tuple[Any, ...]], slots: Sequence[Slot]) -> None:
        self._function = function
        self._slots = tuple(slots)

    def __call__(self, *values: Tensor) -> tuple[Any, ...]:
        """Run it on what was handed on; returns what is handed on next, or the model's flat outputs."""
        return self._function(*values, *[owner[name] for owner, name in self._slots])

    def on_meta(self, *values: Tensor) -> tuple[Any, ...]:
        """Run it on tensors of the meta device, with parameters replaced by their shapes."""
        parameters = [owner[name].to("meta") for owner, name in self._slots]
        return self._function(*values, *parameters)


def build_span(flow: Flow, start: Border, stop: Border, device: str | None = None) -> Span:
    """Compile the operations after ``start`` up to ``stop`` to a function.

    Args:
        flow: of the traced model.
        start: where to begin.
        stop: where to end.
        device: replaces the device of operations that create tensors ("meta", to count without computing).
    """
    return _Builder(flow, start, device).build(stop)


class _Builder:
    def __init__(self, flow: Flow, start: Border, device: str | None) -> None:
        self.flow, self.start, self.device = flow, start, device
        self.graph = Graph()
        self.root = nn.Module()
        self.values: dict[Node, Any] = {}
        self.slots: list[Slot] = []
        for node in start.handed:
            self.values[node] = self.graph.placeholder(node.name)

    def build(self, stop: Border) -> Span:
        inside = range(self.start.after + 1, stop.after + 1)
        wanted = [self.flow.nodes[i] for i in inside]
        results = [self.flow.root(n) for n in stop.handed] or self.flow.outputs()
        needed = self._earlier(wanted, results)
        self._place_parameters([*needed, *wanted], results)
        if self.start.after < 0:
            self._copy_written_inputs()
        for node in [*needed, *wanted]:
            self._place(node)
        self.graph.output(self._results(stop))
        self.graph.lint()
        return Span(GraphModule(self.root, self.graph).forward, self.slots)

    def _earlier(self, wanted: Sequence[Node], results: Sequence[Node]) -> list[Node]:
        """Free values and arithmetic on sizes from before the span that it reads, in order of execution."""
        inside, found = set(wanted), set[Node]()
        stack = [source for node in wanted for source in self.flow.reads(node)] + list(results)
        while stack:
            node = stack.pop()
            if node in found or node in inside or node in self.values or node not in self.flow.index:
                continue
            found.add(node)
            if not (is_size(node) and self._batch_factor(node)):
                stack.extend(self.flow.reads(node))
        return sorted(found, key=self.flow.index.__getitem__)

    def _place_parameters(self, nodes: Sequence[Node], results: Sequence[Node]) -> None:
        read = {source for node in nodes for source in node.all_input_nodes} | set(results)
        for node, slot in self.flow.trace.slots.items():
            if node in read:
                self.values[node] = self.graph.placeholder(node.name)
                self.slots.append(slot)

    def _copy_written_inputs(self) -> None:
        for node in self.flow.written_inputs:
            self.values[node] = self.graph.call_function(torch.ops.aten.clone.default, (self.values[node],))

    def _place(self, node: Node) -> None:
        if node.op == "get_attr":
            target = str(node.target)
            setattr(self.root, target, getattr(self.flow.trace.program.graph_module, target))
            self.values[node] = self.graph.get_attr(target)
            return
        if is_size(node) and self.flow.index[node] <= self.start.after:
            factor = self._batch_factor(node)
            if factor:
                self.values[node] = self._batch_size(factor)
                return
        copy = self.graph.node_copy(node, self._value)
        if self.device is not None:
            copy.args = torch.fx.node.map_aggregate(copy.args, self._redirect)  # type: ignore[assignment]
            copy.kwargs = torch.fx.node.map_aggregate(copy.kwargs, self._redirect)  # type: ignore[assignment]
        self.values[node] = copy
        if node in self.flow.same:
            self.values[self.flow.root(node)] = copy

    def _redirect(self, argument: Any) -> Any:
        return torch.device(str(self.device)) if isinstance(argument, torch.device) else argument

    def _value(self, node: Node) -> Any:
        root = self.flow.root(node)
        if root not in self.values:
            raise PartitionError(f"value {node.name!r} is not handed over this cut; cut elsewhere")
        return self.values[root]

    def _results(self, stop: Border) -> tuple[Any, ...]:
        flat = stop.handed or self.flow.trace.outputs
        return tuple(self._value(n) if isinstance(n, Node) else n for n in flat)

    def _batch_size(self, factor: int) -> Any:
        size = self.graph.call_function(torch.ops.aten.sym_size.int, (self.values[self.start.handed[0]], 0))
        return size if factor == 1 else self.graph.call_function(_times, (size, factor))

    def _batch_factor(self, node: Node) -> int:
        """K where the size is k times the batch size; 0 where it is something else."""
        return batch_factor(self.flow, node.meta["val"])


def _times(size: int, factor: int) -> int:
    return size * factor


def batch_factor(flow: Flow, size: Any) -> int:
    """K where ``size`` is k times the batch size, k a positive integer; else 0."""
    if not isinstance(size, torch.SymInt):
        return 0
    batch = flow.trace.inputs[0].meta["val"].shape[0]
    ratio = size.node.expr / batch.node.expr
    return int(ratio) if ratio.is_Integer and ratio > 0 else 0


def batch_first(flow: Flow, node: Node) -> bool:
    """Whether a value's first dimension is the batch and no other depends on it."""
    if not is_tensor(node):
        return False
    shape = node.meta["val"].shape
    rest = any(isinstance(size, torch.SymInt) for size in shape[1:])
    return len(shape) > 0 and batch_factor(flow, shape[0]) == 1 and not rest


def batch_free(node: Node) -> bool:
    """Whether no dimension of a value depends on the batch."""
    return not any(isinstance(size, torch.SymInt) for size in node.meta["val"].shape)
