"""Where a feature tensor keeps its channels: read off the operations around it, never guessed from its shape.

From the feature the graph is searched forwards and backwards, through operations that keep or permute dimensions,
until one is met that says which dimension is the channel: a convolution, a linear map, a normalisation.
"""

from __future__ import annotations

from collections import deque

from torch import Tensor
from torch.fx import Node

from offramp.flow import Flow, is_tensor, operation_name

LAYOUTS = ("NC", "NCL", "NLC", "NCHW", "NHWC")
_KEEPS_DIMENSIONS = {
    "relu", "relu6", "gelu", "silu", "hardswish", "hardtanh", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu",
    "mish", "softplus", "clamp", "add", "sub", "mul", "div", "dropout", "feature_dropout", "clone", "contiguous", "to",
    "_to_copy", "pow", "sqrt", "rsqrt", "softmax", "alias", "detach", "lift_fresh_copy", "copy",
}  # fmt: skip
_CHANNEL_SECOND = {
    "conv1d", "conv2d", "convolution", "batch_norm", "group_norm", "instance_norm", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d",
    "upsample_bilinear2d", "upsample_nearest2d", "pixel_shuffle",
}  # fmt: skip
_CHANNEL_LAST = {"linear", "layer_norm", "rms_norm", "embedding"}


def find_layout(flow: Flow, feature: Node) -> str | None:
    """Layout of a feature value.

    Args:
        flow: of the traced model.
        feature: a tensor value with the batch first.

    Returns:
        One of ``LAYOUTS``, or None where the graph does not say.
    """
    rank = _rank(feature)
    if rank == 2:
        return "NC"
    if rank not in (3, 4):
        return None
    channel = _channel_dimension(flow, feature, rank)
    return (
        {(3, 1): "NCL", (3, 2): "NLC", (4, 1): "NCHW", (4, 3): "NHWC"}.get((rank, channel))
        if channel
        else None
    )


def _channel_dimension(flow: Flow, feature: Node, rank: int) -> int | None:
    # each entry: a value, and for each of its dimensions the feature's dimension that it is
    queue = deque([(feature, tuple(range(rank)))])
    seen = {feature}
    while queue:
        value, dims = queue.popleft()
        for node, other, forwards in _around(flow, value):
            channel = _says(node, value, forwards, rank)
            if channel is not None:
                return dims[channel]
            moved = _through(node, dims, forwards)
            if moved is not None and other not in seen and _rank(other) == rank:
                seen.add(other)
                queue.append((other, moved))
    return None


def _around(flow: Flow, value: Node) -> list[tuple[Node, Node, bool]]:
    """(operation, value on its other side, is it a consumer) for every neighbour of a value."""
    results = [value, *(n for n in flow.nodes if flow.same.get(n) is not None and flow.root(n) is value)]
    steps = [(user, flow.root(user), True) for r in results for user in r.users if user in flow.index]
    for made in results:
        if made in flow.index:
            steps += [(made, flow.root(source), False) for source in made.all_input_nodes]
    return steps


def _says(node: Node, value: Node, forwards: bool, rank: int) -> int | None:
    name = operation_name(node)
    if name not in _CHANNEL_SECOND and name not in _CHANNEL_LAST:
        return None
    fed = bool(node.args) and (node.args[0] is value or not forwards or value in node.all_input_nodes[:1])
    if not fed:
        return None
    return 1 if name in _CHANNEL_SECOND else rank - 1


def _through(node: Node, dims: tuple[int, ...], forwards: bool) -> tuple[int, ...] | None:
    name = operation_name(node)
    if name in _KEEPS_DIMENSIONS:
        return dims
    order = _permutation(node, len(dims))
    if order is None:
        return None
    if forwards:
        return tuple(dims[i] for i in order)
    inverse = [0] * len(dims)
    for new, old in enumerate(order):
        inverse[old] = dims[new]
    return tuple(inverse)


def _permutation(node: Node, rank: int) -> list[int] | None:
    name = operation_name(node)
    if name == "permute":
        axes = node.args[1]
        assert isinstance(axes, (list, tuple))
        return [int(str(axis)) % rank for axis in axes]
    if name == "transpose":
        a, b = (int(str(node.args[i])) % rank for i in (1, 2))
        order = list(range(rank))
        order[a], order[b] = b, a
        return order
    return None


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.ndim if is_tensor(node) and isinstance(value, Tensor) else 0
