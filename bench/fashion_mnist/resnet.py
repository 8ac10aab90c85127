"""The benchmark's backbones: CIFAR-style residual networks of depth 6n + 2 for 28x28 grey images.

    stem 3x3, 16 channels ── n blocks of 16 ── n of 32, half the size ── n of 64, half again ── pool, linear

Where the shape changes, the shortcut takes every second pixel and pads channels with zeros: no parameters.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

DEPTHS = (8, 20, 32, 56)
CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters; (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum, rectified."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.extra:
            return x
        side = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.extra - side))


class ResNet(nn.Module):
    """A residual network for (B, 1, 28, 28) images.

    Args:
        depth: 6n + 2 layers.

    Raises:
        ValueError: depth is not of that form.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth: expected 6n + 2 such as {DEPTHS}, got {depth}")
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to class scores (B, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Block(channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(channels_in, channels, stride), *rest)


def weights_file(folder: Path, depth: int) -> Path:
    """Where the weights of one depth lie."""
    return folder / f"fashion_resnet{depth}.safetensors"


def load_backbone(folder: Path, depth: int) -> ResNet:
    """A trained network in eval mode.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    path = weights_file(folder, depth)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected trained weights, found no file; "
            f"run: python bench/fashion_mnist backbones --out {folder} --depth {depth}"
        )
    model = ResNet(depth)
    model.load_state_dict(load_file(path))
    return model.eval()
