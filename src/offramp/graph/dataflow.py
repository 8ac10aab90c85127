"""What is alive where in a traced graph, and what each value depends on.

Every operation's value is one of
    free      made from parameters, buffers, constants and sizes alone: computed again where it is needed
    carried   depends on the inputs but on no parameter (a mask): passed along beside the feature
    feature   depends on both: what the network knows so far
In-place operations write to the value they are applied to; values that share storage are one group, and
whatever is written to one of them the others depend on too. Sizes that follow from the batch size and the
length of texts depend on nothing: they are read off the tensors that are passed along.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree

from offramp.errors import PartitionError
from offramp.graph.dynamic_quant import layer_of
from offramp.graph.trace import Trace

_MAY_RETURN_ITS_ARGUMENT = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as"}
"""Operations that can return their argument itself although their schema does not say so."""
_NORMS = {"batch_norm", "instance_norm"}
"""Change running statistics (arguments 3 and 4) where argument 5 is true; the schema does not say so."""
CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"}
"""Operations that only assert something at run time."""

SizeTerms = tuple[tuple[int, int, int], ...]
"""A size: the sum of factor * batch size ** i * length ** j over (factor, i, j)."""


class Flow:
    """Dependencies, aliases and liveness of a trace. ``nodes`` are the operations that must run, in order."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.nodes = _needed(trace)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.same = _in_place_results(self.nodes)
        self._storage = _Storage(self.nodes)
        self._terms: dict[Any, SizeTerms | None] = {}
        self._refuse_changed_parameters()
        self._on_input = self._dependent_on(trace.inputs)
        packed = (node for node in self.nodes if layer_of(node) is not None)
        self._on_parameter = self._dependent_on((*trace.parameters, *packed))

    @cached_property
    def last_use(self) -> dict[Node, int]:
        """Index of the last operation that reads each value; the outputs are read after all of them."""
        uses = {source: i for i, node in enumerate(self.nodes) for source in self.reads(node)}
        return uses | dict.fromkeys(self.outputs(), len(self.nodes))

    @cached_property
    def written_inputs(self) -> frozenset[Node]:
        """Inputs that the model changes in place: a span that starts with them must copy them first."""
        return frozenset(node for node in self.trace.inputs if self._storage.last_write(node) >= 0)

    def root(self, node: Node) -> Node:
        """The value itself, where ``node`` is the result of an in-place operation on it."""
        while node in self.same:
            node = self.same[node]
        return node

    def reads(self, node: Node) -> Iterator[Node]:
        """The values an operation reads; none for a size that follows from those of the inputs."""
        if self.size_terms(node.meta.get("val")) is None:
            yield from map(self.root, node.all_input_nodes)

    def outputs(self) -> list[Node]:
        """The values the model returns."""
        return [self.root(output) for output in self.trace.outputs if isinstance(output, Node)]

    def batch_factor(self, size: object) -> int:
        """K where ``size`` is k times the batch size, k a positive integer; else 0."""
        if not isinstance(size, torch.SymInt):
            return 0
        batch = self.trace.inputs[0].meta["val"].shape[0]
        ratio = size.node.expr / batch.node.expr
        return int(ratio) if ratio.is_Integer and ratio > 0 else 0

    def size_terms(self, size: object) -> SizeTerms | None:
        """A size as a polynomial of the batch size and the length of texts; None where it is none."""
        if not isinstance(size, torch.SymInt):
            return None
        expr = size.node.expr
        if expr not in self._terms:
            self._terms[expr] = self._polynomial(expr)
        return self._terms[expr]

    def _polynomial(self, expr: Any) -> SizeTerms | None:
        length = self.trace.length
        batch = self.trace.inputs[0].meta["val"].shape[0].node.expr
        symbols = (batch, sympy.Symbol("length") if length is None else length.node.expr)
        if not expr.free_symbols <= set(symbols):
            return None
        try:
            terms = sympy.Poly(expr, *symbols).terms()
        except sympy.PolynomialError:  # a quotient, rounded
            return None
        return tuple((int(factor), int(i), int(j)) for (i, j), factor in terms if factor.is_Integer)

    def concrete(self, size: object, length: int | None = None) -> int:
        """A size, as it is for texts of this length; None: the example's."""
        terms = self.size_terms(size)
        if terms is None:
            return int(size)  # type: ignore[call-overload,no-any-return]
        if length is None:
            length = 0 if self.trace.spec.lengths is None else self.trace.spec.lengths.longest
        return sum(factor * length**j for factor, i, j in terms if i == 0)

    def dimension_of_length(self, values: Iterable[Node]) -> tuple[Node, int] | None:
        """(value, dimension) where the length of the texts can be read off."""
        length = self.trace.length
        if length is None:
            return None
        for value in values:
            for dimension, size in enumerate(value.meta["val"].shape if is_tensor(value) else ()):
                if isinstance(size, torch.SymInt) and size.node.expr == length.node.expr:
                    return value, dimension
        return None

    def needs_length(self, after: int) -> bool:
        """Whether an operation behind ``after`` works with the length of texts, or with what it gives."""
        stack, seen = list(self.nodes[after + 1 :]), set[Node]()
        while stack:
            node = stack.pop()
            terms = self.size_terms(node.meta.get("val"))
            if terms is not None and any(j for _, _, j in terms):
                return True
            if node not in seen:
                seen.add(node)
                stack += [
                    source for source in self.reads(node) if source in self.index and self.is_free(source)
                ]
        return False

    def batch_first(self, node: Node) -> bool:
        """Whether a value's first dimension is the batch and no other depends on it."""
        shape = node.meta["val"].shape
        return len(shape) > 0 and self.batch_factor(shape[0]) == 1 and self._without_batch(shape[1:])

    def batch_free(self, node: Node) -> bool:
        """Whether no dimension of a value depends on the batch."""
        return self._without_batch(node.meta["val"].shape)

    def _without_batch(self, shape: Iterable[object]) -> bool:
        """Whether all sizes are numbers, or follow from the length of texts alone."""
        terms = [self.size_terms(size) for size in shape if isinstance(size, torch.SymInt)]
        return all(each is not None and not any(i for _, i, _ in each) for each in terms)

    def is_free(self, node: Node) -> bool:
        """Made, and changed in place, from parameters, constants and sizes alone."""
        return node not in self._on_input

    def writers(self, node: Node) -> list[Node]:
        """The operations that change a value, or what it shares its storage with, in order."""
        return [self.nodes[i] for i in self._storage.writes(node)]

    def is_feature(self, node: Node) -> bool:
        """Depends on inputs and on parameters."""
        return node in self._on_input and node in self._on_parameter

    def alive(self, after: int) -> list[Node]:
        """Values made before or at operation ``after`` that later operations read, except free ones."""
        made = [*self.trace.inputs, *(n for n in self.nodes[: after + 1] if n not in self.same)]
        return [n for n in made if self.last_use.get(n, -1) > after and not self.is_free(n)]

    def owned(self, node: Node, others: Iterable[Node]) -> bool:
        """Whether ``node`` shares its storage with no input, no parameter and none of ``others``."""
        return not self._storage.shared(node, (*self.trace.inputs, *self.trace.slots, *others))

    def changed_through_an_alias(self, node: Node, after: int, others: Iterable[Node]) -> bool:
        """Whether ``node`` shares storage with another alive value and is written after the cut."""
        return self._storage.shared(node, others) and self._storage.last_write(node) > after

    def _refuse_changed_parameters(self) -> None:
        for node, (_, name) in self.trace.slots.items():
            last = self._storage.last_write(node)
            if last >= 0:
                trail = (self.nodes[last].stack_trace or "").splitlines()
                lines = [f"\n  {line.strip()}" for line in trail if line.strip()]  # the user's line is last
                raise PartitionError(
                    f"{type(self.trace.model).__name__} changes its own parameter or buffer {name!r} "
                    f"in eval mode{''.join(lines[-2:])}\n  try: make forward free of side effects, "
                    "for instance behind `if self.training:`"
                )

    def _dependent_on(self, sources: Iterable[Node]) -> set[Node]:
        """Every value that depends on one of ``sources``, also by a write to what it shares storage with."""
        group = self._storage.group
        found, tainted, size = set(sources), set[Node](), -1
        while len(found) + len(tainted) > size:
            size = len(found) + len(tainted)
            for node in self.nodes:
                if any(source in found or group(source) in tainted for source in self.reads(node)):
                    found.add(node)
                    tainted.update(map(group, _writes(node)))
            found.update(n for n in (*self.trace.inputs, *self.nodes) if group(n) in tainted)
        return found


class _Storage:
    """Which values of a graph share storage (union-find), and the last operation that writes to it."""

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self._parent: dict[Node, Node] = {}
        for node in nodes:
            for source in _shares_storage_with(node):
                mine, other = self.group(node), self.group(source)
                if mine is not other:
                    self._parent[mine] = other
        self._writes: dict[Node, list[int]] = {}
        for i, node in enumerate(nodes):
            for group in {self.group(value) for value in _writes(node)}:
                self._writes.setdefault(group, []).append(i)

    def group(self, node: Node) -> Node:
        while (parent := self._parent.get(node)) is not None:
            node = parent
        return node

    def writes(self, node: Node) -> list[int]:
        """Indices of the operations that write to it, in order."""
        return self._writes.get(self.group(node), [])

    def last_write(self, node: Node) -> int:
        """Index of the operation; -1 where there is none."""
        return max(self.writes(node), default=-1)

    def shared(self, node: Node, others: Iterable[Node]) -> bool:
        return any(self.group(other) is self.group(node) for other in others if other is not node)


def is_tensor(node: Node) -> bool:
    """Whether a node's value is one tensor (not a size, nor a list of tensors)."""
    return isinstance(node.meta.get("val"), Tensor)


def is_size(node: Node) -> bool:
    """Whether a node's value is a number: a size or arithmetic on sizes, or a number read off a tensor."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))


def operation_name(node: Node) -> str:
    """Name of an ATen operation without overload and trailing underscore; empty for other nodes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.split("::")[1].rstrip("_")


def _needed(trace: Trace) -> tuple[Node, ...]:
    """Drop whatever nobody reads and changes nothing, run-time checks included."""
    kept: list[Node] = []
    used = {n for n in trace.outputs if isinstance(n, Node)}
    for node in reversed(trace.nodes):
        if node in used or _writes(node):
            kept.append(node)
            used.update(node.all_input_nodes)
    return tuple(reversed(kept))


def _writes(node: Node) -> list[Node]:
    """The values that an operation changes in place."""
    if node.op != "call_function":
        return []
    if not isinstance(node.target, torch._ops.OpOverload):
        return [
            outer for inner, outer, storage, _ in _subgraph_inputs(node) if storage.last_write(inner) >= 0
        ]
    if operation_name(node) in _NORMS and len(node.args) > 5 and node.args[5]:
        return [value for value in node.args[3:5] if isinstance(value, Node)]
    return [value for argument, value in _arguments(node) if argument.alias_info.is_write]


def _arguments(node: Node) -> list[tuple[Any, Node]]:
    """(schema argument, value) where the schema says that the value is written, or shared with a result."""
    arguments = enumerate(node.target._schema.arguments)  # type: ignore[union-attr]
    given = ((a, node.args[i] if i < len(node.args) else node.kwargs.get(a.name)) for i, a in arguments)
    return [
        (argument, value)
        for argument, values in given
        if argument.alias_info is not None
        for value in _pytree.tree_leaves(values)
        if isinstance(value, Node)
    ]


def _subgraph_inputs(node: Node) -> Iterator[tuple[Node, Node, _Storage, tuple[Node, ...]]]:
    """(placeholder, operand, storage, results) for the graphs inside an operation (autocast, no_grad)."""
    operands = _pytree.tree_leaves((node.args, node.kwargs))
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            nodes = tuple(getattr(node.graph.owning_module, str(source.target)).graph.nodes)
            inputs = [n for n in nodes if n.op == "placeholder"]
            storage, results = _Storage(nodes), tuple(nodes[-1].all_input_nodes)
            for inner, outer in zip(inputs, operands[len(operands) - len(inputs) :], strict=True):
                if isinstance(outer, Node):
                    yield inner, outer, storage, results


def _in_place_results(nodes: tuple[Node, ...]) -> dict[Node, Node]:
    """In-place operations return the value they changed: result -> value."""
    return {
        node: _writes(node)[0]
        for node in nodes
        if isinstance(node.target, torch._ops.OpOverload) and is_tensor(node)
        if (returned := node.target._schema.returns[0].alias_info) is not None and returned.is_write
    }


def _shares_storage_with(node: Node) -> list[Node]:
    if node.op != "call_function" or is_size(node):
        return []
    if node.target is operator.getitem:
        return node.all_input_nodes
    if not isinstance(node.target, torch._ops.OpOverload):
        return [
            outer
            for inner, outer, storage, results in _subgraph_inputs(node)
            if storage.group(inner) in map(storage.group, results)
        ]
    if operation_name(node) in _MAY_RETURN_ITS_ARGUMENT:
        return node.all_input_nodes[:1]
    if all(result.alias_info is None for result in node.target._schema.returns):
        return []
    return [value for _, value in _arguments(node)]
