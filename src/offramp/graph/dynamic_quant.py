"""Linear layers whose weights the tracer cannot see: those of ``torch.ao.quantization.quantize_dynamic``.

    model ──stand-ins──▶ trace: packed_linear(x, layer, outputs) ──span──▶ the model's own layer, called

While a model is traced each such layer is replaced by one that leaves an operation of ours in the graph;
whoever builds a function of the graph puts the layer itself in its place. The operation is never computed:
it has a shape and a count of multiply-accumulate operations, no more.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import Node

torch.library.define("offramp::packed_linear", "(Tensor x, int layer, int outputs) -> Tensor")


@torch.library.register_fake("offramp::packed_linear")  # type: ignore[untyped-decorator]
def _shape(x: Tensor, layer: int, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a dynamically quantised linear layer, with or without a ReLU."""
    dynamic = sys.modules.get("torch.ao.nn.quantized.dynamic")  # not imported: no model has such a layer
    return dynamic is not None and isinstance(module, dynamic.Linear)


def packed_layers(model: nn.Module) -> list[nn.Module]:
    """The packed layers of a model, each once; the operation names them by their index here."""
    return [module for module in model.modules() if is_packed(module)]


def layer_of(node: Node) -> int | None:
    """Index of the packed layer that an operation stands for; None for any other operation."""
    return int(node.args[1]) if node.target is torch.ops.offramp.packed_linear.default else None  # type: ignore[arg-type]


FLOPS = {torch.ops.offramp.packed_linear: lambda x, layer, outputs, **_: 2 * math.prod(x) * outputs}
"""Floating-point operations by the shape of the input, two per multiply-accumulate, as torch counts them."""


class _StandIn(nn.Module):
    def __init__(self, layer: nn.Module, index: int) -> None:
        super().__init__()
        self.index, self.outputs = index, int(layer.out_features)  # type: ignore[arg-type]
        self.training = layer.training

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.offramp.packed_linear(x, self.index, self.outputs)  # type: ignore[no-any-return]


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Packed layers replaced inside, the model's own layers back in their places afterwards."""
    stand_ins = {id(layer): _StandIn(layer, i) for i, layer in enumerate(packed_layers(model))}
    places = [
        (owner._modules, name, part)
        for owner in list(model.modules())
        for name, part in owner._modules.items()
        if id(part) in stand_ins
    ]
    try:
        for parts, name, layer in places:
            parts[name] = stand_ins[id(layer)]
        yield
    finally:
        for parts, name, layer in places:
            parts[name] = layer
