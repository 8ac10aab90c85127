"""Heads on a pooled feature: linear, MLP and their kin."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.heads.base import Head
from offramp.heads.features import FeatureSpec, channels_first, first, peak

_GRIDS = {"mean": 1, "2x2": 2, "4x4": 4}
_PARTS = {"meanmax": 2, "tokens": 3}


class PooledHead(Head):
    """Pool ("mean", "max", "meanmax", "2x2", "4x4" or "tokens": mean, largest, first), then a linear map.

    With ``hidden`` two linear maps with a rectifier between.
    """

    def __init__(self, feature: FeatureSpec, outputs: int, pooling: str, hidden: bool) -> None:
        super().__init__(feature, _GRIDS.get(pooling, 1), "" if pooling in _GRIDS else pooling)
        self.pooling = pooling
        width = feature.channels * _PARTS.get(pooling, 1) * math.prod(self.cells)
        inner = max(32, min(256, max(width // 8, feature.channels // 2)))
        self.hidden = nn.Linear(width, inner) if hidden else None
        self.out = nn.Linear(inner if hidden else width, outputs)

    def reduce(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature (B, ...) to what is pooled of it; tokens that are masked out change nothing."""
        if self.pooling in _GRIDS:
            return super().reduce(x, mask)
        highest = peak(x, self.layout, mask)
        if self.pooling == "max":
            return highest
        parts = [super().reduce(x, mask), highest]
        if self.pooling == "tokens":
            parts.append(first(channels_first(x, self.layout).movedim(1, -1), mask))
        return torch.cat(parts, 1)

    def predict(self, z: Tensor) -> Tensor:
        """(B, F), (B, C, l) or (B, C, h, w) to (B, K)."""
        z = z.flatten(1)
        if self.hidden is not None:
            z = F.relu(self.hidden(z))
        out: Tensor = self.out(z)
        return out

    def extra_repr(self) -> str:
        """The pooling, so that heads that differ do not look alike."""
        return self.pooling

    @torch.no_grad()
    def absorb_(self, mean: Tensor, std: Tensor) -> None:
        """Fold ``(z - mean) / std``, z flat, into the first linear map, so that running it costs nothing."""
        linear = self.out if self.hidden is None else self.hidden
        scaled = linear.weight / std
        linear.bias.sub_(scaled @ mean)
        linear.weight.copy_(scaled)
