"""Multiply-accumulate counts, on the meta device: shapes only, nothing is computed.

torch's own counter, two floating-point operations per multiply-accumulate, misses fused attention on the CPU
device, not on this one. Operations other than matrix products and convolutions (normalisation, activations,
pooling) count as nothing, as in the published figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import PartitionError
from offramp.graph.dataflow import Flow
from offramp.graph.dynamic_quant import FLOPS
from offramp.graph.modes import eval_mode
from offramp.graph.spans import Border, SpanBuilder

T = TypeVar("T")


def count_macs(call: Callable[[], T]) -> tuple[int, T]:
    """Run ``call`` on meta tensors; returns (MACs, its result)."""
    counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
    with torch.no_grad(), counter:
        result = call()
    return counter.get_total_flops() // 2, result


def count_module(module: nn.Module, *inputs: torch.Tensor) -> object:
    """Run a module on meta tensors without touching its weights, in eval mode."""
    tensors = (*module.named_parameters(), *module.named_buffers())  # state_dict lacks non-persistent buffers
    shapes = {name: value.to("meta") for name, value in tensors}
    with eval_mode(module):
        return torch.func.functional_call(module, shapes, inputs)


def span_macs(flow: Flow, borders: Sequence[Border], length: int | None = None) -> list[int]:
    """Multiply-accumulate operations per sample between neighbouring borders, counted on the meta device.

    ``length`` is that of texts, None the example's.
    """
    values = tuple(torch.empty_like(value[:1], device="meta") for value in flow.trace.example)
    if length is not None and flow.trace.spec.lengths is not None:
        values = tuple(
            value.new_empty((1, length, *value.shape[2:])) if i in flow.trace.spec.lengths.inputs else value
            for i, value in enumerate(values)
        )
    counts = []
    for start, stop in pairwise(borders):
        span = SpanBuilder(flow, start, device="meta").build(stop)
        try:
            count, values = count_macs(lambda: span.on_meta(*values))  # noqa: B023 (called at once)
        except (NotImplementedError, RuntimeError) as error:
            raise PartitionError(
                f"cannot count the operations of {type(flow.trace.model).__name__}: {error}\n"
                "  try: avoid shapes that depend on values (nonzero, masks as indices)"
            ) from error
        counts.append(count)
    return counts
