"""Train the benchmark's backbones from nothing: ResNet-8, 20, 32 and 56 on 55,000 Fashion-MNIST images.

SGD with Nesterov momentum, one cycle of the learning rate, label smoothing, random shifts and flips, bf16
autocast. Every depth takes the same road, so that the smaller ones are fair rivals of the largest with exits.

    python bench/fashion_mnist/train_backbones.py --out DIR [--depth 56 ...] [--data DIR] [--limit STEPS]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from fashion import DEFAULT_FOLDER, Labelled, load_fashion
from resnet import DEPTHS, ResNet, weights_file
from safetensors.torch import save_file
from torch import Tensor, nn

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


def mini_batches(data: Labelled, epochs: int) -> Iterator[Labelled]:
    """Shuffled, augmented batches of every epoch; the rest that fills no batch is left out."""
    images, labels = data
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield augmented(images[rows]), labels[rows]


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
    start, last = time.perf_counter(), min(steps, limit or steps)
    for step, (images, labels) in enumerate(mini_batches(data, epochs), start=1):
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images)
        loss = F.cross_entropy(outputs.float(), labels, label_smoothing=0.05)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"step {step}: expected a finite loss, got {loss.item()}; try another --seed")
        loss.backward()
        optimiser.step()
        cycle.step()
        if step % 100 == 0 or step == last:
            seconds = time.perf_counter() - start
            print(f"ResNet-{depth}  step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
        if step == last:
            break
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Labelled) -> float:
    """Share of images whose class is right."""
    images, labels = data
    batches = zip(images.split(256), labels.split(256), strict=True)
    right = [int((model(x).argmax(1) == y).sum()) for x, y in batches]
    return sum(right) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depth", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--epochs", type=int, help="8 for ResNet-8 and 10 for the others, without it")
    parser.add_argument("--limit", type=int, help="stop after so many steps: a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_fashion(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for depth in arguments.depth:
        epochs = arguments.epochs or (8 if depth == 8 else 10)
        model = train(depth, data.train, epochs=epochs, seed=arguments.seed, limit=arguments.limit)
        path = weights_file(arguments.out, depth)
        save_file(model.state_dict(), path)
        print(f"ResNet-{depth}  {accuracy(model, data.held_out):.4f} on held-out images, wrote {path}")


if __name__ == "__main__":
    main()
