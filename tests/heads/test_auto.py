from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import InputError
from offramp.heads.base import Head
from offramp.heads.features import FeatureSpec, pool
from offramp.heads.registry import head_factory, register_head
from toys import randn, seeded

SHAPES = {"NC": (6,), "NCL": (6, 5), "NLC": (5, 6), "NCHW": (6, 9, 4), "NHWC": (9, 4, 6)}
EXTENTS = {"NC": (), "NCL": (5,), "NLC": (5,), "NCHW": (9, 4), "NHWC": (9, 4)}
POOLED = (
    "linear", "linear-max", "linear-meanmax", "linear-2x2", "linear-4x4",
    "mlp", "mlp-mean", "mlp-max", "mlp-meanmax", "mlp-2x2",
)  # fmt: skip
TOKENS = ("tokens", "mlp-tokens")
NETS = ("convnet", "convnet-large", "separable")
BUILT_IN = (*POOLED, *TOKENS, "conv", *NETS, "attention", "local-global")
APPLY = {
    "NC": ("linear", "mlp", "mlp-mean"),
    "NCL": tuple(set(BUILT_IN) - {*NETS}),
    "NLC": tuple(set(BUILT_IN) - {*NETS}),
    "NCHW": tuple(set(BUILT_IN) - {*TOKENS}),
    "NHWC": tuple(set(BUILT_IN) - {*TOKENS}),
}


def make(name: str, layout: str, outputs: int = 4) -> nn.Module | None:
    return made(name, FeatureSpec(SHAPES[layout], layout), outputs)


def made(name: str, feature: FeatureSpec, outputs: int = 4) -> nn.Module | None:
    built: list[nn.Module | None] = []

    def build() -> nn.Module:
        built.append(head_factory(name)(feature, outputs))
        return built[0] or nn.Identity()

    seeded(build)
    return built[0]


def channels_first(x: Tensor, layout: str) -> Tensor:
    return x.movedim(-1, 1) if layout in ("NLC", "NHWC") else x


@pytest.mark.parametrize("layout", SHAPES)
def test_feature_spec_knows_channels_and_extent(layout: str) -> None:
    spec = FeatureSpec(SHAPES[layout], layout)
    assert (spec.channels, spec.extent) == (6, EXTENTS[layout])


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_head_on_every_layout(name: str, layout: str, batch: int, outputs: int) -> None:
    head = make(name, layout, outputs)
    assert (head is not None) == (name in APPLY[layout])
    if head is None:
        return
    assert isinstance(head, Head)
    x = randn(*SHAPES[layout])(batch)
    before = x.clone()
    out = head(x)
    assert out.shape == (batch, outputs)
    assert torch.equal(head.predict(head.reduce(x)), out)
    assert torch.equal(x, before)
    # float32: a batch is multiplied in another order than one sample
    torch.testing.assert_close(torch.cat([head(x[i : i + 1]) for i in range(batch)]), out)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(("first", "last"), [("NCL", "NLC"), ("NCHW", "NHWC")])
def test_the_same_feature_gives_the_same_answer_in_either_layout(name: str, first: str, last: str) -> None:
    one, other = make(name, first), make(name, last)
    if one is None or other is None:
        assert one is other
        return
    other.load_state_dict(one.state_dict())
    x = randn(*SHAPES[first])(3)
    torch.testing.assert_close(other(x.movedim(1, -1)), one(x))  # sums in another order


@pytest.mark.parametrize("layout", ["NCL", "NLC", "NCHW", "NHWC"])
def test_pool_to_one_cell_is_the_mean(layout: str) -> None:
    x = randn(*SHAPES[layout])(2)
    wanted = channels_first(x, layout).flatten(2).mean(2)
    torch.testing.assert_close(pool(x, layout, 1), wanted)
    assert pool(x, layout, 1).shape == (2, 6)


def test_pool_averages_cells_and_leaves_small_sides_alone() -> None:
    x = torch.arange(32.0).view(1, 1, 8, 4)
    coarse = pool(x, "NCHW", 4)
    assert torch.equal(coarse, F.avg_pool2d(x, (2, 1)))
    assert pool(x, "NCHW", 9) is x
    line = torch.arange(8.0).view(1, 1, 8)
    assert pool(line, "NCL", 2).tolist() == [[[1.5, 5.5]]]
    flat = torch.ones(2, 3)
    assert pool(flat, "NC", 4) is flat


def test_grids_larger_than_the_feature() -> None:
    tiny = FeatureSpec((2, 1, 3), "NCHW")
    assert head_factory("conv")(tiny, 2) is None  # a side of 1 has no neighbourhood
    mlp = head_factory("mlp")(tiny, 2)
    assert mlp is not None
    assert mlp(torch.ones(2, 2, 1, 3)).shape == (2, 2)
    small = head_factory("conv")(FeatureSpec((2, 2, 2), "NCHW"), 2)
    assert small is not None
    assert small.eval()(torch.ones(2, 2, 2, 2)).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "layout"), [(n, la) for la in SHAPES for n in (*POOLED, *TOKENS) if n in APPLY[la]]
)
def test_absorbing_equals_standardising_before(name: str, layout: str) -> None:
    head = make(name, layout)
    assert isinstance(head, Head)
    x = 3 + 5 * randn(*SHAPES[layout])(8)
    z = head.reduce(x)
    flat = z.flatten(1)
    mean, std = flat.mean(0), flat.std(0) + 0.1
    wanted = head.predict(((flat - mean) / std).view_as(z))
    head.absorb_(mean, std)  # type: ignore[operator]
    # float32: sums of the same numbers in another order
    torch.testing.assert_close(head(x), wanted, atol=1e-5, rtol=1e-4)


def test_heads_that_share_what_training_caches_say_so() -> None:
    found: dict[str, set[str]] = {}
    for layout, x in (("NCHW", randn(*SHAPES["NCHW"])(2)), ("NLC", randn(*SHAPES["NLC"])(2))):
        kept: dict[str, Tensor] = {}
        for name in APPLY[layout]:
            head = make(name, layout)
            assert isinstance(head, Head)
            found.setdefault(head.reduction, set()).add(name)
            z = head.reduce(x)
            assert torch.equal(kept.setdefault(head.reduction, z), z)
    assert found["grid1"] == {"linear", "mlp-mean"}
    assert found["grid2"] == {"linear-2x2", "mlp-2x2"}
    assert found["grid4"] == {"linear-4x4", "mlp"}
    assert found["meanmax"] == {"linear-meanmax", "mlp-meanmax"}
    assert found["grid14"] == set(NETS)
    assert found["tokens"] == set(TOKENS)
    assert found["tokens all"] == {"attention", "local-global"}


def test_the_base_class_predicts_nothing() -> None:
    with pytest.raises(NotImplementedError):
        Head(FeatureSpec((3,), "NC"), 1)(torch.ones(1, 3))


def test_registering_a_class_and_a_function(registry: None) -> None:
    @register_head("whole")
    class Whole(nn.Module):
        """Neither reduce nor predict: given the whole feature."""

        def __init__(self, feature: FeatureSpec, outputs: int) -> None:
            super().__init__()
            self.out = nn.Linear(feature.channels, outputs)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(x.mean((2, 3)))
            return out

    @register_head("images-only")
    def images_only(feature: FeatureSpec, outputs: int) -> nn.Module | None:
        return Whole(feature, outputs) if feature.layout == "NCHW" else None

    assert isinstance(make("whole", "NCHW"), Whole)
    assert isinstance(make("images-only", "NCHW"), Whole)
    assert make("images-only", "NC") is None


def test_a_taken_name_and_an_unknown_one() -> None:
    with pytest.raises(InputError, match="head 'linear' is already registered"):
        register_head("linear")(lambda feature, outputs: None)
    with pytest.raises(InputError, match="unknown head 'liner'; did you mean 'linear'"):
        head_factory("liner")
