"""What is timed: networks with exits, samples, records of just these samples, smaller models to race with.

fashion   ResNet-56 at 28x28 with trained exits: the artifact that ``bench/fashion_mnist artifact`` wrote
resnet50  timm's at 224x224; weights and images are random, as neither can be had everywhere: its
          configurations are made by sharing samples out among exits, and its answers mean nothing
text      the first exits of a 6-layer MiniLM fine-tuned on e-mails (``bench/text``), 128 tokens
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import offramp
from bench.fashion_mnist.fashion import load_fashion
from bench.fashion_mnist.resnet import load_backbone
from bench.shared.artifacts import load, make
from bench.shared.backbones import in_batches
from bench.text.encoder import DEPTH, backbone_folder, load_classifier, load_data
from offramp import CostTable, ExitChoice, ExitConfig, ExitNetwork, ExitRecords, evaluate

NAMES = ("fashion", "resnet50", "text")
SHARED_EXITS = ("layer1.2", "layer2.3", "layer3.2", "layer3.5")
IMAGES = 128  # random ones, at 224x224
ORDER_SEED = 5


def _as_it_is(output: Any) -> Tensor:
    assert isinstance(output, Tensor)
    return output


@dataclass(frozen=True)
class Part:
    """One split: inputs of N samples, their labels, what every exit answers for them.

    Args:
        inputs: (N, ...) or a dict of such.
        labels: (N,) int64.
        records: of the same samples in the same order.
    """

    inputs: Tensor | Mapping[str, Tensor]
    labels: Tensor
    records: ExitRecords

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor | slice) -> Any:
        """Inputs of some samples, as the model takes them."""
        if isinstance(self.inputs, Tensor):
            return self.inputs[index]
        return {name: value[index] for name, value in self.inputs.items()}

    def picked(self, count: int) -> Part:
        """``count`` samples, or all there are, in an order that is always the same."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(ORDER_SEED))[:count]
        return Part(self.rows(order), self.labels[order], self.records.subset(order.numpy()))

    def batches(self, size: int) -> list[Any]:
        """All full batches."""
        whole = len(self) // size
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(whole)]


@dataclass(frozen=True)
class Case:
    """A network to time.

    Args:
        name: one of ``NAMES``.
        net: with exits.
        report: what is timed and reported on.
        search: what configurations are searched on; None where no answer means anything.
        members: smaller models of the family, by name.
        select: what a model returns to class scores (B, K).
    """

    name: str
    net: ExitNetwork
    report: Part
    search: Part | None = None
    members: Mapping[str, nn.Module] = field(default_factory=dict)
    select: Callable[[Any], Tensor] = _as_it_is

    @property
    def model(self) -> nn.Module:
        """The backbone."""
        return self.net.backbone


def spread(net: ExitNetwork, macs: CostTable, count: int = 4) -> list[tuple[int, int]]:
    """(position, head) of exits that split the backbone into about equal parts, the lightest head at each."""
    there = [p for p in range(1, len(net.positions)) if net.exists[p].any()]
    wanted = macs.full * np.arange(1, count + 1) / (count + 1)
    places = sorted({min(there, key=lambda p, goal=goal: abs(macs.backbone[p] - goal)) for goal in wanted})
    return [(p, lightest(net, macs, p)) for p in places]


def lightest(net: ExitNetwork, macs: CostTable, position: int) -> int:
    """The head at a position that costs least."""
    columns = np.flatnonzero(net.exists[position])
    return int(columns[macs.heads[position, columns].argmin()])


def shared_out(
    records: ExitRecords, costs: CostTable, exits: Sequence[tuple[int, int]], target: float
) -> ExitConfig:
    """The share that leaves at each exit, one for all, with which the cost is ``target``; by bisection.

    Args:
        records: of the samples to share out.
        costs: to reach the target by.
        exits: (position, head) in order.
        target: share of the full model's cost.
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        cost = evaluate(records, costs, _leaving(records, exits, share)).relative_cost
        low, high = (low, share) if cost < target else (share, high)
    return _leaving(records, exits, high)


def _leaving(records: ExitRecords, exits: Sequence[tuple[int, int]], share: float) -> ExitConfig:
    """Thresholds at which ``share`` of the samples that come to an exit leave there."""
    choices, here = [], np.arange(records.samples)
    for p, c in exits:
        values = np.sort(records.confidence[p, c, here])[::-1]
        going = min(round(share * len(here)), len(here) - 1)
        threshold = float(values[going]) if len(here) else 1.0
        choices.append(ExitChoice(records.positions[p], records.heads[c], threshold))
        here = here[records.confidence[p, c, here] <= np.float32(threshold)]
    return ExitConfig(tuple(choices))


# ---------------------------------------------------------------------------------------------- the cases


def load_case(name: str, arguments: argparse.Namespace) -> Case:
    """A case by name; the first time some train or record for minutes, and keep it in ``arguments.work``."""
    return {"fashion": _fashion, "resnet50": _resnet50, "text": _text}[name](arguments)


def _fashion(arguments: argparse.Namespace) -> Case:
    net, _, _, records = load(arguments.artifact, load_backbone(arguments.backbones, 56))
    data = load_fashion(arguments.data)
    search, report = Part(*data.held_out, records["search"]), Part(*data.test, records["report"])
    members = {f"ResNet-{depth}": load_backbone(arguments.backbones, depth) for depth in (8, 20, 32)}
    return Case("fashion", net=net, report=report, search=search, members=members)


def _resnet50(arguments: argparse.Namespace) -> Case:
    import timm

    torch.manual_seed(0)
    model, images = timm.create_model("resnet50", pretrained=False).eval(), _pictures(IMAGES)
    _settle(model, images[:32])
    net = offramp.attach_exits(model, images[:2], heads=("linear",), cuts=SHARED_EXITS)
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    kept = arguments.work / "resnet50.safetensors"
    if not kept.exists():
        offramp.record_outputs(net, in_batches((images, labels), 32), quality="agreement").save(kept)
    return Case("resnet50", net, Part(images, labels, ExitRecords.load(kept)))


def _pictures(count: int) -> Tensor:
    """Random images (N, 3, 224, 224); they differ in brightness, contrast and grain, so confidences do."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        side = 2 ** (i % 6) * 7
        grain = torch.randn(1, 3, side, side, generator=draw)
        contrast, shift = torch.rand(2, 1, 1, 1, 1, generator=draw).mul(2)
        found.append(torch.nn.functional.interpolate(grain, 224) * contrast + shift - 1)
    return torch.cat(found)


def _settle(model: nn.Module, images: Tensor) -> None:
    """Statistics of batch norms from images: with those of a fresh network, values explode on the way."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
        module.train()
    with torch.no_grad():
        model(images)
    model.eval()


def _text(arguments: argparse.Namespace) -> Case:
    data, model = load_data(arguments.text_data, "spam"), load_classifier(arguments.text_backbones, "spam")
    folder = arguments.work / "text"
    if not folder.exists():  # exits after each layer but the last
        net = offramp.attach_exits(model, data["train"].rows(slice(2)).inputs)
        batches = {name: part.batches() for name, part in data.items()}
        make(folder, net, batches.pop("train"), batches, offramp.TrainConfig(epochs=20))
    net, _, _, records = load(folder, model)
    search, report = (
        Part(data[name].inputs, data[name].labels, records[name]) for name in ("search", "report")
    )
    there = [d for d in range(1, DEPTH) if backbone_folder(arguments.text_backbones, "spam", d).exists()]
    members = {f"{d} layers": load_classifier(arguments.text_backbones, "spam", d) for d in there}
    select = attrgetter("logits")
    return Case("text", net=net, report=report, search=search, members=members, select=select)
