"""Two backbones for Fashion-MNIST, and what compression makes of them.

    transformer   trained from nothing ── quantise_dynamic ──▶ int8 linear layers
    ResNet-56     of bench/fashion_mnist ── torch-pruning, half of the MACs ── fine-tuned ──▶ pruned

Trained weights are kept in a folder; what is there already is not trained again.

    python bench/compression backbones --out DIR --resnet DIR
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.compression.vision import Transformer
from bench.fashion_mnist.backbones import BATCH, mini_batches
from bench.fashion_mnist.fashion import load_fashion
from bench.fashion_mnist.resnet import Block, ResNet, load_backbone
from bench.shared import command
from bench.shared.backbones import Labelled, accuracy, fit, macs

DEPTH, KEPT = 56, 0.5  # of the residual network; share of its MACs that pruning keeps
TRAINING = {"transformer": (4, 1e-3, False), "pruned": (3, 1e-3, True)}
"""Epochs, highest learning rate, and whether images are moved."""
_ROUNDS = 50  # steps in which the pruner takes channels away, MACs looked at after each


def train(
    model: nn.Module, data: Labelled, *, epochs: int, peak: float, moved: bool, limit: int | None = None
) -> nn.Module:
    """Train with AdamW, one cycle of the learning rate, bf16 autocast.

    Args:
        model: trained in place.
        data: images and labels.
        epochs: passes over them.
        peak: highest learning rate.
        moved: whether images are shifted and flipped at random.
        limit: stop after so many steps.
    """
    total = epochs * (len(data[0]) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), peak, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=total, pct_start=0.2)
    last, drawn = min(total, limit or total), mini_batches(data, epochs, moved)
    return fit(model, drawn, optimiser, cycle, steps=last, name=type(model).__name__, clip=1.0)


def quantised(model: nn.Module) -> nn.Module:
    """A copy whose linear layers compute in 8 bits, with scales of the activations read off each batch."""
    with warnings.catch_warnings():
        # torch announces that all this will move to torchao; these layers are what Offramp reads
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, .* are deprecated", UserWarning)
        found: nn.Module = torch.ao.quantization.quantize_dynamic(
            deepcopy(model).eval(), {nn.Linear}, torch.qint8
        )
    return found


def pruned(model: ResNet, example: Tensor, kept: float = KEPT) -> ResNet:
    """A copy without the channels of least norm inside the blocks; the outputs of blocks keep their width.

    Args:
        model: a residual network; its shortcuts add the outputs of blocks, so those channels are left alone.
        example: (B, 1, 28, 28), to trace it with.
        kept: share of the MACs to come down to, counted with torch-pruning's channels taken away.

    Returns:
        The smaller network, not fine-tuned.
    """
    import torch_pruning

    small = deepcopy(model).eval()
    blocks = [module for module in small.modules() if isinstance(module, Block)]
    pruner = torch_pruning.pruner.BasePruner(
        small,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.98,
        max_pruning_ratio=0.9,
        iterative_steps=_ROUNDS,
        ignored_layers=[small.conv1, small.linear, *(block.conv2 for block in blocks)],
    )
    image = example.shape[1:]
    allowed = kept * macs(model, *image)
    for _ in range(_ROUNDS):
        if macs(small, *image) <= allowed:
            break
        pruner.step()
    return small


def resnet_like(state: Mapping[str, Tensor], depth: int = DEPTH) -> ResNet:
    """A residual network of stored weights, with as many channels inside each block as they have."""
    model = ResNet(depth)
    for name, block in model.named_modules():
        if isinstance(block, Block):
            inside, channels_in = state[f"{name}.conv1.weight"].shape[:2]
            channels = state[f"{name}.conv2.weight"].shape[0]
            block.conv1 = nn.Conv2d(channels_in, inside, 3, block.stride, padding=1, bias=False)
            block.bn1 = nn.BatchNorm2d(inside)
            block.conv2 = nn.Conv2d(inside, channels, 3, padding=1, bias=False)
    model.load_state_dict(dict(state))
    return model.eval()


def weights_file(folder: Path, name: str) -> Path:
    """Where the weights of "transformer" or "pruned" lie."""
    return folder / f"fashion_{name}.safetensors"


def load(name: str, folder: Path, resnet: Path) -> nn.Module:
    """One of the four networks that the benchmark compares.

    Args:
        name: "transformer", "transformer-int8", "resnet56" or "resnet56-pruned".
        folder: of the weights trained here.
        resnet: of the uncompressed ResNet-56.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    if name == "resnet56":
        return load_backbone(resnet, DEPTH)
    if name == "resnet56-pruned":
        return resnet_like(_stored(folder, "pruned"))
    model = Transformer()
    model.load_state_dict(_stored(folder, "transformer"))
    return quantised(model) if name == "transformer-int8" else model.eval()


def _stored(folder: Path, name: str) -> dict[str, Tensor]:
    path = weights_file(folder, name)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected trained weights, found no file; "
            f"run: python bench/compression backbones --out {folder} --resnet DIR --only {name}"
        )
    return load_file(path)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resnet", type=Path, required=True, help="folder of fashion_resnet56.safetensors")
    command.add_fashion(parser, backbones=False)
    parser.add_argument("--only", choices=tuple(TRAINING), nargs="+", default=list(TRAINING))
    parser.add_argument("--limit", type=int, help="stop after so many steps: a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    command.add_threads(parser, 1)
    arguments = parser.parse_args()
    data = load_fashion(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        path = weights_file(arguments.out, name)
        if path.exists():
            print(f"{name}: {path} is there already")
            continue
        torch.manual_seed(arguments.seed)
        example = data.train[0][:2]
        model = (
            Transformer()
            if name == "transformer"
            else pruned(load_backbone(arguments.resnet, DEPTH), example)
        )
        print(f"{name}: {macs(model, *example.shape[1:]) / 1e6:.1f} million MACs", flush=True)
        epochs, peak, moved = TRAINING[name]
        train(model, data.train, epochs=epochs, peak=peak, moved=moved, limit=arguments.limit)
        save_file(model.state_dict(), path)
        print(f"{name}: {accuracy(model, data.held_out):.4f} on held-out images, wrote {path}", flush=True)
