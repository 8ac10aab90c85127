"""A span's graph, rewritten: narrower types, another layout in memory, quantised layers.

    span ──draft──▶ its operations and parameters ──narrow, lay_out, quantise──▶ others ──frozen──▶ function

What is converted are the features. Values that depend on the inputs alone (masks) or on parameters alone keep
their type, and are converted where a feature meets them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from offramp.errors import InputError
from offramp.graph import Border, Flow, Slot, Span, operation_name
from offramp.runtime.int8 import Int8Linear

_ATEN = torch.ops.aten
_LINEAR, _ADDMM = _ATEN.linear.default, _ATEN.addmm.default


@dataclass(frozen=True)
class Conversion:
    """How a parameter is copied.

    Args:
        dtype: of the copy where the parameter is floating point; None: its own.
        channels_last: whether the copy is laid out channels last.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = False

    def __call__(self, value: Tensor) -> Tensor:
        """The parameter itself, detached, where nothing changes."""
        value = value.detach()
        if self.dtype is not None and value.is_floating_point():
            value = value.to(self.dtype)
        return value.contiguous(memory_format=torch.channels_last) if self.channels_last else value


class Parameters:
    """Converted copies of a model's parameters, each made once and shared by the spans of a runner."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, str, Conversion], Tensor] = {}
        self._layers: dict[tuple[tuple[int, str], ...], nn.Module] = {}

    def copy(self, slot: Slot, conversion: Conversion) -> Tensor:
        """A parameter, as it was when it was first asked for."""
        owner, name = slot
        key = (id(owner), name, conversion)
        if key not in self._copies:
            self._copies[key] = conversion(owner[name])
        return self._copies[key]

    def int8(self, weight: Slot, bias: Slot | None, transposed: bool) -> nn.Module:
        """A quantised layer of a weight (K, N), or (N, K) if ``transposed``, and a bias (K,)."""
        key = tuple((id(owner), name) for owner, name in filter(None, (weight, bias)))
        if key not in self._layers:
            value = weight[0][weight[1]].detach()
            offset = None if bias is None else bias[0][bias[1]].detach()
            self._layers[key] = Int8Linear(value.t() if transposed else value, offset)
        return self._layers[key]


@dataclass
class EditableGraph:
    """A span while it is rewritten.

    Args:
        module: the operations; nobody else's.
        activations: placeholders of what is handed in; each knows an example of its value, as operations do.
        slots: placeholder of a parameter -> where it is.
        features: the values that are features.
        fed: whether the first value handed in is one; else these are the model's inputs.
        conversions: of the parameters; those left out stay as they are.
    """

    module: GraphModule
    activations: tuple[Node, ...]
    slots: dict[Node, Slot]
    features: set[Node]
    fed: bool
    conversions: dict[Node, Conversion] = field(default_factory=dict)

    def operations(self) -> list[Node]:
        """Every operation, in order."""
        return [node for node in self.module.graph.nodes if node.op in ("call_function", "call_module")]

    def results(self) -> tuple[Any, ...]:
        """What the span hands on."""
        return tuple(self._output.args[0])  # type: ignore[arg-type]

    def hand_on(self, results: Sequence[Any]) -> None:
        """Change what the span hands on."""
        self._output.args = (tuple(results),)

    @property
    def _output(self) -> Node:
        found: Node = next(iter(reversed(self.module.graph.nodes)))
        return found

    def after(self, node: Node, function: Callable[..., Any], **kwargs: Any) -> Node:
        """A new operation on a placeholder, which takes its place wherever it was read."""
        graph = self.module.graph
        first = next(each for each in graph.nodes if each.op != "placeholder")
        readers = list(node.users)
        with graph.inserting_before(first):
            new = graph.call_function(function, (node,), kwargs)
        for reader in readers:
            reader.replace_input_with(node, new)
        new.meta["val"] = node.meta.get("val")
        if node in self.features:
            self.features.add(new)
        return new

    def convert(self, node: Node, **changes: Any) -> None:
        """Have a parameter converted."""
        self.conversions[node] = replace(self.conversions.get(node, Conversion()), **changes)

    def finish(self, parameters: Parameters) -> tuple[GraphModule, tuple[Tensor, ...]]:
        """The operations as a module, and the parameters it takes after what is handed in."""
        drop_unread(self.module)
        for node in list(self.slots):
            if not node.users:
                self.module.graph.erase_node(node)
                del self.slots[node]
        self.module.graph.lint()
        self.module.recompile()
        placed = [node for node in self.module.graph.nodes if node in self.slots]
        plain = Conversion()
        return self.module, tuple(
            parameters.copy(self.slots[node], self.conversions.get(node, plain)) for node in placed
        )


def editable_graph(span: Span, flow: Flow, start: Border) -> EditableGraph:
    """A span, ready to be rewritten.

    Args:
        span: made for this purpose; its graph is changed.
        flow: of the traced model.
        start: where the span begins.
    """
    placeholders = [node for node in span.module.graph.nodes if node.op == "placeholder"]
    activations, parameters = placeholders[: len(start.activations)], placeholders[len(start.activations) :]
    slots = dict(zip(parameters, span.slots, strict=True))
    known = {id(node.meta["val"]) for node in flow.nodes if flow.is_feature(node) and "val" in node.meta}
    features = {node for node in span.module.graph.nodes if id(node.meta.get("val")) in known}
    for node, source in zip(activations, start.activations, strict=True):
        node.meta["val"] = source.meta["val"]
    for node, (owner, name) in slots.items():
        node.meta["val"] = owner[name]
    for node in _copies(span.module, activations):
        source = start.activations[activations.index(node.all_input_nodes[0])]
        node.meta["val"] = source.meta["val"]
        features |= {node} if flow.is_feature(source) else set()
    fed = start.after >= 0
    return EditableGraph(
        span.module, tuple(activations), slots, features | set(activations[:1] if fed else ()), fed
    )


def _copies(module: GraphModule, activations: Sequence[Node]) -> list[Node]:
    """The operations that copy an input because the model changes it."""
    clones = (node for node in module.graph.nodes if node.target is _ATEN.clone.default)
    return [node for node in clones if node.args[0] in activations and "val" not in node.meta]


def bind_parameters(found: EditableGraph, parameters: Parameters) -> Callable[..., tuple[Any, ...]]:
    """A draft as a function of what is handed in, with the parameters as they are now."""
    module, values = found.finish(parameters)
    function = module.forward
    return lambda *activations: function(*activations, *values)


def drop_unread(module: GraphModule) -> None:
    """Remove operations that nobody reads and that change nothing."""
    for node in reversed(module.graph.nodes):
        if not node.users and node.op in ("call_function", "call_module", "get_attr") and not _writes(node):
            module.graph.erase_node(node)


def cast_features(found: EditableGraph, dtype: torch.dtype) -> None:
    """Compute features in another floating type.

    Raises:
        InputError: the model switches types itself.
    """
    casts: dict[Node, Node] = {}
    fixed = not any(_writes(node) and node not in found.features for node in found.operations())
    for node in found.operations():
        if node not in found.features:
            continue
        _refuse_subgraphs(node)
        cast = _Cast(found, node, dtype, casts if fixed else {})
        node.args, node.kwargs = map_aggregate(node.args, cast), map_aggregate(node.kwargs, cast)
        if _makes_default_type(node):
            node.kwargs = {**node.kwargs, "dtype": dtype}


def _makes_default_type(node: Node) -> bool:
    """Whether an operation makes a new tensor (zeros, ones) of torch's default type."""
    if not isinstance(node.target, torch._ops.OpOverload) or not _floating(node):
        return False
    takes = any(argument.name == "dtype" for argument in node.target._schema.arguments)
    made_of_tensors = any(isinstance(source.meta.get("val"), Tensor) for source in node.all_input_nodes)
    return takes and not made_of_tensors and node.kwargs.get("dtype") is None


class _Cast:
    """What one operation is given, in the new type."""

    def __init__(
        self, found: EditableGraph, reader: Node, dtype: torch.dtype, casts: dict[Node, Node]
    ) -> None:
        self._draft, self._reader, self._dtype, self._casts = found, reader, dtype, casts
        self._limit = torch.finfo(dtype).max

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return self._dtype if value.is_floating_point else value
        if isinstance(value, float) and math.isfinite(value):
            return min(max(value, -self._limit), self._limit)
        if not isinstance(value, Node) or value in self._draft.features or not _floating(value):
            return value
        if value in self._draft.slots and all(user in self._draft.features for user in value.users):
            self._draft.convert(value, dtype=self._dtype)
            return value
        if value not in self._casts:
            with self._draft.module.graph.inserting_before(self._reader):
                cast = self._draft.module.graph.call_function(_narrowed, (value, self._dtype))
            cast.meta["val"] = value.meta["val"]
            self._casts[value] = cast
        return self._casts[value]


def _narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In another type. Masks use the lowest number there is: it must not become an infinity there."""
    limit = torch.finfo(dtype).max
    return value.to(dtype).clamp(-limit, limit)


def _refuse_subgraphs(node: Node) -> None:
    if not isinstance(node.target, torch._ops.OpOverload) and node.target is not operator.getitem:
        raise InputError(
            f"dtype: the model switches types or gradients itself ({node.name}); expected a model without "
            "autocast inside, or use dtype=None"
        )


def to_channels_last(found: EditableGraph) -> None:
    """Have convolutions on images run channels last; a span without any stays as it is."""
    convolutions = [node for node in found.operations() if operation_name(node) == "conv2d"]
    if not convolutions:
        return
    for node in found.activations[:1] if found.fed else found.activations:
        if node.meta["val"].ndim == 4 and _floating(node):
            found.after(node, _ATEN.contiguous.default, memory_format=torch.channels_last)
    for node in convolutions:
        weight = node.args[1]
        if isinstance(weight, Node) and weight in found.slots:
            found.convert(weight, channels_last=True)
    for node in found.operations():
        if node.target is _ATEN.view.default:
            node.target = _ATEN.reshape.default


def quantise(found: EditableGraph, parameters: Parameters) -> None:
    """Replace linear layers by quantised ones."""
    for node in found.operations():
        layer = linear_layer(node, found.slots)
        if layer is None:
            continue
        x, weight, bias, transposed = layer
        made = parameters.int8(found.slots[weight], None if bias is None else found.slots[bias], transposed)
        name = f"int8_{node.name}"
        found.module.add_submodule(name, made)
        with found.module.graph.inserting_before(node):
            new = found.module.graph.call_module(name, (x,))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        found.module.graph.erase_node(node)


def linear_layer(node: Node, slots: Mapping[Node, Slot]) -> tuple[Node, Node, Node | None, bool] | None:
    """A linear layer made of parameters.

    Args:
        node: any operation.
        slots: the parameters of its graph.

    Returns:
        Input, weight, bias and whether the weight is (N, K) instead of (K, N); None for other operations.
    """
    arguments: tuple[Any, ...] = (*node.args, None)
    if node.target is _LINEAR:
        x, weight, bias = arguments[:3]
    elif node.target is _ADDMM and not node.kwargs:
        bias, x, weight = arguments[:3]
    else:
        return None
    if weight not in slots or weight.meta["val"].ndim != 2:
        return None
    if bias is not None and (bias not in slots or bias.meta["val"].ndim != 1):
        return None
    return x, weight, bias, node.target is _ADDMM


def _floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
