"""Linear layers in int8, quantised row by row as they run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CHUNK = 256  # rows at a time: what is between the steps stays in the cache; measured


class Int8Linear(nn.Module):
    """A linear layer with int8 weights. Every row of the input has a scale of its own.

    So a sample's answer does not depend on the others in its batch, as it does where one scale serves all.

    Args:
        weight: (K, N).
        bias: (K,), or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded, scale = _eight_bits(weight.float())
        offset = weight.new_zeros(len(weight)) if bias is None else bias
        self.register_buffer("weight", rounded.t().contiguous(), persistent=False)
        self.register_buffer("scale", scale[:, 0].contiguous(), persistent=False)
        self.register_buffer("bias", offset.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) to (..., K), of the type of ``x``."""
        rows = x.reshape(-1, x.shape[-1])
        if torch.compiler.is_compiling():
            found = torch.addcmul(self.bias, self._products(rows), self.scale).to(x.dtype)
        else:
            found = x.new_empty(len(rows), len(self.scale))
            pieces = zip(torch.split(rows, _CHUNK), torch.split(found, _CHUNK), strict=True)
            for some, place in pieces:
                torch.addcmul(self.bias, self._products(some), self.scale, out=place)
        return found.reshape(*x.shape[:-1], -1)

    def _products(self, rows: Tensor) -> Tensor:
        rounded, scale = _eight_bits(rows.float())
        return torch._int_mm(rounded, self.weight) * scale


def _eight_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, N) rounded to int8 and their scales (R, 1): the largest of each becomes 127."""
    scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (rows / scale).round().to(torch.int8), scale
