"""Records of the demo's network on handwritten digits, for several seeds: everything but the search.

Each seed draws other splits and trains another backbone, as the demo does. Records of the search split (what
the demo searches) and of the report split, each digit placed four times to lessen noise, with the outputs
(logits) of every exit. For every seed:

    OUT/digits/SEED/{search,report}          the exits: linear, mlp, conv after each block
    OUT/digits_input/SEED/{search,report}    the same, and a small network as an exit at the input

    python bench/search digits --out DIR [--seeds 10] [--epochs 50]
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offramp
from bench.search.recordsets import store, with_input_exit
from bench.shared import command
from bench.shared.backbones import macs as macs_of
from offramp.cli.demo import digit_splits
from offramp.cli.digits import CANVAS, Digits, augmented, batches, load_digits, placed, train_backbone
from offramp.tasks.confidence import max_probability

VIEWS = 4  # of each digit; sample n of N shows the same digit as n + N / 4: keep those together in splits


def small_network() -> nn.Module:
    """Three convolutions for (B, 1, 14, 14) images: about a twentieth of the demo's network."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train_small(data: tuple[Tensor, Tensor], *, epochs: int, seed: int) -> nn.Module:
    """Train the small network on a split, placed anew in every epoch: AdamW, one cycle."""
    images, labels = data
    steps = math.ceil(len(images) / 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_network()
        optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=epochs * steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).chunk(steps):
                optimiser.zero_grad()
                F.cross_entropy(model(placed(images[rows])), labels[rows], label_smoothing=0.05).backward()
                optimiser.step()
                cycle.step()
    return model.eval()


def network_with_exits(digits: Digits, seed: int, epochs: int) -> offramp.ExitNetwork:
    """The demo's backbone and trained heads, with its settings but for the cap on exits."""
    model = train_backbone(digits.train, epochs=epochs, seed=seed)
    splits = digit_splits(digits, seed)
    net = offramp.attach_exits(model, splits.example, heads=("linear", "mlp", "conv"))
    offramp.train_exits(net, splits.train)
    return net


def write_seed(out: Path, seed: int, epochs: int) -> str:
    """Both record sets of one seed; returns a line about them."""
    digits = load_digits(seed)
    net = network_with_exits(digits, seed, epochs)
    small = train_small(digits.train, epochs=3 * epochs, seed=seed)
    costs, said = offramp.measure_cost(net), []
    macs = macs_of(small, 1, CANVAS, CANVAS)
    for name, part, shift in (("search", digits.search, 2), ("report", digits.report, 3)):
        images, labels = augmented(part, VIEWS, seed + shift)  # shifts as in digit_splits
        records = offramp.record_outputs(net, batches((images, labels)), keep_logits=True)
        store(out / "digits" / str(seed) / name, records, costs)
        with torch.inference_mode():
            outputs = small(images)
        right = (outputs.argmax(1) == labels).float()
        confidence = max_probability(outputs).numpy()
        wider = with_input_exit(records, costs, confidence, right.numpy(), macs, logits=outputs.numpy())
        store(out / "digits_input" / str(seed) / name, *wider)
        said.append(f"{name}: full {records.final_quality.mean():.4f}, input exit {right.mean():.4f}")
    return f"seed {seed}  {'  '.join(said)}  input exit at {macs / costs.full:.3f} of the MACs"


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10, help="0 to this, without it")
    parser.add_argument("--epochs", type=int, default=50, help="of the backbone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    for seed in range(arguments.seeds):
        line = write_seed(arguments.out, seed, arguments.epochs)
        print(f"{line}  ({time.perf_counter() - start:.0f} s)", flush=True)
