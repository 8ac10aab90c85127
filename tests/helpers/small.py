"""Small models, data and heads for the tests of training, recording and artifacts. Milliseconds to attach."""

from __future__ import annotations

import math

import torch
from torch import nn

import offramp
from offramp.heads.features import FeatureSpec
from offramp.heads.registry import register_head

HEADS = ("linear", "mlp", "conv")
"""Every kind these models were made for; "auto" takes fewer."""


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


class Picture(nn.Module):
    """(B, 1, 8, 8) to (B, 3); positions input, blocks.0, blocks.1."""

    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.top = nn.Linear(width, 3)

    def forward(self, x):
        return self.top(self.blocks(self.stem(x)).mean((2, 3)))


class Vector(nn.Module):
    """(B, 6) to (B, 3); positions input, a, b."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.inside(x))


class Tokens(nn.Module):
    """Keywords ids (B, 5) and mask (B, 5), both integers, to {"logits": (B, 3)}."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Mixer() for _ in range(2))
        self.top = nn.Linear(8, 3)

    def forward(self, ids, mask):
        weight = mask.to(torch.float32).unsqueeze(-1)
        x = self.embed(ids) * weight
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.top((x * weight).sum(1))}


@register_head("small-plain")
class PlainHead(nn.Module):
    """Neither ``reduce`` nor ``predict``: it is given the whole feature. Dropout and a batch norm inside."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__()
        first = nn.Linear(math.prod(feature.shape), 5)
        self.out = nn.Sequential(first, nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, outputs))

    def forward(self, x):
        return self.out(x.flatten(1))


@register_head("small-own")
class OwnHead(nn.Module):
    """``reduce`` and ``predict`` without ``reduction``."""

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(feature.shape[0], outputs)
        self.unused = nn.Linear(1, 1)  # never gets a gradient

    def reduce(self, x):
        return x.flatten(2).amax(2) if x.ndim > 2 else x

    def predict(self, z):
        return self.out(z)

    def forward(self, x):
        return self.predict(self.reduce(x))


def model(kind=Picture, seed=0, **options):
    """A trained-looking model: seeded weights, batch norms with statistics, eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = kind(**options)
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.8, 1.2)
    return made.eval()


def inputs(kind=Picture, count=96, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if kind is Tokens:
        ids = torch.randint(0, 20, (count, 5), generator=generator)
        mask = torch.randint(0, 2, (count, 5), generator=generator)
        mask[:, 0] = 1
        return {"ids": ids, "mask": mask}
    shape = (1, 8, 8) if kind is Picture else (6,)
    return torch.randn(count, *shape, generator=generator)


def labels(count=96, seed=2):
    return torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(seed))


def batches(x, y=None, size=32):
    """A loader: a list of batches, the last one smaller."""
    if isinstance(x, dict):
        parts = [
            dict(zip(x, each, strict=True)) for each in zip(*(v.split(size) for v in x.values()), strict=True)
        ]
        return parts if y is None else list(zip(parts, y.split(size), strict=True))
    return list(x.split(size)) if y is None else list(zip(x.split(size), y.split(size), strict=True))


def loader(kind=Picture, count=96, seed=1, labelled=True, size=32):
    return batches(inputs(kind, count, seed), labels(count, seed + 1) if labelled else None, size)


def network(kind=Picture, seed=0, **options):
    return offramp.attach_exits(model(kind, seed), few(inputs(kind)), **{"heads": HEADS, **options})


def few(x, count=2):
    return {name: value[:count] for name, value in x.items()} if isinstance(x, dict) else x[:count]


def weights(net):
    """Bytes of every head."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
