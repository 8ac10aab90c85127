"""What is alive where in a traced graph, and what each value depends on.

Every operation's value is one of
    free      made from parameters, buffers, constants and sizes alone: computed again wherever it is needed
    carried   depends on the inputs but on no parameter (a mask): handed on beside the feature
    feature   depends on both: what the network knows so far
In-place operations write to the value they are applied to; values that share storage are tracked as one group.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from offramp.errors import PartitionError
from offramp.tracing import Trace

_MAY_RETURN_ITS_ARGUMENT = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as"}
"""Operations that can return their argument itself although their schema does not say so."""
_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"}


class Flow:
    """Dependencies, aliases and liveness of a trace. ``nodes`` are the operations that must run, in order."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.nodes = _needed(trace)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.same = _in_place_results(self.nodes)
        self._group = _Groups()
        self._last_write: dict[Node, int] = {}
        self._alias()
        self._refuse_changed_parameters()
        self._on_input, self._on_parameter = self._dependencies()

    @cached_property
    def last_use(self) -> dict[Node, int]:
        """Index of the last operation that reads each value; the model's outputs are read after all of them."""
        uses: dict[Node, int] = {}
        for i, node in enumerate(self.nodes):
            for source in self.reads(node):
                uses[source] = i
        for output in self.outputs():
            uses[output] = len(self.nodes)
        return uses

    @cached_property
    def written_inputs(self) -> frozenset[Node]:
        """Inputs that the model changes in place: a span that starts with them must copy them first."""
        return frozenset(node for node in self.trace.inputs if self._group.find(node) in self._last_write)

    def root(self, node: Node) -> Node:
        """The value itself, where ``node`` is the result of an in-place operation on it."""
        while node in self.same:
            node = self.same[node]
        return node

    def reads(self, node: Node) -> Iterator[Node]:
        """The values an operation reads."""
        return (self.root(source) for source in node.all_input_nodes)

    def outputs(self) -> list[Node]:
        """The values the model returns."""
        return [self.root(output) for output in self.trace.outputs if isinstance(output, Node)]

    def is_free(self, node: Node) -> bool:
        """Made from parameters, constants and sizes alone, and never changed in place."""
        return not (self._on_input[node] or self._group.find(node) in self._last_write)

    def is_feature(self, node: Node) -> bool:
        """Depends on inputs and on parameters."""
        return self._on_input[node] and self._on_parameter[node]

    def alive(self, after: int) -> list[Node]:
        """Tensors made before or at operation ``after`` that later operations read, except free ones."""
        made = [*self.trace.inputs, *(n for n in self.nodes[: after + 1] if n not in self.same)]
        return [n for n in made if self.last_use.get(n, -1) > after and is_tensor(n) and not self.is_free(n)]

    def changed_through_an_alias(self, node: Node, after: int, others: list[Node]) -> bool:
        """Whether ``node`` shares storage with another alive value and is written after the cut."""
        group = self._group.find(node)
        shared = any(self._group.find(other) is group for other in others if other is not node)
        return shared and self._last_write.get(group, -1) > after

    def _alias(self) -> None:
        for i, node in enumerate(self.nodes):
            for source in _shares_storage_with(node):
                self._group.join(node, self.root(source))
            if written := _writes(node):
                self._last_write[self._group.find(written)] = i
        # groups may have grown after a write was noted: file each write under the final group
        self._last_write = {self._group.find(node): i for node, i in self._last_write.items()}

    def _refuse_changed_parameters(self) -> None:
        for node, (_, name) in self.trace.slots.items():
            if self._group.find(node) in self._last_write:
                writer = self.nodes[self._last_write[self._group.find(node)]]
                raise PartitionError(
                    f"{type(self.trace.model).__name__} changes its own parameter or buffer {name!r} in eval mode"
                    f"{source_line(writer)}\n  try: make forward free of side effects, "
                    "for instance behind `if self.training:`"
                )

    def _dependencies(self) -> tuple[dict[Node, bool], dict[Node, bool]]:
        on_input = dict.fromkeys(self.trace.inputs, True)
        on_parameter = dict.fromkeys(self.trace.inputs, False)
        for node in self.trace.slots:
            on_input[node], on_parameter[node] = False, node in self.trace.parameters
        for node in self.nodes:
            size = not is_tensor(node) and not _is_sequence(
                node
            )  # sizes depend on the batch, not on its values
            sources = list(self.reads(node))
            on_input[node] = not size and any(on_input.get(s, False) for s in sources)
            on_parameter[node] = not size and any(on_parameter.get(s, False) for s in sources)
            if (written := _writes(node)) is not None:
                target = self.root(written)
                on_input[target] = on_input.get(target, False) or on_input[node]
                on_parameter[target] = on_parameter.get(target, False) or on_parameter[node]
        return on_input, on_parameter


class _Groups:
    """Union-find over values that share storage."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}

    def find(self, node: Node) -> Node:
        while self._parent.get(node, node) is not node:
            node = self._parent[node]
        return node

    def join(self, a: Node, b: Node) -> None:
        self._parent[self.find(a)] = self.find(b)


def is_tensor(node: Node) -> bool:
    """Whether a node's value is one tensor (not a size, nor a list of tensors)."""
    return isinstance(node.meta.get("val"), Tensor)


def source_line(node: Node) -> str:
    """The user's line that an operation came from, for messages; empty if unknown."""
    lines = [line.strip() for line in (node.stack_trace or "").strip().splitlines() if line.strip()]
    return "".join(f"\n  {line}" for line in lines[-2:])


def _is_sequence(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list)) or node.op == "get_attr"


def operation_name(node: Node) -> str:
    """Name of an ATen operation without overload and trailing underscore; empty for other nodes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.split("::")[1].rstrip("_")


def _needed(trace: Trace) -> tuple[Node, ...]:
    """Drop run-time checks, and whatever nobody reads and changes nothing."""
    kept: list[Node] = []
    used: set[Node] = {n for n in trace.outputs if isinstance(n, Node)}
    for node in reversed(trace.nodes):
        if operation_name(node) in _CHECKS:
            continue
        if node in used or _writes(node) is not None:
            kept.append(node)
            used.update(node.all_input_nodes)
    return tuple(reversed(kept))


def _writes(node: Node) -> Node | None:
    """The value that an in-place operation changes."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(value, Node):
                return value
    return None


def _in_place_results(nodes: tuple[Node, ...]) -> dict[Node, Node]:
    """In-place operations return the value they changed: result -> value."""
    return {node: written for node in nodes if (written := _writes(node)) is not None}


def _shares_storage_with(node: Node) -> list[Node]:
    if node.target is operator.getitem:
        return node.all_input_nodes[:1]
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.all_input_nodes) if node.op == "call_function" and not is_size(node) else []
    if operation_name(node) in _MAY_RETURN_ITS_ARGUMENT:
        return node.all_input_nodes[:1]
    schema = node.target._schema
    if all(result.alias_info is None for result in schema.returns):
        return []
    named = {a.name: node.args[i] if i < len(node.args) else node.kwargs.get(a.name)
             for i, a in enumerate(schema.arguments) if a.alias_info is not None}  # fmt: skip
    return [value for value in named.values() if isinstance(value, Node)]


def is_size(node: Node) -> bool:
    """Whether a node's value is a number (a size or arithmetic on sizes)."""
    value: Any = node.meta.get("val")
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))
