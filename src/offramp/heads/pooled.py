"""Heads on a pooled feature: linear, MLP and their kin."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.heads.base import Head, HeadFactory
from offramp.heads.features import FeatureSpec, channels_first, first, peak

GRIDS = {"2x2": 2, "4x4": 4}
POOLINGS = ("mean", "max", "meanmax", *GRIDS, "tokens")


class PooledHead(Head):
    """Pool, then one linear map, or two with a rectifier between.

    Args:
        feature: what it will be given.
        outputs: K.
        pooling: one of ``POOLINGS``.
        hidden: whether there are two maps.
    """

    def __init__(self, feature: FeatureSpec, outputs: int, pooling: str, hidden: bool) -> None:
        super().__init__(feature, GRIDS.get(pooling, 1))
        self.pooling = pooling
        width = feature.channels * {"meanmax": 2, "tokens": 3}.get(pooling, 1)
        for cells in self.cells:
            width *= cells
        inner = max(32, min(256, max(width // 8, feature.channels // 2)))
        self.hidden = nn.Linear(width, inner) if hidden else None
        self.out = nn.Linear(inner if hidden else width, outputs)

    @property
    def reduction(self) -> str:
        """Heads of one position with equal ``reduction`` share what training caches."""
        return super().reduction if self.pooling in ("mean", *GRIDS) else self.pooling

    def reduce(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature (B, ...) to what is pooled of it; tokens that are masked out change nothing."""
        if self.pooling == "max":
            return peak(x, self.layout, mask)
        mean = super().reduce(x, mask)
        if self.pooling == "meanmax":
            return torch.cat([mean, peak(x, self.layout, mask)], 1)
        if self.pooling == "tokens":
            start = first(channels_first(x, self.layout).movedim(1, -1), mask)
            return torch.cat([mean, peak(x, self.layout, mask), start], 1)
        return mean

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


def pooled(pooling: str, hidden: bool) -> HeadFactory:
    """A kind of pooled head; None for one answer per token, and where it is no different from another kind.

    "tokens" takes sequences only; a feature without an extent has nothing but its mean.
    """

    def make(feature: FeatureSpec, outputs: int) -> nn.Module | None:
        fits = {"mean": True, "tokens": len(feature.extent) == 1}.get(pooling, bool(feature.extent))
        return PooledHead(feature, outputs, pooling, hidden) if fits and not feature.per_token else None

    return make
