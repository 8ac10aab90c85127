"""Heads on features of videos, (B, C, D, H, W) and channels last, and exits in models of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.errors import PartitionError
from offramp.heads import FeatureSpec, default_heads, head_factory
from offramp.heads.features import pool

CLIP = torch.randn(4, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
KINDS = (
    "linear", "linear-max", "linear-meanmax", "linear-2x2", "mlp", "mlp-mean", "mlp-2x2", "conv", "attention",
)  # fmt: skip


class Video(nn.Module):
    """(B, 3, D, H, W) to (B, 4)."""

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        pairs = ((3, 6), (6, 6), (6, 6))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv3d(a, b, 3, 1, 1), nn.ReLU()) for a, b in pairs)
        self.mixers = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(2))
        self.top, self.channels_last = nn.Linear(6, 4), channels_last

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.channels_last:
            x = x.movedim(1, -1)
            for mixer in self.mixers:
                x = x + mixer(x)
            return self.top(x.mean((1, 2, 3)))  # type: ignore[no-any-return]
        return self.top(x.mean((2, 3, 4)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["NCDHW", "NDHWC"])
def test_every_kind_of_head(kind: str, layout: str) -> None:
    shape = (6, 4, 5, 7) if layout == "NCDHW" else (4, 5, 7, 6)
    spec = FeatureSpec(shape=shape, layout=layout)
    torch.manual_seed(0)
    head = head_factory(kind)(spec, 3)
    assert head is not None
    x = torch.randn(2, *shape)
    out = head.eval()(x)
    assert out.shape == (2, 3)
    assert head.reduce(x).numel() <= x.numel()
    assert torch.isfinite(out).all()


def test_heads_do_not_care_where_channels_are() -> None:
    x = torch.randn(2, 6, 4, 5, 7)
    for grid in (1, 2, 4):
        torch.testing.assert_close(pool(x, "NCDHW", grid), pool(x.movedim(1, -1), "NDHWC", grid))
    torch.testing.assert_close(pool(x, "NCDHW", 1), x.mean((2, 3, 4)))
    first = x[:, :, :2, :3, :4].mean((2, 3, 4))
    torch.testing.assert_close(pool(x, "NCDHW", 2)[:, :, 0, 0, 0], first)


def test_default_heads_of_videos() -> None:
    spec = FeatureSpec(shape=(64, 8, 14, 14), layout="NCDHW")
    assert default_heads(spec, 10, 10**9) == ("linear-meanmax", "mlp-2x2", "conv")
    assert default_heads(spec, 10, 10**3) == ("linear-meanmax",)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_video_model_end_to_end(channels_last: bool) -> None:
    model = Video(channels_last).eval()
    net = offramp.attach_exits(model, CLIP[:2], heads=("linear-meanmax", "conv"))
    layouts = {cut.name: cut.layout for cut in net.partition.cuts}
    assert layouts["blocks.0"] == "NCDHW"
    assert not channels_last or "NDHWC" in layouts.values()
    loader = [(CLIP, torch.arange(4))]
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=1, batch_size=4), progress=False)
    records, costs = offramp.record_outputs(net, loader, progress=False), offramp.measure_cost(net)
    offramp.search(records, costs)
    assert costs.backbone[1] == 3 * 6 * 27 * 4 * 8 * 8
    with torch.no_grad():
        assert torch.equal(offramp.Engine(net)(CLIP).outputs, model(CLIP))
    leave = offramp.ExitConfig((offramp.ExitChoice(net.positions[1], "conv", -1.0),))
    assert offramp.Engine(net, leave)(CLIP).position.tolist() == [1] * 4


def test_a_layout_given_for_a_feature_of_other_dimensions() -> None:
    with pytest.raises(PartitionError, match="layout 'NCHW' was given for a feature of shape"):
        offramp.attach_exits(Video().eval(), CLIP[:2], cuts=["blocks.0"], layouts={"blocks.0": "NCHW"})


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = kind(5, 6, batch_first=True, **options)
        width = 12 if options.get("bidirectional") else 6
        self.second, self.top = kind(width, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)
        x, _ = self.second(x)
        return self.top(x[:, -1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}])
def test_recurrent_layers_say_where_channels_are(kind: type[nn.RNNBase], options: dict[str, object]) -> None:
    model, x = Recurrent(kind, **options).eval(), torch.randn(3, 7, 5)
    net = offramp.attach_exits(model, x, heads=("linear",))
    assert {cut.name: cut.layout for cut in net.partition.cuts}["first"] == "NLC"
    with torch.no_grad():
        torch.testing.assert_close(offramp.Engine(net)(x).outputs, model(x))


def test_the_hint_for_an_unclear_layout_works() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(PartitionError, match=r"give it as layouts=.'stem': ....*'NCL' or 'NLC'"):
        offramp.attach_exits(Cornered().eval(), x)
    for layout in ("NCL", "NLC"):
        net = offramp.attach_exits(Cornered().eval(), x, cuts=["stem"], layouts={"stem": layout})
        assert net.partition.cuts[0].layout == layout


class Cornered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.top = Top()

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.stem(x))  # type: ignore[no-any-return]


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).view(-1, 2, 2)


class Top(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(1)
