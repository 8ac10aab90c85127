"""Heads that convolve: a feature on a grid, or a small network from there to the answer.

    conv        8x8 grid ── depthwise 3x3, pointwise ── 4x4 ── linear; for sequences too
    convnet     14x14 grid ── dense 3x3 convolutions, half the size, twice the width ── 7x7 ── linear
    separable   the same of depthwise-separable ones: no better at equal operations, slower to train and run

The last linear map sees where things are (a grid, not its mean) as long as that stays small: in so small a
network this is worth more than another convolution.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.heads.base import Head
from offramp.heads.features import FeatureSpec, average_to

_SIDE = 14  # of the grid a feature is pooled to: training keeps a quarter of 28x28
_INPUT_SIDE = 56  # of a model's input, which has few channels
_READOUT = 2**19  # MACs of the last linear map, at most


class ConvHead(Head):
    """Average pool to an 8x8 grid, depthwise 3x3 and pointwise convolution, a 4x4 grid, linear map.

    Of a sequence the same in one dimension, of a video in three, on a grid of 4x4x4.
    """

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature, grid=4 if len(feature.extent) == 3 else 8)
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(self.cells) - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(self.cells) - 1]
        channels, width = feature.channels, max(32, min(128, feature.channels))
        self.local = convolution(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.mix = convolution(channels, width, 1, bias=False)
        self.norm = norm(width)
        self.readout = _readout(self.cells, 4, width * outputs)
        self.out = nn.Linear(width * math.prod(self.readout), outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, C, l), (B, C, h, w) or (B, C, d, h, w) to (B, K)."""
        z = F.relu(self.norm(self.mix(self.local(z))))
        out: Tensor = self.out(average_to(z, self.readout).flatten(1))
        return out


class ConvNetHead(Head):
    """A small network for images: convolutions from the grid down to about 7x7, one linear map of that.

    ``separable`` takes depthwise 3x3 and pointwise convolutions, twice as wide, in place of dense 3x3 ones;
    ``deep`` adds one more convolution at the end, which doubles the cost.
    """

    def __init__(self, feature: FeatureSpec, outputs: int, separable: bool, deep: bool) -> None:
        super().__init__(feature, grid=_INPUT_SIDE if feature.inputs else _SIDE)
        block, channels, sides = _separable if separable else _dense, feature.channels, list(self.cells)
        width = max(32, min(64, channels)) * (2 if separable else 1)
        layers: list[nn.Module] = []
        while max(sides) > _SIDE + 2:  # CIFAR's 32 pixels end at 8
            layers += _dense(channels, width // 2, 2)  # few channels: a dense convolution is cheap
            channels, sides = width // 2, [(side + 1) // 2 for side in sides]
        layers += block(channels, width, 1)
        if max(sides) > 8:
            layers += block(width, 2 * width, 2)
            width, sides = 2 * width, [(side + 1) // 2 for side in sides]
        if deep:
            layers += block(width, width, 1)
        self.body = nn.Sequential(*layers)
        self.readout = _readout(sides, 8, width * outputs)
        self.out = nn.Linear(width * math.prod(self.readout), outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, C, h, w) to (B, K)."""
        out: Tensor = self.out(average_to(self.body(z), self.readout).flatten(1))
        return out


def _dense(channels: int, width: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


def _separable(channels: int, width: int, stride: int) -> list[nn.Module]:
    local = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [local, nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def _readout(sides: list[int], finest: int, each: int) -> tuple[int, ...]:
    """The finest grid, of ``each`` MACs a cell, that the last linear map can afford."""
    grids = [tuple(min(cells, side) for side in sides) for cells in (8, 4, 2, 1) if cells <= finest]
    return next((grid for grid in grids if math.prod(grid) * each <= _READOUT), grids[-1])
