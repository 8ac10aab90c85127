"""The demo's data and model: scikit-learn's handwritten digits and a small residual network.

1,797 real images in three disjoint splits: train (backbone and heads), search (configurations), report
(figures). Each 8x8 digit is turned and placed at random on a 14x14 canvas: as they come they are so easy that
the first exit knows everything and there is nothing to dial. Needs the extra ``demo``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from offramp.data import threads_for
from offramp.errors import needs_extra

SPLITS = {"train": 797, "search": 500, "report": 500}
CANVAS = 14


_TRAINING_STEP = 3 * 64 * 5.1e6  # multiply-accumulates: forward and backward, of a batch


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; halves the resolution where it changes the number of channels."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        stride = 1 if channels_in == channels else 2
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Conv2d(channels_in, channels, 1, stride, bias=False) if stride == 2 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A residual network for (B, 1, 14, 14) images and 10 classes; a block costs about the same at any depth.

    It has three stages of ``depth`` blocks; ``width`` is the first's channels, doubled at each later one.
    """

    def __init__(self, depth: int = 2, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        sizes = [width, width, 2 * width, 4 * width]
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(ResidualBlock(sizes[s] if i == 0 else sizes[s + 1], sizes[s + 1]) for i in range(depth))
            )
            for s in range(3)
        )
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to class scores (B, 10)."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


@dataclass(frozen=True)
class Digits:
    """The three splits as they come: (images (N, 1, 8, 8) float32 in [0, 1], labels (N,) int64)."""

    train: tuple[Tensor, Tensor]
    search: tuple[Tensor, Tensor]
    report: tuple[Tensor, Tensor]


def load_digits(seed: int = 0) -> Digits:
    """Split scikit-learn's bundled digits; a ``MissingExtraError`` if it is not installed."""
    with needs_extra("demo", "the digits need scikit-learn; run"):
        from sklearn.datasets import load_digits as bundled
    images, labels = bundled(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = torch.split_with_sizes(order, list(SPLITS.values()))
    return Digits(*((x[part], y[part]) for part in parts))


def placed(images: Tensor) -> Tensor:
    """Each image of (B, 1, 8, 8) at random on a canvas (B, 1, 14, 14), by the global random state.

    It is turned by up to 23 degrees, scaled by up to 10 % and moved by up to 3 pixels each way.
    """
    count, border = len(images), (CANVAS - 8) // 2
    angle, scale = 0.8 * (torch.rand(count) - 0.5), 0.9 + 0.2 * torch.rand(count)
    move = 4 * border / CANVAS * (torch.rand(count, 2) - 0.5)  # in units of half the canvas
    cos, sin = scale * angle.cos(), angle.sin()
    rows = torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)
    canvas = F.pad(images, (border,) * 4)
    return F.grid_sample(
        canvas, F.affine_grid(rows, list(canvas.shape), align_corners=False), align_corners=False
    )


def augmented(data: tuple[Tensor, Tensor], views: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``views`` copies of every digit, each placed at random; the same ones for the same seed."""
    images, labels = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([placed(images) for _ in range(views)]), labels.repeat(views)


def batches(data: tuple[Tensor, Tensor], batch_size: int = 128) -> DataLoader[tuple[Tensor, ...]]:
    """A loader in fixed order."""
    return DataLoader(TensorDataset(*data), batch_size=batch_size)


def train_backbone(
    data: tuple[Tensor, Tensor],
    *,
    epochs: int = 50,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> DigitsResNet:
    """Train a digits network from nothing: SGD, warm-up and cosine, placed anew in every epoch.

    ``seed`` is of weights, order and places, and leaves the global random state alone; ``advance`` is told
    the number of epochs done.
    """
    images, labels = data
    steps = math.ceil(len(images) / 64)
    with threads_for(_TRAINING_STEP, "Training the backbone"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsResNet()
        optimiser = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=1e-3)
        for epoch in range(epochs):
            for step, rows in enumerate(torch.randperm(len(images)).chunk(steps)):
                done = (epoch + step / steps) / epochs
                for group in optimiser.param_groups:
                    group["lr"] = 0.05 * min(done / 0.15, 0.5 + 0.5 * math.cos(math.pi * done))
                optimiser.zero_grad()
                out = model(placed(images[rows]))
                F.cross_entropy(out, labels[rows], label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            if advance is not None:
                advance(epoch + 1)
    return model.eval()
