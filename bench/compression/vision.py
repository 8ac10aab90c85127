"""The benchmark's backbone of linear layers: a small vision transformer for 28x28 grey images.

    16 windows of 10x10 pixels ── linear layer: tokens ── blocks ── mean, linear layer

All of its weights are in ``nn.Linear``, the layers that dynamic quantisation replaces, but for a few vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
WINDOW, STRIDE, TOKENS = 10, 6, 16


class Block(nn.Module):
    """Self-attention, then two linear layers, each on normalised tokens and added; (B, L, C) to (B, L, C).

    Args:
        width: C.
        heads: of the attention; divides C.
        hidden: width between the two linear layers.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sums."""
        x = x + self.join(self._attention(self.norm1(x)))
        return x + self.narrow(F.relu(self.widen(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        length, width = x.shape[1:]
        parts = self.attend(x).view(-1, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, C / heads)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, length, width)


class Transformer(nn.Module):
    """A transformer for (B, 1, 28, 28) images.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of each attention.
    """

    def __init__(self, width: int = 256, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(WINDOW**2, width)
        self.place = nn.Parameter(torch.zeros(1, TOKENS, width))
        nn.init.trunc_normal_(self.place, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to class scores (B, 10)."""
        windows = F.unfold(x, WINDOW, stride=STRIDE).transpose(1, 2)  # (B, 16, 100)
        x = self.embed(windows) + self.place
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.linear(self.norm(x).mean(1))
        return out
