"""Two tasks, one backbone: read a two-digit number; which digit is the tens, which is the ones?

    python examples/two_tasks.py

scikit-learn's 1,797 scanned digits, two side by side, each turned and moved. One residual network answers
both. Each has exits and a dial of its own; one call answers both and computes what they share once.
Configurations are chosen on the search split, all figures printed are of the report split, and no digit is in
two splits. Needs ``offramp[demo]``; about a minute on one core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import offramp
from offramp import JointOutcome, MultiEngine, attach_tasks, evaluate_together, labels_of
from offramp.cli.digits import ResidualBlock, load_digits, placed

TASKS = ("tens", "ones")
DROPS = (0.0, 0.0025, 0.005, 0.01, 0.02)  # of quality, per task, as expected from the search split


class Reader(nn.Module):
    """(B, 1, 14, 28) to {"tens": (B, 10), "ones": (B, 10)}."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        sizes = (width, width, 2 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(sizes[s] if i == 0 else sizes[s + 1], sizes[s + 1]) for i in range(2))
            )
            for s in range(3)
        )
        self.tens, self.ones = nn.Linear(8 * width, 10), nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Both answers from the same feature: the mean of its left half and of its right."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        x = F.adaptive_avg_pool2d(x, (1, 2)).flatten(1)
        return {"tens": self.tens(x), "ones": self.ones(x)}


def numbers(digits: tuple[Tensor, Tensor], views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every digit ``views`` times in each place: pictures (N, 1, 14, 28), tens (N,), ones (N,)."""
    images, labels = digits
    left = torch.cat([torch.randperm(len(images)) for _ in range(views)])
    right = torch.cat([torch.randperm(len(images)) for _ in range(views)])
    pictures = torch.cat([placed(images[left]), placed(images[right])], 3)
    return pictures, labels[left], labels[right]


def train(digits: tuple[Tensor, Tensor], epochs: int) -> Reader:
    """Both tasks at once, pictures made anew in every epoch."""
    model = Reader()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for epoch in range(epochs):
        pictures, tens, ones = numbers(digits, 2)
        for step, rows in enumerate(torch.arange(len(pictures)).split(64)):
            done = (epoch + step * 64 / len(pictures)) / epochs
            for group in optimiser.param_groups:
                group["lr"] = 0.1 * min(done / 0.15, 0.5 + 0.5 * math.cos(math.pi * done))
            optimiser.zero_grad()
            out = model(pictures[rows])
            loss = F.cross_entropy(out["tens"], tens[rows]) + F.cross_entropy(out["ones"], ones[rows])
            loss.backward()
            optimiser.step()
    return model.eval()


@dataclass(frozen=True)
class Result:
    """What the example ends with, to look at or to go on from."""

    networks: dict[str, offramp.ExitNetwork]
    frontiers: dict[str, offramp.Frontier]
    records: dict[str, dict[str, offramp.ExitRecords]]
    costs: dict[str, offramp.CostTable]
    joint: dict[float, JointOutcome]
    executed: dict[str, Any]


def run(epochs: int = 24, head_epochs: int = 30, views: int = 4, seed: int = 0) -> Result:
    """Train, attach, search, and compare one call with two."""
    torch.manual_seed(seed)
    config = offramp.TrainConfig(epochs=head_epochs, seed=seed)
    digits = load_digits(seed)
    started = time.perf_counter()
    model = train(digits.train, epochs)
    say(f"trained the backbone in {time.perf_counter() - started:.0f} s")
    splits = {
        "train": loader(numbers(digits.train, views)),
        "search": loader(numbers(digits.search, views)),
        "report": loader(numbers(digits.report, 1)),  # one each: intervals want independent samples
    }
    example = next(iter(splits["train"]))[0][:2]
    networks = attach_tasks(model, example, {"tens": {}, "ones": {}})
    records: dict[str, dict[str, offramp.ExitRecords]] = {}
    costs, frontiers = {}, {}
    for i, (name, net) in enumerate(networks.items()):
        offramp.train_exits(net, labels_of(splits["train"], i), config=config)
        records[name] = {
            split: offramp.record_outputs(net, labels_of(splits[split], i)) for split in ("search", "report")
        }
        costs[name] = offramp.measure_cost(net)
        frontiers[name] = offramp.search(records[name]["search"], costs[name], max_exits=3)
    report = {name: each["report"] for name, each in records.items()}
    for name in TASKS:
        show_frontier(name, frontiers[name], report[name], costs[name])
    settings = {drop: {name: pick(frontiers[name], drop) for name in TASKS} for drop in DROPS}
    joint = {drop: evaluate_together(report, costs, configs) for drop, configs in settings.items()}
    show_joint(joint)
    executed = measure(networks, settings[0.005], splits["report"])
    return Result(networks, frontiers, records, costs, joint, executed)


def loader(data: tuple[Tensor, Tensor, Tensor]) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*data), batch_size=64)


def pick(frontier: offramp.Frontier, drop: float) -> offramp.ExitConfig:
    """By its figures on the search split."""
    best = frontier[-1].expected
    assert best is not None
    return frontier.at(max_drop=max(drop, best.full_quality - best.quality))


def measure(
    networks: Mapping[str, offramp.ExitNetwork],
    configs: Mapping[str, offramp.ExitConfig],
    batches: DataLoader[tuple[Tensor, ...]],
) -> dict[str, Any]:
    """One engine for both tasks against one for each, run on the same batches."""
    both = MultiEngine(networks, configs)
    apart = {name: offramp.Engine(net, configs[name]) for name, net in networks.items()}
    pictures = [batch[0] for batch in batches]
    together, separate, different = 0.0, 0.0, 0
    for round_ in range(4):  # the first warms up
        started = time.perf_counter()
        answers = [both(x) for x in pictures]
        between = time.perf_counter()
        alone = {name: [engine(x) for x in pictures] for name, engine in apart.items()}
        if round_ == 0:
            both.reset_stats()
            continue
        together, separate = together + between - started, separate + time.perf_counter() - between
        different += sum(
            int((out[name].position != one.position).sum())
            for name in TASKS
            for out, one in zip(answers, alone[name], strict=True)
        )
    stats = both.stats()
    found = {
        "macs": stats.macs / stats.full_macs,
        "separate_macs": stats.separate_macs / stats.full_macs,
        "seconds_share": together / separate,
        "different": different,
    }
    say(
        f"\nRun, not simulated, at 0.50 points: {found['macs']:.1%} of the full model's MACs in one call, "
        f"{found['separate_macs']:.1%} in two;\n{found['different']} answers left elsewhere; "
        f"{found['seconds_share']:.0%} of the time of two calls"
    )
    return found


def show_frontier(
    name: str, frontier: offramp.Frontier, records: offramp.ExitRecords, costs: offramp.CostTable
) -> None:
    full = offramp.evaluate(records, costs, offramp.ExitConfig())
    say(f"\n{name}: full model {full.quality:.1%} right; its dial, of {len(frontier)} configurations")
    for config in frontier[:: max(1, len(frontier) // 6)]:
        outcome = offramp.evaluate(records, costs, config)
        exits = ", ".join(choice.position for choice in config.choices) or "none"
        say(f"  {outcome.quality:6.1%} at {outcome.relative_cost:4.0%} of the MACs   exits: {exits}")


def show_joint(joint: Mapping[float, JointOutcome]) -> None:
    say("\nBoth tasks, the same configurations in two calls and in one, in MACs of the full model:")
    say("  points given up    tens right  ones right   two calls   one call   one / two")
    for drop, each in joint.items():
        tens, ones = (each.tasks[name].quality for name in TASKS)
        full = each.relative_cost / each.cost
        say(
            f"  {100 * drop:15.2f}    {tens:10.1%}  {ones:10.1%}   {each.separate_cost * full:9.1%}   "
            f"{each.relative_cost:8.1%}   {each.share:9.1%}"
        )


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=24, help="of training the backbone")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run(epochs=given.epochs, seed=given.seed)
