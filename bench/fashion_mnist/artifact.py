"""ResNet-56 on Fashion-MNIST as an artifact: the network that ``bench/runtime`` times.

Exits are the library's own choice (heads="auto"), after the first four blocks and every second one from
there, and small ones at the input. Heads train on the backbone's 55,000 images; the frontier is searched for,
in MACs, on the 5,000 held out. The artifact keeps the records of those and of the 10,000 test images
("search", "report"), so that configurations can be searched for again with another table of costs.

    python bench/fashion_mnist artifact --backbones DIR --out DIR

takes a quarter of an hour on one core and 4 GB of disk while it runs; a killed run goes on from OUT.work.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import offramp
from bench.fashion_mnist.exits import INPUT_KINDS, add_training, places, plain, training
from bench.fashion_mnist.fashion import Fashion, load_fashion
from bench.fashion_mnist.resnet import load_backbone
from bench.shared import command
from bench.shared.artifacts import make
from offramp import ExitRecords


def attach(backbones: Path, data: Fashion, seed: int) -> offramp.ExitNetwork:
    """ResNet-56 with the default heads."""
    model, example = load_backbone(backbones, 56), data.test[0][:2]
    return offramp.attach_exits(
        model,
        example,
        heads="auto",
        cuts=places(model, example),
        input_exits={f"input-{kind}": kind for kind in INPUT_KINDS},
        seed=seed,
    )


def build(arguments: argparse.Namespace) -> dict[str, ExitRecords]:
    """Train, record, search, save; returns the records."""
    data = load_fashion(arguments.data)
    net = attach(arguments.backbones, data, arguments.seed)
    print(f"{sum(1 for _ in net.exits())} exits at {len(net.positions)} positions", flush=True)
    work = arguments.out.with_name(arguments.out.name + ".work")
    learn, config = training(data, arguments.images, arguments.epochs, arguments.seed)
    parts = {"search": plain(data.held_out), "report": plain(data.test)}
    records = make(arguments.out, net, learn, parts, config, work=work, workers=arguments.threads)
    shutil.rmtree(work, ignore_errors=True)
    return records


def main() -> None:
    parser = command.parser(__doc__)
    add_training(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the artifact")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    records = build(arguments)
    for name, each in records.items():
        print(f"{name}: full model {each.final_quality.mean():.4f} on {each.samples} images")
    print(f"{time.perf_counter() - start:.0f} s")
