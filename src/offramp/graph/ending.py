"""The function that a traced model ends with: softmax, its logarithm or a sigmoid."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Node

_OTHER_NAMES = {
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "special_expit": "sigmoid",
}
_SHAPE_ONLY = {"unsqueeze", "squeeze", "view", "reshape", "flatten", "select", "slice", "alias", "contiguous"}


def last_activation(output: Any, wanted: Collection[str]) -> tuple[str | None, Any]:
    """Which of some functions of the last dimension made a value of a graph, and what it was made of.

    Behind a function of each number by itself (the sigmoid) there may be changes of shape, which are repeated
    for what was in front of it. (None, the value) where there is none.
    """
    shaped, last = list[Node](), output
    while isinstance(last, Node) and _name(last) in _SHAPE_ONLY:
        shaped.append(last)
        last = last.args[0]
    name = _name(last) if isinstance(last, Node) else ""
    if name not in wanted or (name == "sigmoid") < bool(shaped) or not _over_last(last, name):
        return None, output
    before = last.args[0]
    for each in reversed(shaped):
        with each.graph.inserting_before(each.graph.output_node()):
            copied = each.graph.node_copy(each)
        copied.replace_input_with(each.args[0], before)  # type: ignore[arg-type]
        before = copied
    return name, before


def _name(node: Node) -> str:
    """Of an operation that returns a new value; those that write to their argument end in an underscore."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    name = node.target._schema.name.split("::")[1].lstrip("_")
    return _OTHER_NAMES.get(name, name)


def _over_last(node: Node, name: str) -> bool:
    if name == "sigmoid":
        return True
    dimension, *rest = [*node.args[1:], *node.kwargs.values()]
    last = node.meta["val"].ndim - 1
    return dimension in (-1, last) and all(each in (None, False) for each in rest)  # no other type
