"""Exit networks. A head sees one feature tensor and says what the model would.

    reduce    feature -> what the head needs of it (pooling; no parameters, so training caches its result)
    predict   reduced feature -> outputs (B, K), or (B, L, K) where every token has an answer

A new head is a class or function ``(feature: FeatureSpec, outputs: int) -> nn.Module`` under
``register_head``; a module without ``reduce`` and ``predict`` is given the whole feature. It must not
change its input in place. One whose attribute ``uses_mask`` is true is given the mask of real tokens as well,
None where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.registry import Registry


@dataclass(frozen=True)
class FeatureSpec:
    """What a head will be given.

    Args:
        shape: of one sample, without the batch; in the layout's order.
        layout: "NC", "NCL", "NLC", "NCHW" or "NHWC".
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
        """Sizes of the other dimensions: (), (L,) or (H, W)."""
        channel = self.layout.index("C") - 1
        return tuple(size for i, size in enumerate(self.shape) if i != channel)


HeadFactory = Callable[[FeatureSpec, int], nn.Module | None]
"""Makes a head for a feature and K outputs; None where this kind of head does not apply."""

_HEADS: Registry[HeadFactory] = Registry("head")
register_head = _HEADS.register


def head_factory(name: str) -> HeadFactory:
    """What makes heads of a kind.

    Raises:
        InputError: no head is registered under ``name``.
    """
    return _HEADS[name]


def ask(head: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """A head's outputs for a feature (B, ...), with the mask if it wants one."""
    out: Tensor = head(x, mask) if getattr(head, "uses_mask", False) else head(x)
    return out


def reduced(head: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What training keeps of a feature (B, ...): reduced where the head reduces, else the whole."""
    if not hasattr(head, "reduce"):
        return x
    z: Tensor = head.reduce(x, mask) if getattr(head, "uses_mask", False) else head.reduce(x)  # type: ignore[operator]
    return z


def pool(x: Tensor, layout: str, grid: int) -> Tensor:
    """Average a feature down to a coarse grid, channels first.

    Args:
        x: (B, ...).
        layout: how ``x`` is laid out.
        grid: cells along each side; a side that is smaller stays as it is.

    Returns:
        (B, C) for grid 1 or features without extent, (B, C, l) for sequences, (B, C, h, w) for images.
    """
    if layout == "NC":
        return x
    x = x.movedim(-1, 1) if layout in ("NLC", "NHWC") else x
    if grid == 1:
        return x.flatten(2).mean(2)
    sides = tuple(min(grid, size) for size in x.shape[2:])
    if sides == tuple(x.shape[2:]):
        return x
    if len(sides) == 1:
        return F.adaptive_avg_pool1d(x, sides[0])
    return F.adaptive_avg_pool2d(x, (sides[0], sides[1]))


class Head(nn.Module):
    """Base of the built-in heads: pool to a grid, then predict.

    Args:
        feature: what it will be given.
        grid: cells along each side of the pooled feature.
    """

    def __init__(self, feature: FeatureSpec, grid: int) -> None:
        super().__init__()
        self.layout, self.grid = feature.layout, grid
        self.cells = [min(grid, size) for size in feature.extent]

    @property
    def reduction(self) -> str:
        """Heads of one position with equal ``reduction`` share what training caches."""
        return f"grid{self.grid}"

    def reduce(self, x: Tensor) -> Tensor:
        """Feature (B, ...) to (B, C), (B, C, l) or (B, C, h, w). No parameters."""
        return pool(x, self.layout, self.grid)

    def predict(self, z: Tensor) -> Tensor:
        """Reduced feature to outputs (B, K)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Feature (B, ...) to outputs (B, K)."""
        return self.predict(self.reduce(x))


@register_head("linear")
class LinearHead(Head):
    """Global average pool, one linear map: the cheapest exit there is."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature, grid=1)
        self.out = nn.Linear(feature.channels, outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, C) to (B, K)."""
        out: Tensor = self.out(z)
        return out

    @torch.no_grad()
    def absorb_(self, mean: Tensor, std: Tensor) -> None:
        """Fold ``(z - mean) / std`` into the first linear map, so that running it costs nothing."""
        _absorb(self.out, mean, std)


@register_head("mlp")
class MLPHead(Head):
    """Average pool to a 4x4 grid, two linear maps: position matters, and costs little at that size."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature, grid=4)
        width = feature.channels
        for cells in self.cells:
            width *= cells
        hidden = max(32, min(256, width // 8))
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, C, h, w) to (B, K)."""
        out: Tensor = self.out(F.relu(self.hidden(z.flatten(1))))
        return out

    @torch.no_grad()
    def absorb_(self, mean: Tensor, std: Tensor) -> None:
        """Fold ``(z - mean) / std`` into the first linear map, so that running it costs nothing."""
        _absorb(self.hidden, mean, std)


@register_head("conv")
def conv_head(feature: FeatureSpec, outputs: int) -> nn.Module | None:
    """Depthwise-separable convolution on an 8x8 grid; only for features with an extent of at least 2."""
    if not feature.extent or min(feature.extent) < 2:
        return None
    return ConvHead(feature, outputs)


class ConvHead(Head):
    """Average pool to an 8x8 grid, depthwise 3x3 and pointwise convolution, global pool, linear map."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature, grid=8)
        convolution = nn.Conv1d if len(self.cells) == 1 else nn.Conv2d
        norm = nn.BatchNorm1d if len(self.cells) == 1 else nn.BatchNorm2d
        channels, width = feature.channels, max(32, min(128, feature.channels))
        self.local = convolution(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.mix = convolution(channels, width, 1, bias=False)
        self.norm = norm(width)
        self.out = nn.Linear(width, outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, C, h, w) to (B, K)."""
        z = F.relu(self.norm(self.mix(self.local(z))))
        out: Tensor = self.out(z.flatten(2).mean(2))
        return out


def _absorb(first: nn.Linear, mean: Tensor, std: Tensor) -> None:
    scaled = first.weight / std
    first.bias.sub_(scaled @ mean)
    first.weight.copy_(scaled)
