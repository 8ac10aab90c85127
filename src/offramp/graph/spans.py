"""A run of operations between two cuts as one Python function.

A span takes what was handed on at its first cut (or the model's inputs) and returns what is handed on at its
last (or the model's outputs). Operations are the traced ones, in the traced order: results equal the
model's bit for bit. Batch sizes are read from the first tensor handed in, so a batch that has shrunk on the
way is all right; free values are computed again inside the span that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from offramp.graph.dataflow import Flow, is_check, is_size, operation_name
from offramp.graph.dynamic_quant import layer_of
from offramp.graph.trace import Slot


@dataclass(frozen=True)
class Border:
    """A place between two operations.

    Args:
        after: index of the last operation before it; -1 for the model's input, the last index for its output.
        activations: the values passed over it: the feature first, then the carried ones. Empty at the output.
    """

    after: int
    activations: tuple[Node, ...]


class Span:
    """A callable run of operations; parameters are looked up in the model at each call.

    Args:
        module: the operations: what was handed on, then the parameters, to what is handed on next.
        slots: where each parameter is.
    """

    def __init__(self, module: GraphModule, slots: Sequence[Slot]) -> None:
        self.module, self.slots = module, tuple(slots)
        self._function: Callable[..., tuple[Any, ...]] = module.forward

    def __call__(self, *values: Tensor) -> tuple[Any, ...]:
        """Run it on what was handed on; returns what is handed on next, or the model's flat outputs."""
        return self._function(*values, *[owner[name] for owner, name in self.slots])

    def on_meta(self, *values: Tensor) -> tuple[Any, ...]:
        """Run it on tensors of the meta device, with parameters replaced by their shapes."""
        parameters = [owner[name].to("meta") for owner, name in self.slots]
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
        for node in start.activations:
            self.values[node] = self.graph.placeholder(node.name)

    def build(self, stop: Border) -> Span:
        inside = range(self.start.after + 1, stop.after + 1)
        wanted = [self.flow.nodes[i] for i in inside]
        results = [self.flow.root(n) for n in stop.activations] or self.flow.outputs()
        needed = self._earlier(wanted, results)
        self._place_parameters([*needed, *wanted], results)
        if self.start.after < 0:
            self._copy_written_inputs()
        for node in [*needed, *wanted]:
            self._place(node)
        self.graph.output(self._results(stop))
        self.graph.lint()
        return Span(GraphModule(self.root, self.graph), self.slots)

    def _earlier(self, wanted: Sequence[Node], results: Sequence[Node]) -> list[Node]:
        """Free values and arithmetic on sizes from before the span that it reads, in order of execution."""
        inside, found = set(wanted), set[Node]()
        stack = [source for node in wanted for source in self.flow.reads(node)] + list(results)
        while stack:
            node = stack.pop()
            if node in found or node in inside or node in self.values or node not in self.flow.index:
                continue
            found.add(node)
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
            setattr(self.root, target, self._subgraph(getattr(node.graph.owning_module, target)))
            self.values[node] = self.graph.get_attr(target)
            return
        if factor := self.flow.batch_factor(node.meta.get("val")):
            self.values[node] = self._batch_size(factor)
            return
        if self.device is not None and is_size(node) and operation_name(node) == "item":
            self.values[node] = 1  # nothing is computed, so there is nothing to read
            return
        if self.device is None and (layer := layer_of(node)) is not None:
            self.values[node] = self._packed(layer, node)
            return
        copy = self.graph.node_copy(node, self._value)
        if self.device is not None:
            self._redirect(copy)
        self.values[node] = copy

    def _packed(self, layer: int, node: Node) -> Node:
        """A call of the model's own layer."""
        name = f"packed_{layer}"
        self.root.add_module(name, self.flow.trace.packed[layer])
        return self.graph.call_module(name, (self._value(node.all_input_nodes[0]),))

    def _subgraph(self, module: GraphModule) -> GraphModule:
        """A copy on the span's device, without run-time checks: autocast fails them on the meta device."""
        module = deepcopy(module)
        for part in (m for m in module.modules() if isinstance(m, GraphModule)):
            for node in reversed(part.graph.nodes):
                if is_check(node):
                    part.graph.erase_node(node)
                elif self.device is not None:
                    self._redirect(node)
            part.recompile()
        return module

    def _redirect(self, node: Node) -> None:
        def moved(argument: Any) -> Any:
            return torch.device(str(self.device)) if isinstance(argument, torch.device) else argument

        node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)

    def _value(self, node: Node) -> Any:
        return self.values[self.flow.root(node)]

    def _results(self, stop: Border) -> tuple[Any, ...]:
        flat = stop.activations or self.flow.trace.outputs
        return tuple(self._value(n) if isinstance(n, Node) else n for n in flat)

    def _batch_size(self, factor: int) -> Any:
        size = self.graph.call_function(
            torch.ops.aten.sym_size.int, (self.values[self.start.activations[0]], 0)
        )
        return size if factor == 1 else self.graph.call_function(_times, (size, factor))


def _times(size: int, factor: int) -> int:
    return size * factor


def output_border(flow: Flow) -> Border:
    """The border behind the last operation."""
    return Border(len(flow.nodes) - 1, ())
