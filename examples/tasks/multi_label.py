"""Multi-label: which of ten digits are in a picture of one to three handwritten digits?

    python examples/tasks/multi_label.py

scikit-learn's 1,797 scanned digits, one to three of them on a canvas, overlapping. The images are real; a
picture used to search or to report on holds no digit that a network was trained on. Needs ``offramp[demo]``.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import offramp

CANVAS, DIGITS = 16, 10


@dataclass(frozen=True)
class Result:
    """What the example ends with, to look at or to go on from."""

    net: offramp.ExitNetwork
    frontier: offramp.Frontier
    records: offramp.ExitRecords
    costs: offramp.CostTable
    inputs: Tensor
    labels: Tensor


def pictures(digits: Tensor, labels: Tensor, count: int, seed: int) -> TensorDataset:
    """``count`` canvases (N, 1, 16, 16) and which digits are on each (N, 10), drawn from (n, 8, 8) digits."""
    random = torch.Generator().manual_seed(seed)
    canvas, present = torch.zeros(count, 1, CANVAS, CANVAS), torch.zeros(count, DIGITS)
    for i in range(count):
        for _ in range(int(torch.randint(1, 4, (), generator=random))):
            one = int(torch.randint(len(digits), (), generator=random))
            row, column = torch.randint(CANVAS - 7, (2,), generator=random).tolist()
            spot = canvas[i, 0, row : row + 8, column : column + 8]
            torch.maximum(spot, digits[one], out=spot)
            present[i, labels[one]] = 1
    return TensorDataset(canvas, present)


def splits(train: int, held_out: int) -> dict[str, TensorDataset]:
    """Pictures for each use, made of disjoint digits."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float().view(-1, 8, 8) / 16, torch.from_numpy(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return {
        name: pictures(x[part], y[part], count, seed)
        for (name, count, seed), part in zip(
            [("train", train, 1), ("search", held_out, 2), ("report", held_out, 3)],
            order.split([997, 400, 400]),
            strict=True,
        )
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


class Finder(nn.Module):
    """Six residual blocks and a score for each digit."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        sizes = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(sizes)))
        self.scores = nn.Linear(4 * width, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 10)."""
        return self.scores(self.blocks(self.stem(x)).amax((2, 3)))


def trained(data: TensorDataset, epochs: int) -> nn.Module:
    """A backbone: what you would bring."""
    torch.manual_seed(0)
    model, batches = Finder(), DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for x, y in batches:
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def run(train: int = 5000, held_out: int = 3000, epochs: int = 8, head_epochs: int = 20) -> Result:
    """Train a backbone, put exits on it, search, and print what the report pictures say."""
    data = splits(train, held_out)
    model = trained(data["train"], epochs)
    loaders = {name: DataLoader(part, batch_size=256) for name, part in data.items()}

    net = offramp.attach_exits(model, data["train"][:2][0], task="multi-label")
    offramp.train_exits(net, loaders["train"], config=offramp.TrainConfig(epochs=head_epochs))
    costs = offramp.measure_cost(net)
    frontier = offramp.search(offramp.record_outputs(net, loaders["search"]), costs)
    records = offramp.record_outputs(net, loaders["report"])

    full = offramp.evaluate(records, costs, offramp.ExitConfig())
    print(f"full model: {full.quality:.2%} of the labels right, {full.cost / 1e6:.2f} M MACs")
    for drop in (0.0, 0.002, 0.005, 0.01, 0.02):
        outcome = offramp.evaluate(records, costs, frontier.at(max_drop=drop))
        print(
            f"at most {drop:.1%} less expected: {outcome.quality - full.quality:+.2%} at "
            f"{outcome.relative_cost:.0%} of the MACs"
        )
    return Result(net, frontier, records, costs, *data["report"].tensors)


if __name__ == "__main__":
    run()
