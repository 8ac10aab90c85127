"""Regression: by how many degrees is a handwritten digit turned?

    python examples/tasks/regression.py

scikit-learn's 1,797 scanned digits, each turned by up to 60 degrees either way and moved a little. A number
alone does not say how certain it is, so heads learn to say how far off they expect to be, too. Digits
searched or reported on are not those trained on. Needs ``offramp[demo]``.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import offramp
from offramp import Regression

LARGEST = 60.0  # degrees
WORTHLESS = 30.0  # an answer that far off has quality 0; one that is 3 degrees off has quality 0.9


@dataclass(frozen=True)
class Result:
    """What the example ends with, to look at or to go on from."""

    net: offramp.ExitNetwork
    frontier: offramp.Frontier
    records: offramp.ExitRecords
    costs: offramp.CostTable
    inputs: Tensor
    labels: Tensor


def turned(digits: Tensor, times: int, seed: int) -> TensorDataset:
    """Each digit (n, 1, 8, 8) several times, turned: pictures (N, 1, 16, 16) and degrees (N,)."""
    random = torch.Generator().manual_seed(seed)
    images = nn.functional.pad(digits.repeat(times, 1, 1, 1), (4, 4, 4, 4))
    degrees = LARGEST * (2 * torch.rand(len(images), generator=random) - 1)
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    right, down = 0.6 * torch.rand(2, len(images), generator=random) - 0.3  # of half the canvas
    turn = torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    return TensorDataset(nn.functional.grid_sample(images, grid, align_corners=False), degrees)


def splits(times: int) -> dict[str, TensorDataset]:
    """Turned digits for each use, made of disjoint ones."""
    images = torch.from_numpy(load_digits(return_X_y=True)[0]).float().view(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, search, report = (images[part] for part in order.split([997, 400, 400]))
    return {
        "train": turned(train, times, 1),
        "search": turned(search, times, 2),
        "report": turned(report, times, 3),
    }


class Block(nn.Module):
    """A residual block that may halve the picture."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wider, 3, 1 if wider == channels else 2, padding=1)
        self.second, self.norm = nn.Conv2d(wider, wider, 3, padding=1), nn.BatchNorm2d(wider)
        self.skip = nn.Identity() if wider == channels else nn.Conv2d(channels, wider, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same, or half the sides."""
        return torch.relu(self.skip(x) + self.norm(self.second(torch.relu(self.first(x)))))


class Compass(nn.Module):
    """Six residual blocks and one number."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        sizes = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(sizes)))
        self.degrees = nn.Linear(4 * width * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 1), in degrees."""
        return LARGEST * self.degrees(self.blocks(self.stem(x)).flatten(1))


def trained(data: TensorDataset, epochs: int) -> nn.Module:
    """A backbone: what you would bring. It says an angle and nothing about how certain it is."""
    torch.manual_seed(0)
    model, batches = Compass(), DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for x, y in batches:
            optimiser.zero_grad()
            (model(x).squeeze(1) - y).abs().mean().backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def run(times: int = 4, epochs: int = 8, head_epochs: int = 20) -> Result:
    """Train a backbone, put exits on it, search, and print what the report digits say."""
    data = splits(times)
    model = trained(data["train"], epochs)
    loaders = {name: DataLoader(part, batch_size=256) for name, part in data.items()}

    task = Regression.of(data["train"].tensors[1], scale=WORTHLESS)
    net = offramp.attach_exits(model, data["train"][:2][0], task=task)
    offramp.train_exits(net, loaders["train"], config=offramp.TrainConfig(epochs=head_epochs))
    costs = offramp.measure_cost(net)
    frontier = offramp.search(offramp.record_outputs(net, loaders["search"]), costs)
    records = offramp.record_outputs(net, loaders["report"])

    full = offramp.evaluate(records, costs, offramp.ExitConfig())
    print(f"full model: quality {full.quality:.3f}, {full.cost / 1e6:.2f} M MACs")
    engine = offramp.Engine(net)
    x, y = data["report"].tensors
    for drop in (0.0, 0.005, 0.01, 0.02, 0.05):
        engine.use(frontier.at(max_drop=drop))
        outcome = offramp.evaluate(records, costs, engine.config)
        error = (engine(x).outputs.squeeze(1) - y).abs().mean()
        print(
            f"at most {drop:.3f} less expected: {outcome.quality - full.quality:+.3f} at "
            f"{outcome.relative_cost:.0%} of the MACs, {error:.1f} degrees off on average"
        )
    return Result(net, frontier, records, costs, x, y)


if __name__ == "__main__":
    run()
