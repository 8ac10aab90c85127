"""Exits for ResNet-56 on Fashion-MNIST: trained, then recorded on images that nothing was trained on.

Heads train on the 55,000 images that the backbone was trained on, configurations are searched for on the
5,000 images held out, and reported on the 10,000 test images. One network has all the heads that are
compared: the default ones, the paper's pooled ones ("pooled3x500"), at the input small heads and ResNet-8.

    python bench/fashion_mnist exits --backbones DIR --out DIR --seeds 3

writes OUT/SEED/search and OUT/SEED/report; a killed run goes on from OUT/SEED/work.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from torch import Tensor, nn

import offramp
from bench.fashion_mnist.fashion import Fashion, load_fashion
from bench.fashion_mnist.resnet import load_backbone
from bench.search.recordsets import store
from bench.shared import command
from bench.shared.backbones import Labelled, in_batches
from offramp import register_head
from offramp.heads.base import Head
from offramp.heads.features import FeatureSpec

PAPER = "pooled3x500"
INPUT_KINDS = ("convnet", "convnet-large")
EARLY = 4  # cuts that are all used; after them every second
SMALLER = "resnet8"
BATCH = 256


@register_head(PAPER)
class PooledHead(Head):
    """The paper's kind of head (arXiv 2403.01695): global average pool, three linear layers, 500 wide."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature, grid=1)
        width = 500
        self.layers = nn.Sequential(
            nn.Linear(feature.channels, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, outputs),
        )

    def predict(self, z: Tensor) -> Tensor:
        """(B, C) to (B, K)."""
        out: Tensor = self.layers(z)
        return out


def plain(data: Labelled) -> list[Labelled]:
    """Batches in fixed order."""
    return in_batches(data, BATCH)


def places(model: nn.Module, example: Tensor) -> list[str]:
    """The cuts that exits sit at: the first four blocks and every second one from there."""
    cuts = [cut.name for cut in offramp.partition(model, example).cuts]
    return cuts[:EARLY] + cuts[EARLY + 1 :: 2]


def training(
    data: Fashion, images: int | None, epochs: int, seed: int, batch: int = BATCH
) -> tuple[list[Labelled], offramp.TrainConfig]:
    """What heads are trained with: (the first of) the images of the backbone, and the settings."""
    learn = in_batches((data.train[0][:images], data.train[1][:images]), batch)
    return learn, offramp.TrainConfig(
        epochs=epochs, seed=seed, distillation=0.7, temperature=2.0, cache_dtype="float16"
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Options of scripts that train heads on Fashion-MNIST."""
    command.add_fashion(parser)
    parser.add_argument("--images", type=int, help="train heads on so many images only")
    parser.add_argument("--epochs", type=int, default=8, help="of the heads")
    command.add_threads(parser)


def attach(backbones: Path, data: Fashion, seed: int) -> offramp.ExitNetwork:
    """ResNet-56 with every head that is compared."""
    model, small = (load_backbone(backbones, depth) for depth in (56, 8))
    example = data.test[0][:2]
    chosen = offramp.attach_exits(model, example, heads="auto", cuts=places(model, example))
    kinds = {
        name: [chosen.head_names[c] for c in chosen.exists[p].nonzero()[0]]
        for p, name in enumerate(chosen.positions)
        if p
    }
    wanted = {name: tuple(dict.fromkeys((*here, "linear", PAPER))) for name, here in kinds.items()}
    at_input: dict[str, nn.Module | str] = {f"input-{kind}": kind for kind in INPUT_KINDS}
    return offramp.attach_exits(
        model, example, heads=wanted, cuts=list(wanted), input_exits={**at_input, SMALLER: small}, seed=seed
    )


def main() -> None:
    parser = command.parser(__doc__)
    add_training(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    arguments = parser.parse_args()
    data = load_fashion(arguments.data)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        run(data, arguments, seed)


def run(data: Fashion, arguments: argparse.Namespace, seed: int) -> None:
    start = time.perf_counter()
    folder = arguments.out / str(seed)
    net = attach(arguments.backbones, data, seed)
    learn, config = training(data, arguments.images, arguments.epochs, seed)
    report = offramp.train_exits(net, learn, config=config, work_dir=folder / "work")
    print(f"seed {seed}: heads trained, {time.perf_counter() - start:.0f} s", flush=True)
    costs = offramp.measure_cost(net)
    for name, part in (("search", data.held_out), ("report", data.test)):
        records = offramp.record_outputs(net, plain(part), keep_logits=True, work_dir=folder / "work")
        store(folder / name, records, costs)
        print(f"  {name}: full model {records.final_quality.mean():.4f}", flush=True)
    shutil.rmtree(folder / "work", ignore_errors=True)
    print(
        f"  on the heads' images {report.full_quality:.4f}; {time.perf_counter() - start:.0f} s", flush=True
    )
