"""A user's own project: one function for the trained model, one for the data.

Run from this folder:

    offramp build shop:model shop:data --out artifact
    offramp run artifact shop:model shop:data --max-drop 0.01

The task: tell whether a short series of daily sales rises, falls, peaks or dips. The numbers are made up, so
that the example needs nothing but offramp itself.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

KINDS = 4


def sales(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy series (N, 1, 32) and which of four shapes each one has."""
    random = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, KINDS, (count,), generator=random)
    t = torch.linspace(-1, 1, 32)
    shapes = torch.stack([t, -t, 1 - 2 * t**2, 2 * t**2 - 1])
    noise = torch.randn(count, 32, generator=random) * (0.2 + 1.8 * torch.rand(count, 1, generator=random))
    return (shapes[kind] + noise).unsqueeze(1), kind


class Block(nn.Module):
    """A residual block on sequences."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L) to (B, C, L)."""
        return torch.relu(x + self.norm(self.conv(x)))


class Trend(nn.Module):
    """Six residual blocks and a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(6)))
        self.classify = nn.Linear(width, KINDS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, L) to (B, 4)."""
        return self.classify(self.blocks(self.stem(x)).mean(2))


def model() -> nn.Module:
    """What a real project does here: build the network and load its weights. This one trains for seconds."""
    torch.manual_seed(0)
    network = Trend()
    x, y = sales(2000, seed=1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
    return network.eval()


def data() -> dict[str, DataLoader]:
    """Disjoint splits: exits train on one, configurations are searched on another, figures are of a third."""
    splits = {"train": (2000, 1), "search": (1000, 2), "report": (1000, 3)}
    return {
        name: DataLoader(TensorDataset(*sales(count, seed)), batch_size=100)
        for name, (count, seed) in splits.items()
    }
