"""A span's graph, rewritten: smaller types, another layout in memory, quantised layers.

    span ─▶ editable graph ─ cast_features, to_channels_last, quantise ─▶ bind_parameters ─▶ function

What is converted are the features. Values that depend on the inputs alone (masks) or on parameters alone keep
their type, and are converted where a feature meets them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
    """How a parameter is copied: to another type where it is floating point, laid out channels last."""

    dtype: torch.dtype | None = None
    channels_last: bool = False

    def __call__(self, value: Tensor) -> Tensor:
        """The parameter itself, detached, where nothing changes."""
        value = value.detach()
        if self.dtype is not None and value.is_floating_point():
            value = value.to(self.dtype)
        return value.contiguous(memory_format=torch.channels_last) if self.channels_last else value


class Parameters:
    """Converted copies of a model's parameters, each made once and shared by the spans of a provider."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, str, Conversion], Tensor] = {}
        self._layers: dict[tuple[tuple[int, str], ...], nn.Module] = {}

    def copy(self, slot: Slot, conversion: Conversion) -> Tensor:
        """A parameter, as it was when it was first used."""
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
    """A span while it is rewritten: a module whose placeholders and operations know examples.

    ``activations`` are the placeholders of what the span takes, the first of them a feature or else
    (``takes_feature`` is False) the model's inputs; ``slots`` are those of parameters, and where each is.
    """

    module: GraphModule
    activations: tuple[Node, ...]
    slots: dict[Node, Slot]
    features: set[Node]
    takes_feature: bool
    conversions: dict[Node, Conversion] = field(default_factory=dict)

    def operations(self) -> list[Node]:
        """Every operation, in order."""
        return [node for node in self.module.graph.nodes if node.op in ("call_function", "call_module")]

    @property
    def output(self) -> Node:
        """The node that returns."""
        found: Node = next(iter(reversed(self.module.graph.nodes)))
        return found

    def results(self) -> tuple[Any, ...]:
        """What the span returns."""
        return tuple(self.output.args[0])  # type: ignore[arg-type]

    def set_results(self, results: Sequence[Any]) -> None:
        """Change what the span returns."""
        self.output.args = (tuple(results),)

    def insert_after(self, node: Node, function: Callable[..., Any], **kwargs: Any) -> None:
        """A new operation on a placeholder, which takes its place wherever it was read."""
        graph, readers = self.module.graph, list(node.users)
        with graph.inserting_before(next(each for each in graph.nodes if each.op != "placeholder")):
            new = graph.call_function(function, (node,), kwargs)
        for reader in readers:
            reader.replace_input_with(node, new)
        new.meta["val"] = node.meta.get("val")
        if node in self.features:
            self.features.add(new)

    def convert(self, node: Node, **changes: Any) -> None:
        """Have a parameter converted."""
        self.conversions[node] = replace(self.conversions.get(node, Conversion()), **changes)

    def finish(self, parameters: Parameters) -> tuple[GraphModule, tuple[Tensor, ...]]:
        """The operations as a module, and the parameters it takes after the activations."""
        graph = self.module.graph
        for node in reversed(graph.nodes):  # operations that nobody reads and that change nothing
            unread = not node.users and node.op in ("call_function", "call_module", "get_attr")
            if unread and not _writes(node):
                graph.erase_node(node)
        for node in [node for node in self.slots if not node.users]:
            graph.erase_node(node)
            del self.slots[node]
        graph.lint()
        self.module.recompile()
        placed = [node for node in graph.nodes if node in self.slots]
        as_it_is = Conversion()
        return self.module, tuple(
            parameters.copy(self.slots[node], self.conversions.get(node, as_it_is)) for node in placed
        )


def editable_graph(span: Span, flow: Flow, start: Border) -> EditableGraph:
    """A span that begins at ``start``, ready to be rewritten; its graph is changed."""
    placeholders = [node for node in span.module.graph.nodes if node.op == "placeholder"]
    activations, parameters = placeholders[: len(start.activations)], placeholders[len(start.activations) :]
    slots = dict(zip(parameters, span.slots, strict=True))
    known = {id(node.meta["val"]) for node in flow.nodes if flow.is_feature(node) and "val" in node.meta}
    features = {node for node in span.module.graph.nodes if id(node.meta.get("val")) in known}
    for node, source in zip(activations, start.activations, strict=True):
        node.meta["val"] = source.meta["val"]
    for node, (owner, name) in slots.items():
        node.meta["val"] = owner[name]
    for node in span.module.graph.nodes:
        # copies of inputs that the model changes
        if node.target is _ATEN.clone.default and node.args[0] in activations and "val" not in node.meta:
            source = start.activations[activations.index(node.args[0])]
            node.meta["val"] = source.meta["val"]
            features |= {node} if flow.is_feature(source) else set()
    takes_feature = start.after >= 0
    features.update(activations[:1] if takes_feature else ())
    return EditableGraph(
        module=span.module,
        activations=tuple(activations),
        slots=slots,
        features=features,
        takes_feature=takes_feature,
    )


def bind_parameters(found: EditableGraph, parameters: Parameters) -> Callable[..., tuple[Any, ...]]:
    """An editable graph as a function of activations, with the parameters as they are now."""
    module, values = found.finish(parameters)
    function = module.forward
    return lambda *activations: function(*activations, *values)


def cast_features(found: EditableGraph, dtype: torch.dtype) -> None:
    """Compute features in another floating type; InputError: the model switches types itself."""
    casts: dict[Node, Node] = {}
    reusable = not any(_writes(node) and node not in found.features for node in found.operations())
    for node in found.operations():
        if node not in found.features:
            continue
        if not isinstance(node.target, torch._ops.OpOverload) and node.target is not operator.getitem:
            raise InputError(
                f"dtype: the model switches types or gradients itself ({node.name}); expected a model "
                "without autocast inside, or use dtype=None"
            )
        cast = partial(_cast_argument, found, node, dtype, casts if reusable else {})
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


def _cast_argument(
    found: EditableGraph, reader: Node, dtype: torch.dtype, casts: dict[Node, Node], value: Any
) -> Any:
    """An argument of an operation in the new type; ``casts`` are those there are already."""
    if isinstance(value, torch.dtype):
        return dtype if value.is_floating_point else value
    if isinstance(value, float) and math.isfinite(value):
        limit = torch.finfo(dtype).max
        return min(max(value, -limit), limit)
    if not isinstance(value, Node) or value in found.features or not _floating(value):
        return value
    if value in found.slots and all(user in found.features for user in value.users):
        found.convert(value, dtype=dtype)
        return value
    if value not in casts:
        with found.module.graph.inserting_before(reader):
            casts[value] = found.module.graph.call_function(_cast, (value, dtype))
        casts[value].meta["val"] = value.meta["val"]
    return casts[value]


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In another type. Masks use the lowest number there is: it must not become an infinity there."""
    limit = torch.finfo(dtype).max
    return value.to(dtype).clamp(-limit, limit)


def to_channels_last(found: EditableGraph) -> None:
    """Have convolutions on images run channels last; a span without any stays as it is."""
    convolutions = [node for node in found.operations() if operation_name(node) == "conv2d"]
    if not convolutions:
        return
    for node in found.activations[:1] if found.takes_feature else found.activations:
        if node.meta["val"].ndim == 4 and _floating(node):
            found.insert_after(node, _ATEN.contiguous.default, memory_format=torch.channels_last)
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
    """Input, weight, bias and whether the weight is (N, K) instead of (K, N), where a node is a linear layer.

    None for other operations, and where weight or bias are no parameters among ``slots``.
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
