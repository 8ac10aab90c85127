"""Records of ResNet-56 with an exit of four kinds after every block, on images nothing was trained on.

Heads train on part of the 55,000 images the backbone was trained on; recorded are, in this order, the 5,000
held-out training images and the 10,000 test images. Two sets are written, outputs (logits) included:

    OUT/fashion          the exits
    OUT/fashion_input    the same, and ResNet-8 as an exit at the input

    python bench/fashion_mnist records --backbones DIR --out DIR [--images 20000]
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

import offramp
from bench.fashion_mnist.fashion import Fashion, load_fashion
from bench.fashion_mnist.resnet import load_backbone
from bench.search.recordsets import store, with_input_exit
from bench.shared import command
from bench.shared.backbones import Labelled, in_batches, macs
from offramp import register_head
from offramp.heads.base import Head
from offramp.heads.features import FeatureSpec
from offramp.tasks.confidence import max_probability

HEADS = ("linear", "grid", "mlp", "conv")
BATCH = 128


@register_head("grid")
class GridHead(Head):
    """Average pool to a 4x4 grid and one linear map: knows where things are, still cheap."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__(feature, grid=4)
        width = feature.channels
        for cells in self.cells:
            width *= cells
        self.out = nn.Linear(width, outputs)

    def predict(self, z: Tensor) -> Tensor:
        """(B, C, h, w) to (B, K)."""
        out: Tensor = self.out(z.flatten(1))
        return out

    @torch.no_grad()
    def absorb_(self, mean: Tensor, std: Tensor) -> None:
        """Fold ``(z - mean) / std`` into the linear map."""
        self.out.bias.sub_((self.out.weight / std) @ mean)
        self.out.weight.div_(std)


def pool(data: Fashion) -> Labelled:
    """What records are made of: held-out images, then test images; nothing was trained on either."""
    images, labels = zip(data.held_out, data.test, strict=True)
    return torch.cat(images), torch.cat(labels)


def training_part(data: Fashion, images: int, seed: int) -> Labelled:
    """A random part of the backbone's own training images, half of them flipped, for the heads."""
    draw = torch.Generator().manual_seed(seed)
    pick = torch.randperm(len(data.train[0]), generator=draw)[:images]
    flipped = (torch.rand(len(pick), generator=draw) < 0.5)[:, None, None, None]
    chosen = data.train[0][pick]
    return torch.where(flipped, chosen.flip(3), chosen), data.train[1][pick]


@torch.inference_mode()
def small_model(model: nn.Module, data: Labelled) -> tuple[Tensor, Tensor, int]:
    """A whole network as an exit at the input: outputs (N, K), quality (N,), MACs."""
    outputs = torch.cat([model(images) for images, _ in in_batches(data, BATCH)])
    return outputs, (outputs.argmax(1) == data[1]).float(), macs(model, 1, 28, 28)


def main() -> None:
    parser = command.parser(__doc__)
    command.add_fashion(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000, help="to train the heads on")
    parser.add_argument("--limit", type=int, help="record only so many samples")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder from which a killed run goes on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    data = load_fashion(arguments.data)
    model, small = (load_backbone(arguments.backbones, depth) for depth in (56, 8))
    net = offramp.attach_exits(model, data.test[0][:2], heads=HEADS, seed=arguments.seed)
    print(f"{len(net.positions) - 1} positions, heads {', '.join(HEADS)}", flush=True)
    config = offramp.TrainConfig(epochs=arguments.epochs, seed=arguments.seed)
    learn = in_batches(training_part(data, arguments.images, arguments.seed), BATCH)
    report = offramp.train_exits(net, learn, config=config, work_dir=arguments.work)
    print(f"heads trained, {time.perf_counter() - start:.0f} s", flush=True)
    recorded = tuple(part[: arguments.limit] for part in pool(data))
    records = offramp.record_outputs(
        net, in_batches(recorded, BATCH), keep_logits=True, work_dir=arguments.work
    )
    costs = offramp.measure_cost(net)
    store(arguments.out / "fashion", records, costs)
    outputs, quality, spent = small_model(small, recorded)
    confidence = max_probability(outputs).numpy()
    wider = with_input_exit(records, costs, confidence, quality.numpy(), spent, logits=outputs.numpy())
    store(arguments.out / "fashion_input", *wider)
    print(f"full model {records.final_quality.mean():.4f}, on the heads' images {report.full_quality:.4f}")
    print(f"input exit {quality.mean():.4f} at {spent / costs.full:.3f}; {time.perf_counter() - start:.0f} s")
