"""Heads that look at every token: of a sequence (B, L, C), or of an image, pixel by pixel.

attention      learned queries ask the tokens what to look at
local-global   a convolution over neighbours, beside what attention gathers from everywhere (after LGViT,
               arXiv 2308.00255)
per token      one answer for every token, from itself and, for "conv", its neighbours
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.heads.base import Head
from offramp.heads.features import FeatureSpec, as_tokens

QUERIES = 4


class AttentionPool(nn.Module):
    """Learned queries over tokens: as many weighted means of them as there are queries."""

    def __init__(self, channels: int, queries: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, queries, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, L, C) and mask (B, L) to (B, Q * C)."""
        x = self.norm(x)
        scores = self.query(x)
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min)
        # masked tokens are zero: where none is real, so are the means
        means: Tensor = scores.softmax(1).movedim(1, -1) @ x
        return means.flatten(1)


class TokenHead(Head):
    """Base of heads that are given every token of a feature with an extent; a mask is one more channel."""

    def __init__(self, feature: FeatureSpec) -> None:
        super().__init__(feature, reduction="tokens all")

    def reduce(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature (B, ...) to tokens (B, L, C), or (B, L, C + 1) with the mask."""
        mask = mask if self.uses_mask else None
        x = as_tokens(x, self.layout, mask)
        return x if mask is None else torch.cat([x, mask[..., None].to(x.dtype)], -1)

    def _parted(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        return (z[..., :-1], z[..., -1] > 0.5) if self.uses_mask else (z, None)


class AttentionHead(TokenHead):
    """Attention pool with four queries, batch norm, one linear map."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature)
        self.gather = AttentionPool(feature.channels, QUERIES)
        self.norm = nn.BatchNorm1d(QUERIES * feature.channels)
        self.out = nn.Linear(QUERIES * feature.channels, outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, L, C or C + 1) to (B, K)."""
        out: Tensor = self.out(self.norm(self.gather(*self._parted(z))))
        return out


class LocalGlobalHead(TokenHead):
    """Tokens narrowed, mixed with their neighbours and averaged; beside it attention; one linear map.

    Where the tokens are the pixels of an image, or one token and the patches of a square one, neighbours are
    those in the image.
    """

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature)
        channels, width = feature.channels, max(32, min(128, feature.channels // 2))
        self.sides, self.lead = _image(feature)
        convolution = nn.Conv2d if self.sides else nn.Conv1d
        self.narrow = nn.Linear(channels, width)
        self.local = convolution(width, width, 3, padding=1, groups=width)
        self.gather = AttentionPool(channels, 1)
        self.norm = nn.BatchNorm1d(width + channels)
        self.out = nn.Linear(width + channels, outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, L, C or C + 1) to (B, K)."""
        x, mask = self._parted(z)
        near = self.narrow(x[:, self.lead :])
        if mask is not None:
            near = near.masked_fill(~mask[..., None], 0.0)
        near = near.movedim(-1, 1)
        near = F.hardswish(self.local(near.unflatten(2, self.sides) if self.sides else near)).flatten(2)
        if mask is None:
            near = near.mean(2)
        else:
            near = near.masked_fill(~mask[:, None], 0.0).sum(2) / mask.sum(1).clamp(min=1)[:, None]
        out: Tensor = self.out(self.norm(torch.cat([near, self.gather(x, mask)], 1)))
        return out


def _image(feature: FeatureSpec) -> tuple[tuple[int, ...], int]:
    """Sides of the image that the tokens are patches of, () if of none; and how many tokens lead."""
    if len(feature.extent) == 2:
        return feature.extent, 0
    tokens = feature.extent[0]
    for lead in (0, 1):
        side = math.isqrt(tokens - lead)
        if side > 2 and side * side == tokens - lead and not feature.mask:
            return (side, side), lead
    return (), 0


class PerTokenHead(Head):
    """One answer for every token of a sequence, by one linear map, or two with ``hidden``.

    With ``local`` neighbours are mixed in first, by a depthwise convolution over three tokens.
    """

    def __init__(self, feature: FeatureSpec, outputs: int, local: bool, hidden: bool) -> None:
        super().__init__(feature, reduction="tokens all")
        channels, inner = feature.channels, max(32, min(256, feature.channels // 2))
        self.local = nn.Conv1d(channels, channels, 3, padding=1, groups=channels) if local else None
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, inner) if hidden else None
        self.out = nn.Linear(inner if hidden else channels, outputs)

    def reduce(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature to tokens (B, L, C), zero where masked out, as beyond the ends: the mask is not kept."""
        return as_tokens(x, self.layout, mask)

    def predict(self, z: Tensor) -> Tensor:
        """(B, L, C) to (B, L, K)."""
        if self.local is not None:
            z = z + self.local(z.movedim(-1, 1)).movedim(1, -1)
        z = self.norm(z)
        if self.hidden is not None:
            z = F.relu(self.hidden(z))
        out: Tensor = self.out(z)
        return out
