"""Small seeded models made to be hard to cut, each with a function that draws a batch for it.

`TOYS[name]()` returns (model in eval mode, draw), and `draw(batch, seed=0)` inputs as the model takes them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from offramp import partition
from offramp.graph.partition import Partition

Draw = Callable[..., Any]
TOYS: dict[str, Callable[[], tuple[nn.Module, Draw]]] = {}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Draw:
    """Draws (batch, *shape) normal numbers."""

    def draw(batch: int, seed: int = 0) -> Tensor:
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    return draw


def toy(name: str, draw: Draw) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def file(kind: type[nn.Module]) -> type[nn.Module]:
        TOYS[name] = lambda: (seeded(kind), draw)
        return kind

    return file


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model with fixed weights and statistics that do something; global random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


class Residual(nn.Module):
    """A residual block that writes in place wherever it can."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return self.act(y)


@toy("residual", randn(3, 8, 8))
class ResidualNet(nn.Module):
    def __init__(self, blocks: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@toy("in-place", randn(3, 6, 6))
class InPlace(nn.Module):
    """Writes to its own input, and begins every block by writing to the feature it was handed."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            F.relu_(x)
            x[:, 0] *= 2
            return self.conv(x).add_(x)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = self.Block(), self.Block(), self.Block()
        self.out = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return self.out(self.third(self.second(self.first(x))).flatten(2).mean(2))


@toy("shared", randn(8))
class Shared(nn.Module):
    """One block called three times, and an output layer tied to the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(8, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.outward = nn.Linear(8, 8)
        self.outward.weight = self.inward.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.outward(x)


@toy("dict", lambda batch, seed=0: {"x": randn(6, 8)(batch, seed)})
class DictOutput(nn.Module):
    """Returns a nested structure with a number, a constant and None in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        batch = x.shape[0]
        for layer in self.layers:
            x = layer(x)
        pooled = x.mean(1)
        scores = self.head(pooled)
        return {"logits": scores, "extra": (pooled, [batch, None, 3]), "double": {"logits": 2 * scores}}


def tokens(batch: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (batch, 6), generator=random)
    mask = (torch.arange(6) < torch.randint(2, 7, (batch, 1), generator=random)).long()
    return {"mask": mask, "ids": ids}  # not the order of forward


class Attention(nn.Module):
    """Pre-norm self-attention with an additive mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.drop(self.out(y.transpose(1, 2).reshape(batch, length, width)))


@toy("masked", tokens)
class Masked(nn.Module):
    """Token ids with a mask that becomes additive once, before the blocks; positions from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.register_buffer("positions", torch.randn(1, 6, 8), persistent=False)
        self.layers = nn.ModuleList(Attention(8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        additive = (1 - mask[:, None, None, :].float()) * -1e4
        x = self.embed(ids) + self.positions
        for layer in self.layers:
            x = layer(x, additive)
        return self.head((x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))


@toy("two inputs", lambda batch, seed=0: (randn(8)(batch, seed), randn(1)(batch, seed + 1)))
class TwoInputs(nn.Module):
    """The second positional input is used again in every block and changed in place in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) * scale
            scale += 1
        return self.head(x)


@toy("constants", randn(8))
class Constants(nn.Module):
    """Constants of every kind: attribute, buffer, made in forward, and written in place before use."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.k = torch.linspace(0, 1, 8)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(8, dtype=x.dtype)
        decay = self.head.weight.abs().mean() * torch.ones(8, 8)  # free: computed again in each segment
        written = torch.zeros(8)
        written[2:] = 1
        for layer in self.layers:
            x = layer((x + ramp * self.k + self.shift) @ decay + written) / 16
        return self.head(x)


@toy("batch size", randn(4, 4))
class BatchSize(nn.Module):
    """Uses the batch size as a number, multiplied and divided, to make tensors and to view them."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 4)
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            flat = self.act(self.line(x.view(batch * 4, 4)))
            start = torch.zeros(batch, 1, 4).expand(batch, 4, 4)
            return flat.reshape(batch, 4, 4) + start + torch.full((batch, 1, 1), 0.1)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        half = (batch + 1) // 2
        for block in self.blocks:
            x = block(self.norm(x))
        return self.head(x.view(batch, 16)) + half


@toy("channels last", randn(8, 8, 3))
class ChannelsLast(nn.Module):
    """NHWC throughout; the convolution inside works on a permuted view."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.norm = nn.LayerNorm(6)
            self.mix = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.depth(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return x + F.gelu(self.mix(self.norm(y)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(3)))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((1, 2)))


@toy("sequence", randn(2, 16))
class Conv1d(nn.Module):
    """NCL features, weights under weight_norm."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.stem = norm(nn.Conv1d(2, 6, 3, padding=1))
        self.blocks = nn.ModuleList(
            nn.Sequential(norm(nn.Conv1d(6, 6, 3, padding=1)), nn.GroupNorm(2, 6), nn.SiLU())
            for _ in range(3)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.amax(2))


@toy("encoder", lambda batch, seed=0: (randn(5, 8)(batch, seed), tokens(batch, seed)["mask"][:, :5] == 0))
class Encoder(nn.Module):
    """torch's own encoder layers; their fused path is taken by eager calls only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=i > 0) for i in range(3)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.head(x[:, 0])


@toy("plain sequence", randn(1, 8, 8))
class Plain(nn.Sequential):
    """No blocks: leaves only."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip


@toy("features and classifier", randn(1, 8, 8))
class FeaturesAndClassifier(nn.Module):
    """One block only, as in VGG: cut at its leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 1)
        )
        self.classifier = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@toy("flat", randn(10))
class Flat(nn.Module):
    """An MLP: NC features; the output of the last block is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(10, 10), nn.ReLU()) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@toy("windows", randn(8, 8, 4))
class Windows(nn.Module):
    """Window attention in the way of Swin: inside a block the batch is (B * 4, ...)."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            y = self.norm(x).view(batch, 2, 4, 2, 4, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 4)
            y = self.inner(y - y.mean(1, keepdim=True))
            return x + y.view(batch, 2, 2, 4, 4, 4).permute(0, 1, 3, 2, 4, 5).reshape(batch, 8, 8, 4)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


@toy("branches", randn(8))
class Branches(nn.Module):
    """Two features alive in the middle, a dead branch, and parts that are put together again."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
            self.unused = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            left, right = x.chunk(2, dim=1)
            left = self.left(left)
            return torch.cat([left, self.right(right) * left], 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = self.Block()
        self.second, self.skip = self.Block(), self.Block()
        self.third = self.Block()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.third(self.second(x) + self.skip(x)))


@toy("filled", randn(8))
class Filled(nn.Module):
    """The feature is written into zeros, through a view, part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            out = torch.zeros(x.shape[0], 8)
            out[:, :4].copy_(x[:, :4])
            out[:, 4:] = layer(x)[:, 4:]
            x = layer(out)
        return self.head(x)


@toy("autocast", randn(3, 6, 6))
class Autocast(nn.Module):
    """Blocks under autocast, which the tracer keeps as graphs of their own; they write to their input."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                F.relu_(x)
                y = self.conv(x)
            with torch.enable_grad():
                return self.norm(y.float() + x)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@dataclass
class Answer:
    """An output class in the way of Hugging Face, registered with torch."""

    logits: Tensor
    hidden: Tensor


torch.export.register_dataclass(Answer)


@toy("dataclass", randn(8))
class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Answer:
        for layer in self.layers:
            x = layer(x)
        return Answer(self.head(x), x)


@toy("tables", randn(4, 8))
class Tables(nn.Module):
    """Attention that keeps a table made of its weights from the first call in eval mode on, as in LeViT."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.biases = nn.Parameter(torch.randn(4))
            self.register_buffer("index", torch.tensor([0, 1, 2, 3, 1, 0, 1, 2, 2, 1, 0, 1, 3, 2, 1, 0]))
            self.line = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.tables: dict[str, Tensor] = {}

        def train(self, mode: bool = True) -> Tables.Block:
            if mode:
                self.tables = {}
            return super().train(mode)

        def table(self, device: torch.device) -> Tensor:
            made = self.biases[self.index].view(4, 4).softmax(1)
            if self.training:
                return made
            return self.tables.setdefault(str(device), made)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(x.device) @ self.line(self.norm(x)).relu()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@toy("wrapped", randn(3, 8, 8))
class Wrapped(nn.Module):
    """Named blocks whose own parts are a list of units, inside a body that goes on after its last block."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    class Block(nn.Module):
        def __init__(self, unit: type[nn.Module]) -> None:
            super().__init__()
            self.layer = nn.Sequential(unit(), unit())
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + self.layer(x))

    class Body(nn.Module):
        def __init__(self, block: Callable[[], nn.Module]) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
            self.blocks = nn.Sequential(OrderedDict({f"block_{i}": block() for i in range(3)}))
            self.pool = nn.AdaptiveAvgPool2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.blocks(self.stem(x)))

    def __init__(self) -> None:
        super().__init__()
        self.body = self.Body(lambda: self.Block(self.Unit))
        self.mix = nn.Conv2d(6, 12, 4)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.body(x)).flatten(1))


TOYS["bfloat16"] = lambda: (seeded(ResidualNet).bfloat16(), randn(3, 8, 8, dtype=torch.bfloat16))
TOYS["float64"] = lambda: (seeded(ResidualNet).double(), randn(3, 8, 8, dtype=torch.float64))


def clone(inputs: Any) -> Any:
    """A copy of inputs, outputs or parameters, of any structure."""
    return _pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)


def answer(model: nn.Module, inputs: Any) -> Any:
    """What the model itself says, on a copy of the inputs, with the plain path of attention."""
    inputs = clone(inputs)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            if isinstance(inputs, dict):
                return model(**inputs)
            return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def identical(a: Any, b: Any) -> bool:
    """Same structure, and equal bit for bit."""
    left, structure = _pytree.tree_flatten(a)
    right, other = _pytree.tree_flatten(b)
    return structure == other and all(
        x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )


@cache
def cut(name: str) -> tuple[nn.Module, Draw, Partition]:
    """A toy cut automatically, once for all tests: (model, draw, partition)."""
    model, draw = TOYS[name]()
    return model, draw, partition(model, draw(2))


def state(model: nn.Module) -> dict[str, Any]:
    """All that must be left as found: parameters, buffers, flags, modes and hooks."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {
        "identities": {name: id(value) for name, value in tensors.items()},
        "values": clone({name: value.detach() for name, value in tensors.items()}),
        "flags": {name: (value.requires_grad, value.grad is None) for name, value in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [
            {kind: list(hooks) for kind, hooks in vars(module).items() if "hooks" in kind and hooks}
            for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }
