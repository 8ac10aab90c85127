"""A model of three answers, its tasks trained a little, and settings in which samples leave everywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import offramp
import small
from offramp import ExitChoice, ExitConfig
from offramp.network.multitask import attach_tasks, labels_of
from offramp.tasks.base import make_task

BORDER = 1e-5  # batch size moves the last bits of a confidence


class Shared(nn.Module):
    """(B, 1, 8, 8) to {"what": (B, 3), "where": (B, 2), "much": (B, 1)}; positions input, blocks.0 to .2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.Sequential(*(small.Block(6) for _ in range(4)))
        self.what, self.where, self.much = nn.Linear(6, 3), nn.Linear(24, 2), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.blocks(self.stem(x))
        pooled, grid = x.mean((2, 3)), nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return {"what": self.what(pooled), "where": self.where(grid), "much": self.much(pooled)}


class Guess(nn.Module):
    """A small model for one of the tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


TASKS = ("what", "where", "much")


def data(count: int = 150) -> TensorDataset:
    random = torch.Generator().manual_seed(1)
    what, where = (torch.randint(0, k, (count,), generator=random) for k in (3, 2))
    x = 0.7 * torch.randn(count, 1, 8, 8, generator=random) + (what - 1).view(-1, 1, 1, 1) * 0.5
    x[torch.arange(count), 0, :, 3 * where] += 0.7
    return TensorDataset(x, what, where, x.mean((1, 2, 3)))


class Setting:
    """Three tasks, trained a little, their records, and settings in which samples leave everywhere."""

    def __init__(self) -> None:
        self.data = data()
        self.x = self.data.tensors[0]
        loader = DataLoader(self.data, batch_size=50)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            guess = Guess()
        self.networks = attach_tasks(
            small.model(Shared),
            self.x[:2],
            {
                "what": {"heads": ("linear", "mlp"), "input_exits": {"guess": guess}},
                "where": {"heads": ("linear",), "input_exits": {"raw": "linear"}},
                "much": {"heads": ("linear",), "task": make_task("regression", scale=1.0)},
            },
        )
        train = offramp.TrainConfig(epochs=2)
        self.records, self.costs = {}, {}
        for i, (name, net) in enumerate(self.networks.items()):
            offramp.train_exits(net, labels_of(loader, i), config=train)
            self.records[name] = offramp.record_outputs(net, labels_of(loader, i))
            self.costs[name] = offramp.measure_cost(net)
        self.settings = [
            {},
            {"what": self.config("what", {"input": "guess", "blocks.1": "mlp"}, 0.5)},
            {name: self.config(name, {"blocks.0": "linear", "blocks.2": "linear"}, 0.5) for name in TASKS},
            {
                "what": self.config("what", {"input": "guess", "blocks.0": "mlp", "blocks.2": "linear"}, 0.7),
                "where": self.config("where", {"input": "raw", "blocks.1": "linear"}, 0.4),
                "much": self.config("much", {"blocks.0": "linear", "blocks.2": "linear"}, 0.6),
            },
        ]

    def config(self, task: str, exits: dict[str, str], share: float) -> ExitConfig:
        """Thresholds at a quantile of the confidences."""
        records, choices = self.records[task], []
        for position, head in exits.items():
            p, c = records.positions.index(position), records.heads.index(head)
            threshold = float(np.quantile(records.confidence[p, c], share))
            choices.append(ExitChoice(position, head, threshold))
        return ExitConfig(choices)

    def full(self, setting: dict[str, ExitConfig]) -> dict[str, ExitConfig]:
        return {name: setting.get(name, ExitConfig()) for name in TASKS}

    def clear(self, setting: dict[str, ExitConfig]) -> np.ndarray:
        """Samples whose confidences are clear of every threshold of every task."""
        clear = np.ones(len(self.x), bool)
        for name, config in setting.items():
            records = self.records[name]
            for choice in config.choices:
                p, c = records.positions.index(choice.position), records.heads.index(choice.head)
                clear &= np.abs(records.confidence[p, c] - np.float32(choice.threshold)) >= BORDER
        return clear


def close(a: Tensor, b: Tensor) -> None:
    # 1e-5: convolutions of other batch sizes sum in another order
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


class Text(small.Tokens):
    """Two answers of different depth of meaning, and a mask that must shrink with the feature."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 2)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        weight = attention_mask.to(torch.float32).unsqueeze(-1)
        x = self.embed(ids) * weight
        for layer in self.layers:
            x = layer(x)
        pooled = (x * weight).sum(1)
        return {"topic": self.top(pooled), "tone": self.second(pooled)}
