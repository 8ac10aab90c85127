"""A run of operations between two cuts as one Python function.

A span takes the values that cross its first cut (or the model's inputs) and returns those that cross its last
(or the model's outputs). Operations are the traced ones, in the traced order: results equal the model's bit
for bit. Batch sizes are read from the first tensor, so a batch that has shrunk on the way is all right; free
values are computed again inside the span that needs them.
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

from offramp.errors import InputError
from offramp.graph.dataflow import CHECKS, Flow, SizeTerms, is_size, operation_name
from offramp.graph.dynamic_quant import layer_of
from offramp.graph.trace import Slot


@dataclass(frozen=True)
class Border:
    """A place behind operation ``after``: -1 for the model's input, the last index for its output.

    ``activations`` are the values that cross it: the feature, then the carried ones; none at the output.
    """

    after: int
    activations: tuple[Node, ...]


class Span:
    """A callable run of operations; its parameters are looked up in the model, at ``slots``, at each call."""

    def __init__(self, module: GraphModule, slots: Sequence[Slot]) -> None:
        self.module, self.slots = module, tuple(slots)
        self._function: Callable[..., tuple[Any, ...]] = module.forward

    def __call__(self, *values: Tensor) -> tuple[Any, ...]:
        """From the values at its first border to those at its last, or to the model's flat outputs.

        InputError: a parameter or buffer of the model is gone.
        """
        try:
            weights = [owner[name] for owner, name in self.slots]
        except KeyError as error:
            raise InputError(
                f"the model is not what it was when it was cut: a parameter or buffer {error} is gone "
                "(pruned or parametrised since?); attach exits again"
            ) from None
        return self._function(*values, *weights)

    def on_meta(self, *values: Tensor) -> tuple[Any, ...]:
        """Run it on tensors of the meta device, with parameters replaced by their shapes."""
        return self._function(*values, *[owner[name].to("meta") for owner, name in self.slots])


class SpanBuilder:
    """Compiles the operations after ``start`` to a function.

    ``device`` replaces that of operations which create tensors ("meta", to count without computing).
    """

    def __init__(self, flow: Flow, start: Border, device: str | None = None) -> None:
        self.flow, self.start, self.device = flow, start, device
        self.graph = Graph()
        self.root = nn.Module()
        self.values: dict[Node, Any] = {node: self.graph.placeholder(node.name) for node in start.activations}

    def build(self, stop: Border) -> Span:
        """The operations up to ``stop``."""
        flow, wanted = self.flow, self.flow.nodes[self.start.after + 1 : stop.after + 1]
        results = [flow.root(n) for n in stop.activations] or flow.outputs()
        nodes = [*self._earlier(wanted, results), *wanted]
        read = {source for node in nodes for source in node.all_input_nodes} | set(results)
        slots = {node: slot for node, slot in flow.trace.slots.items() if node in read}
        self.values |= {node: self.graph.placeholder(node.name) for node in slots}
        if self.start.after < 0:
            for node in flow.written_inputs:
                copy = self.graph.call_function(torch.ops.aten.clone.default, (self.values[node],))
                self.values[node] = copy
        for node in nodes:
            self.values[node] = self._place(node)
        flat = stop.activations or flow.trace.outputs
        self.graph.output(tuple(self._value(n) if isinstance(n, Node) else n for n in flat))
        self.graph.lint()
        return Span(GraphModule(self.root, self.graph), tuple(slots.values()))

    def _earlier(self, wanted: Sequence[Node], results: Sequence[Node]) -> list[Node]:
        """Free values and arithmetic on sizes from before the span that it reads, in order of execution."""
        known, found = {*wanted, *self.values}, set[Node]()
        stack = [source for node in wanted for source in self.flow.reads(node)] + list(results)
        while stack:
            node = stack.pop()
            if node in self.flow.index and node not in known and node not in found:
                found.add(node)
                stack.extend(self.flow.reads(node))
                # what it shares its storage with may have been changed in place since
                stack.extend(w for w in self.flow.writers(node) if self.flow.index[w] <= self.start.after)
        return sorted(found, key=self.flow.index.__getitem__)

    def _place(self, node: Node) -> Any:
        """An operation's value in the span's graph."""
        if node.op == "get_attr":
            target = str(node.target)
            setattr(self.root, target, self._subgraph(getattr(node.graph.owning_module, target)))
            return self.graph.get_attr(target)
        if (terms := self.flow.size_terms(node.meta.get("val"))) is not None:
            return self._size(terms)
        if self.device is None and (layer := layer_of(node)) is not None:
            name = f"packed_{layer}"
            self.root.add_module(name, self.flow.trace.packed[layer])  # the model's own
            return self.graph.call_module(name, (self._value(node.all_input_nodes[0]),))
        if self.device is not None and is_size(node) and operation_name(node) == "item":
            return 1  # nothing is computed, so there is nothing to read
        copy = self.graph.node_copy(node, self._value)
        self._redirect(copy)
        return copy

    def _size(self, terms: SizeTerms) -> Any:
        """A size that follows from those of the activations at the start."""
        batch = self.graph.call_function(
            torch.ops.aten.sym_size.int, (self.values[self.start.activations[0]], 0)
        )
        if terms == ((1, 1, 0),):
            return batch
        if len(terms) == 1 and terms[0][1:] == (1, 0):
            return self.graph.call_function(_times, (batch, terms[0][0]))
        found = self.flow.dimension_of_length(self.start.activations)
        length: Any = 0
        if found is not None:
            value, dimension = found
            length = self.graph.call_function(torch.ops.aten.sym_size.int, (self.values[value], dimension))
        return self.graph.call_function(_size, (batch, length, terms))

    def _subgraph(self, module: GraphModule) -> GraphModule:
        """A copy on the span's device, without run-time checks: autocast fails them on the meta device."""
        module = deepcopy(module)
        for part in (m for m in module.modules() if isinstance(m, GraphModule)):
            for node in reversed(part.graph.nodes):
                if operation_name(node) in CHECKS:
                    part.graph.erase_node(node)
                else:
                    self._redirect(node)
            part.recompile()
        return module

    def _redirect(self, node: Node) -> None:
        """Let an operation create its tensors on the span's device, where it has one."""
        if self.device is None:
            return
        device = torch.device(self.device)

        def moved(argument: Any) -> Any:
            return device if isinstance(argument, torch.device) else argument

        node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)

    def _value(self, node: Node) -> Any:
        return self.values[self.flow.root(node)]


def _times(size: int, factor: int) -> int:
    return size * factor


def _size(batch: int, length: int, terms: SizeTerms) -> int:
    return sum(factor * batch**i * length**j for factor, i, j in terms)
