"""Multiply-accumulate counts, on the meta device: shapes only, nothing is computed.

torch's own counter is used; on the CPU device it misses fused attention, on the meta device it does not. It
counts two floating-point operations per multiply-accumulate. Operations other than matrix products and
convolutions (normalisation, activations, pooling) count as nothing, as in the published figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.modes import eval_mode
from offramp.packed import FLOPS

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
