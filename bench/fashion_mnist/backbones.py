"""Train the benchmark's backbones from nothing: ResNet-8, 20, 32 and 56 on 55,000 Fashion-MNIST images.

SGD with Nesterov momentum, one cycle of the learning rate, label smoothing, random shifts and flips, bf16
autocast. Every depth is trained with the same recipe, so that the smaller ones are fair rivals of the
largest with exits.

    python bench/fashion_mnist backbones --out DIR [--depth 56 ...] [--data DIR] [--limit STEPS]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.fashion_mnist.fashion import load_fashion
from bench.fashion_mnist.resnet import DEPTHS, ResNet, weights_file
from bench.shared import command
from bench.shared.backbones import Labelled, accuracy, fit

BATCH, PEAK, SHIFT = 128, 0.15, 3


def augmented(images: Tensor) -> Tensor:
    """Each image (B, 1, 28, 28) moved by up to 3 pixels each way and flipped half of the time.

    What moves in at the border is black, the background of every image.
    """
    count, side = len(images), images.shape[-1]
    canvas = F.pad(images, (SHIFT,) * 4, value=float(images.min()))
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1))
    columns = right + torch.arange(side)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    rows = down + torch.arange(side)
    which = torch.arange(count)[:, None, None]
    return canvas[which, 0, rows[:, :, None], columns[:, None, :]][:, None]


def mini_batches(data: Labelled, epochs: int, moved: bool = True) -> Iterator[Labelled]:
    """Shuffled batches of every epoch, shifted and flipped or not; a last incomplete batch is left out."""
    images, labels = data
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield augmented(images[rows]) if moved else images[rows], labels[rows]


def train(depth: int, data: Labelled, *, epochs: int, seed: int, limit: int | None = None) -> nn.Module:
    """One network, trained from its random start.

    Args:
        depth: 6n + 2.
        data: images and labels to train on.
        epochs: passes over them.
        seed: of weights, order, shifts and flips.
        limit: stop after so many steps.
    """
    torch.manual_seed(seed)
    model = ResNet(depth).train()
    optimiser = torch.optim.SGD(model.parameters(), PEAK, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(data[0]) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, total_steps=steps)
    last = min(steps, limit or steps)
    return fit(model, mini_batches(data, epochs), optimiser, cycle, steps=last, name=f"ResNet-{depth}")


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depth", type=int, nargs="+", default=list(DEPTHS))
    command.add_fashion(parser, backbones=False)
    parser.add_argument("--epochs", type=int, help="8 for ResNet-8 and 10 for the others, without it")
    parser.add_argument("--limit", type=int, help="stop after so many steps: a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    command.add_threads(parser)
    arguments = parser.parse_args()
    data = load_fashion(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for depth in arguments.depth:
        epochs = arguments.epochs or (8 if depth == 8 else 10)
        model = train(depth, data.train, epochs=epochs, seed=arguments.seed, limit=arguments.limit)
        path = weights_file(arguments.out, depth)
        save_file(model.state_dict(), path)
        print(f"ResNet-{depth}  {accuracy(model, data.held_out):.4f} on held-out images, wrote {path}")
