"""Where a feature tensor keeps its channels: read off the operations around it, never guessed from its shape.

From the feature the graph is searched forwards and backwards, nearest first, through operations that keep,
permute or reshape dimensions, until one is met that says which dimension is the channel: a convolution or a
normalisation, and where there is none, a linear map or a pooling (which some models apply to tokens).
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch.fx import Node

from offramp.graph.dataflow import Flow, is_tensor, operation_name

LAYOUTS = ("NC", "NCL", "NLC", "NCHW", "NHWC", "NCDHW", "NDHWC")
_KEEPS_DIMENSIONS = {
    "relu", "relu6", "gelu", "silu", "hardswish", "hardtanh", "hardsigmoid", "sigmoid", "tanh",
    "leaky_relu", "elu", "selu", "prelu", "mish", "softplus", "clamp", "add", "sub", "mul", "div", "pow",
    "sqrt", "rsqrt", "neg", "exp", "dropout", "feature_dropout", "softmax", "masked_fill", "where",
    "clone", "contiguous", "to", "_to_copy", "type_as", "alias", "detach", "lift_fresh_copy", "copy",
    "cat", "slice", "roll", "flip", "pad", "constant_pad_nd",
}  # fmt: skip
_RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
_PERMUTES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "adjoint"}
_SECOND, _LAST = 1, -1
_STRONG = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "batch_norm", "group_norm", "instance_norm"), _SECOND),
    **dict.fromkeys(("layer_norm", "rms_norm", "embedding", "lstm", "gru", "rnn_tanh", "rnn_relu"), _LAST),
}
_POOLINGS = (
    "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_nearest2d",
    "pixel_shuffle", "max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d",
)  # fmt: skip
_WEAK = {"linear": _LAST, "packed_linear": _LAST, **dict.fromkeys(_POOLINGS, _SECOND)}
Dims = tuple[int | None, ...]
"""For each dimension of a value, the feature's dimension that it is; None where it is none."""
_NAMES = {
    (3, 1): "NCL", (3, 2): "NLC", (4, 1): "NCHW", (4, 3): "NHWC", (5, 1): "NCDHW", (5, 4): "NDHWC",
}  # fmt: skip


def find_layout(flow: Flow, feature: Node) -> str | None:
    """Layout of a feature (B, ...): one of ``LAYOUTS``; None where the graph does not say."""
    rank = _rank(feature)
    if rank == 2:
        return "NC"
    for evidence in (_STRONG, _WEAK):
        for channel in _channels(flow, feature, evidence):
            if channel is not None and (rank, channel) in _NAMES:
                return _NAMES[rank, channel]
    return None


def _channels(flow: Flow, feature: Node, evidence: dict[str, int]) -> Iterator[int | None]:
    """The feature's dimensions that operations take for the channel, nearest operations first."""
    start: Dims = tuple(range(_rank(feature)))
    queue, seen = deque([(feature, start)]), {feature}
    while queue:
        value, dims = queue.popleft()
        for node, other, forwards in _around(flow, value):
            if not forwards or flow.root(node.all_input_nodes[0]) is value:
                said = _says(node, evidence)
                if said is not None:
                    yield dims[said]
                    continue
            moved = _through(node, value, other, dims, forwards) if is_tensor(other) else None
            if moved is not None and other not in seen:
                seen.add(other)
                queue.append((other, moved))


def _around(flow: Flow, value: Node) -> list[tuple[Node, Node, bool]]:
    """(operation, value on its other side, is it a consumer) for every neighbour of a value."""
    results = [value, *(n for n in flow.same if flow.root(n) is value)]
    users = [(user, flow.root(user), True) for made in results for user in made.users if user in flow.index]
    makers = [_operation(made) for made in results if made in flow.index]
    return users + [(made, flow.root(source), False) for made in makers for source in made.all_input_nodes]


def _operation(node: Node) -> Node:
    """What made a value: of several results, the operation behind."""
    return node.all_input_nodes[0] if node.target is operator.getitem else node


def _says(node: Node, evidence: dict[str, int]) -> int | None:
    name = operation_name(node)
    if name in ("layer_norm", "rms_norm") and len(node.args[1]) > 1:  # type: ignore[arg-type]
        return None  # normalises over a whole image: says nothing about the channel
    return evidence.get(name)


def _through(node: Node, value: Node, other: Node, dims: Dims, forwards: bool) -> Dims | None:
    """The dimensions of ``other``, on the far side of ``node``; None where it cannot be said."""
    name = operation_name(node)
    if name in _KEEPS_DIMENSIONS:
        return dims if _rank(other) == len(dims) else None
    if name in _RESHAPES:
        return _reshaped(dims, value.meta["val"].shape, other.meta["val"].shape)
    if name not in _PERMUTES:
        return None
    probe = torch.empty(*range(1, len(dims) + 1), device="meta")  # distinct sizes tell where each one went
    order = [size - 1 for size in node.target(probe, *node.args[1:], **node.kwargs).shape]  # type: ignore[operator]
    return tuple(dims[i] for i in (order if forwards else map(order.index, range(len(dims)))))


def _reshaped(dims: Dims, before: torch.Size, after: torch.Size) -> Dims:
    """A reshape keeps the dimensions in front of the first change and those behind the last."""
    front = _equal(before, after)
    back = _equal(before[::-1], after[::-1][: len(after) - front])
    return (*dims[:front], *[None] * (len(after) - front - back), *dims[len(dims) - back :])


def _equal(a: Sequence[object], b: Sequence[object]) -> int:
    """How many sizes at the start of two shapes are equal; compared as text, to leave symbols alone."""
    return sum(takewhile(bool, (str(x) == str(y) for x, y in zip(a, b, strict=False))))


def _rank(node: Node) -> int:
    return node.meta["val"].ndim if is_tensor(node) else 0
