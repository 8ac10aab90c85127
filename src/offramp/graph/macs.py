"""Multiply-accumulate counts, on the meta device: shapes only, nothing is computed.

torch's own counter, two floating-point operations per multiply-accumulate, misses fused attention on the CPU
device, not on this one. Operations other than matrix products and convolutions (normalisation, activations,
pooling) count as nothing, as in the published figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import PartitionError
from offramp.graph.dataflow import Flow, is_size, operation_name
from offramp.graph.dynamic_quant import FLOPS
from offramp.graph.modes import eval_mode
from offramp.graph.spans import Border, SpanBuilder

T = TypeVar("T")


class _OneRowEach(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a mask picks counts as one row per sample: on the meta device nobody knows how many it picks.

    Classifiers on an encoder and a decoder read the last token of each text so.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.index.Tensor:
            values, indices = args
            at = next((i for i, index in enumerate(indices) if index is not None), 0)
            mask = indices[at] if indices else None
            if mask is not None and mask.dtype == torch.bool and all(i is None for i in indices[at + 1 :]):
                shape = (*values.shape[:at], len(mask), *values.shape[at + mask.ndim :])
                return values.new_empty(shape)
        return func(*args, **(kwargs or {}))


def _sorted_by_sample(flow: Flow) -> bool:
    """Whether all that masks pick becomes (B, picked, ...) at once, before anything is computed of it."""
    return all(
        operation_name(user) in ("view", "reshape") and flow.batch_factor(user.meta["val"].shape[0]) == 1
        for node in flow.nodes
        if operation_name(node) == "index" and _is_unknown(flow, node.meta["val"].shape[0])
        for user in node.users
        if user in flow.index and not is_size(user)
    )


def _is_unknown(flow: Flow, size: object) -> bool:
    return isinstance(size, torch.SymInt) and flow.size_terms(size) is None


def count_macs(call: Callable[[], T], one_row_each: bool = False) -> tuple[int, T]:
    """Run ``call`` on meta tensors; returns (MACs, its result).

    With ``one_row_each`` what a mask picks counts as one row per sample, else it cannot be counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
    picking: AbstractContextManager[Any] = _OneRowEach() if one_row_each else nullcontext()  # type: ignore[no-untyped-call]
    with torch.no_grad(), counter, picking:
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
    counts, one_row_each = [], _sorted_by_sample(flow)
    for start, stop in pairwise(borders):
        span = SpanBuilder(flow, start, device="meta").build(stop)
        try:
            count, values = count_macs(lambda: span.on_meta(*values), one_row_each)  # noqa: B023 (called at once)
        except (NotImplementedError, RuntimeError) as error:
            raise PartitionError(
                f"cannot count the operations of {type(flow.trace.model).__name__}: {error}\n"
                "  try: avoid shapes that depend on values (nonzero, masks as indices)"
            ) from error
        counts.append(count)
    return counts
