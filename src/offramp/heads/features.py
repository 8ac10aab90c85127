"""What a head is given, and how a feature is pooled: pure functions on tensors, no parameters.

B batch, C channels, L tokens or steps, H x W pixels, D frames. A mask (B, L) is True for real tokens; what
the others hold, NaN included, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FeatureSpec:
    """What a head will be given.

    Args:
        shape: of one sample, without the batch; in the layout's order.
        layout: "NC", "NCL", "NLC", "NCHW", "NHWC", "NCDHW" or "NDHWC".
        mask: whether a mask (B, L) of real tokens, True where one is, comes with a feature (B, L, C).
        per_token: whether an answer for every token is wanted, (B, L, K) instead of (B, K).
        inputs: whether it is the model's own input.
    """

    shape: tuple[int, ...]
    layout: str
    mask: bool = False
    per_token: bool = False
    inputs: bool = False

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.shape[self.layout.index("C") - 1]

    @property
    def extent(self) -> tuple[int, ...]:
        """Sizes of the other dimensions: (), (L,), (H, W) or (D, H, W)."""
        channel = self.layout.index("C") - 1
        return tuple(size for i, size in enumerate(self.shape) if i != channel)


def channels_first(x: Tensor, layout: str) -> Tensor:
    """(B, ..., C) or (B, C, ...) to (B, C, ...)."""
    return x.movedim(-1, 1) if layout.endswith("C") and layout != "NC" else x


def as_tokens(x: Tensor, layout: str, mask: Tensor | None = None) -> Tensor:
    """Any feature with an extent to (B, L, C), pixels row by row; masked tokens become zero."""
    x = x.flatten(1, -2) if layout.endswith("C") else x.flatten(2).movedim(1, -1)
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


def pool(x: Tensor, layout: str, grid: int, mask: Tensor | None = None) -> Tensor:
    """Average a feature down to a coarse grid, channels first.

    (B, ...) to (B, C) for grid 1 or features without extent, (B, C, l) for sequences, (B, C, h, w) for
    images, (B, C, d, h, w) for videos; a side smaller than the grid stays as it is. With a mask (B, L) for a
    feature (B, L, C), the real tokens, moved together, are what the grid divides.
    """
    if layout == "NC":
        return x
    if mask is not None:
        return pool_tokens(x, min(grid, x.shape[1]), mask)
    x = channels_first(x, layout)
    if grid == 1:
        return x.flatten(2).mean(2)
    return average_to(x, tuple(min(grid, size) for size in x.shape[2:]))


def average_to(x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(B, C, L), (B, C, H, W) or (B, C, D, H, W), averaged down to ``sides``; as it is where it has these."""
    if tuple(x.shape[2:]) == sides:
        return x
    if len(sides) == 1:
        return F.adaptive_avg_pool1d(x, sides[0])
    if len(sides) == 2:
        return F.adaptive_avg_pool2d(x, (sides[0], sides[1]))
    return F.adaptive_avg_pool3d(x, (sides[0], sides[1], sides[2]))


def pool_tokens(x: Tensor, cells: int, mask: Tensor) -> Tensor:
    """(B, L, C) to (B, C), or to (B, C, cells) as adaptive average pooling of the real tokens alone."""
    x, count = as_tokens(x, "NLC", mask), mask.sum(1)
    if cells == 1:
        return x.sum(1) / count.clamp(min=1)[:, None]
    rank = (mask.long().cumsum(1) - 1)[:, None]  # (B, 1, L)
    cell = torch.arange(cells, device=x.device)
    start = cell * count[:, None] // cells  # (B, cells)
    end = ((cell + 1) * count[:, None] + cells - 1) // cells
    inside = mask[:, None] & (rank >= start[..., None]) & (rank < end[..., None])  # (B, cells, L)
    share = inside.to(x.dtype) / inside.sum(2, keepdim=True).clamp(min=1)
    return x.movedim(-1, 1) @ share.movedim(1, -1)


def peak(x: Tensor, layout: str, mask: Tensor | None = None) -> Tensor:
    """Largest value of each channel, (B, ...) to (B, C); 0 where no token is real."""
    if layout == "NC":
        return x
    if mask is None:
        return channels_first(x, layout).flatten(2).amax(2)
    highest = x.masked_fill(~mask[..., None], float("-inf")).amax(1)
    return highest.masked_fill(~mask.any(1)[:, None], 0.0)


def first(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The first real token, (B, L, C) to (B, C); 0 where no token is real."""
    if mask is None:
        return x[:, 0]
    at = mask.long().argmax(1)[:, None, None].expand(-1, 1, x.shape[2])
    return x.gather(1, at)[:, 0].masked_fill(~mask.any(1)[:, None], 0.0)
