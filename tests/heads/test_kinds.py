"""What each kind of head computes, compared with the same written out by hand, and which kinds are chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.graph.macs import count_macs, count_module
from offramp.heads.auto import KEPT, NETWORK_SHARE, SHARE, default_heads
from offramp.heads.base import Head
from offramp.heads.features import FeatureSpec, first, peak, pool
from offramp.heads.registry import apply_head, head_factory, reduced
from toys import randn, seeded

LENGTH, CHANNELS = 12, 6
MASKED = FeatureSpec((LENGTH, CHANNELS), "NLC", mask=True)
PER_TOKEN = FeatureSpec((LENGTH, CHANNELS), "NLC", mask=True, per_token=True)
SEQUENCE = (
    "linear", "linear-max", "linear-meanmax", "linear-2x2", "linear-4x4", "mlp", "mlp-mean", "mlp-max",
    "mlp-meanmax", "mlp-2x2", "tokens", "mlp-tokens", "conv", "attention", "local-global",
)  # fmt: skip


def made(name: str, feature: FeatureSpec, outputs: int = 3) -> Head:
    def build() -> nn.Module:
        head = head_factory(name)(feature, outputs)
        assert isinstance(head, Head)
        return head

    head = seeded(build)
    assert isinstance(head, Head)
    return head


def tokens(batch: int = 4) -> Tensor:
    return randn(LENGTH, CHANNELS)(batch)


def real(*lengths: int) -> Tensor:
    """(B, L) masks, padded at the end."""
    return torch.arange(LENGTH) < torch.tensor(lengths)[:, None]


# ------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize(
    ("name", "spec"), [*((n, MASKED) for n in SEQUENCE), *((n, PER_TOKEN) for n in ("linear", "mlp", "conv"))]
)
def test_what_padding_holds_does_not_matter(name: str, spec: FeatureSpec) -> None:
    head, x, mask = made(name, spec), tokens(), real(12, 9, 5, 1)
    mask[1, 3] = False  # a hole
    assert head.uses_mask
    wanted = apply_head(head, x, mask)
    for filler in (0.0, 7.5, float("nan"), float("inf")):
        changed = torch.where(mask[..., None], x, filler)
        out = apply_head(head, changed, mask)
        assert torch.equal(head.predict(reduced(head, changed, mask)), out)
        if spec.per_token:  # nobody reads the answers of tokens that are not there
            out, wanted = (torch.where(mask[..., None], o, 0.0) for o in (out, wanted))
        assert torch.equal(out, wanted)


@pytest.mark.parametrize("name", SEQUENCE)
def test_a_padded_sample_answers_as_it_does_alone_without_padding(name: str) -> None:
    head, x, n = made(name, MASKED), tokens(), 9
    out = apply_head(head, x, real(12, n, 12, 12))[1]
    alone = apply_head(head, x[1:2, :n], torch.ones(1, n, dtype=torch.bool))[0]
    torch.testing.assert_close(out, alone)  # sums in another order
    moved, at_the_end = x[1:2].roll(LENGTH - n, 1), real(LENGTH - n).logical_not()
    left = apply_head(head, moved, at_the_end)[0]
    torch.testing.assert_close(left, alone)  # padded in front


@pytest.mark.parametrize("name", SEQUENCE)
def test_without_padding_a_mask_changes_nothing(name: str) -> None:
    head, plain, x = made(name, MASKED), made(name, FeatureSpec((LENGTH, CHANNELS), "NLC")), tokens()
    assert not plain.uses_mask
    torch.testing.assert_close(apply_head(head, x, real(12, 12, 12, 12)), apply_head(plain, x))


@pytest.mark.parametrize("name", SEQUENCE)
def test_a_sample_of_padding_only_has_a_finite_answer_of_its_own(name: str) -> None:
    head, x, mask = made(name, MASKED), tokens(2), real(0, 12)
    out = apply_head(head, x, mask)
    assert torch.isfinite(out).all()
    assert torch.equal(apply_head(head, x + torch.tensor([3.0, 0.0])[:, None, None], mask), out)


@pytest.mark.parametrize("grid", [1, 2, 4, 5, 8, 40])
def test_masked_cells_are_adaptive_averages_of_the_real_tokens(grid: int) -> None:
    x, lengths = tokens(), (12, 9, 5, 3)
    z = pool(x, "NLC", grid, real(*lengths))
    cells = min(grid, LENGTH)
    for row, n in enumerate(lengths):
        wanted = F.adaptive_avg_pool1d(x[row, :n].T, cells)
        torch.testing.assert_close(z[row], wanted.squeeze(1) if cells == 1 else wanted)


def test_largest_and_first_of_the_real_tokens() -> None:
    x = torch.tensor([[[1.0], [5.0], [3.0]], [[-2.0], [-1.0], [9.0]], [[4.0], [4.0], [4.0]]])
    mask = torch.tensor([[False, True, True], [True, True, False], [False, False, False]])
    assert peak(x, "NLC", mask).tolist() == [[5.0], [-1.0], [0.0]]
    assert first(x, mask).tolist() == [[5.0], [-2.0], [0.0]]
    assert first(x).tolist() == [[1.0], [-2.0], [4.0]]
    assert peak(x, "NLC").tolist() == [[5.0], [9.0], [4.0]]


# ---------------------------------------------------------------------------------------------- the kinds


def test_what_pooled_heads_see() -> None:
    x = randn(3, 4, 8)(2)
    spec = FeatureSpec((3, 4, 8), "NCHW")
    flat = x.flatten(2)
    kept = {
        "linear": flat.mean(2),
        "linear-max": flat.amax(2),
        "linear-meanmax": torch.cat([flat.mean(2), flat.amax(2)], 1),
        "linear-2x2": F.avg_pool2d(x, (2, 4)),
        "linear-4x4": F.avg_pool2d(x, (1, 2)),
    }
    for name, wanted in kept.items():
        torch.testing.assert_close(made(name, spec).reduce(x), wanted)
    line = tokens(2)
    wanted = torch.cat([line.mean(1), line.amax(1), line[:, 0]], 1)
    torch.testing.assert_close(made("tokens", FeatureSpec((LENGTH, CHANNELS), "NLC")).reduce(line), wanted)
    turned = FeatureSpec((CHANNELS, LENGTH), "NCL")
    torch.testing.assert_close(made("tokens", turned).reduce(line.movedim(1, 2)), wanted)


@pytest.mark.parametrize(("shape", "hidden"), [((8, 2, 2), 32), ((64, 8, 8), 128), ((512, 7, 7), 256)])
def test_the_hidden_width_follows_the_feature(shape: tuple[int, ...], hidden: int) -> None:
    head = made("mlp", FeatureSpec(shape, "NCHW"))
    assert isinstance(head.hidden, nn.Linear)
    assert head.hidden.out_features == hidden


def test_attention_is_a_weighted_mean_of_tokens() -> None:
    head, x, mask = made("attention", MASKED), tokens(2), real(12, 4)
    state = head.state_dict()
    out = apply_head(head, x, mask)
    for row, n in enumerate((12, 4)):
        t = F.layer_norm(x[row, :n], (CHANNELS,), state["gather.norm.weight"], state["gather.norm.bias"])
        heard = []
        for query in state["gather.query.weight"]:
            weights = torch.exp(t @ query)
            heard.append((weights[:, None] * t).sum(0) / weights.sum())
        gathered = (torch.cat(heard) - state["norm.running_mean"]) / (state["norm.running_var"] + 1e-5).sqrt()
        gathered = gathered * state["norm.weight"] + state["norm.bias"]
        torch.testing.assert_close(out[row], state["out.weight"] @ gathered + state["out.bias"])


@pytest.mark.parametrize(
    ("shape", "layout", "dimensions"),
    [
        ((10, 6), "NLC", 2),
        ((9, 6), "NLC", 2),
        ((12, 6), "NLC", 1),
        ((5, 6), "NLC", 1),
        ((5, 4, 6), "NHWC", 2),
    ],
)
def test_local_mixing_follows_the_image_behind_the_tokens(
    shape: tuple[int, ...], layout: str, dimensions: int
) -> None:
    head = made("local-global", FeatureSpec(shape, layout))
    local = head.local
    assert isinstance(local, nn.Conv1d if dimensions == 1 else nn.Conv2d)
    assert head(randn(*shape)(2)).shape == (2, 3)


def test_masked_tokens_are_never_taken_for_an_image() -> None:
    assert isinstance(made("local-global", FeatureSpec((9, 6), "NLC", mask=True)).local, nn.Conv1d)


def test_local_mixing_leaves_the_leading_token_to_attention() -> None:
    head = made("local-global", FeatureSpec((10, 6), "NLC"))
    patches = made("local-global", FeatureSpec((9, 6), "NLC"))
    patches.load_state_dict(head.state_dict())
    with torch.no_grad():
        for each in (head, patches):
            each.out.weight[:, 32:] = 0  # what attention gathers  # type: ignore[index, operator, union-attr]
    x = randn(10, 6)(2)
    torch.testing.assert_close(head(x), patches(x[:, 1:]))


def test_one_answer_for_every_token() -> None:
    x, mask = tokens(2), real(12, 7)
    for name in ("linear", "mlp", "conv"):
        out = apply_head(made(name, PER_TOKEN), x, mask)
        assert out.shape == (2, LENGTH, 3)
        alone = apply_head(made(name, PER_TOKEN), x[1:, :7], torch.ones(1, 7, dtype=torch.bool))
        torch.testing.assert_close(out[1:, :7], alone)
    head, changed = made("linear", PER_TOKEN), x.clone()
    changed[:, 3] += 1
    moved = (apply_head(head, changed, mask) != apply_head(head, x, mask)).any(2)
    assert moved.nonzero()[:, 1].tolist() == [3, 3]  # a token's answer is its own
    near = (
        apply_head(made("conv", PER_TOKEN), changed, mask) != apply_head(made("conv", PER_TOKEN), x, mask)
    ).any(2)
    assert sorted(set(near.nonzero()[:, 1].tolist())) == [2, 3, 4]


@pytest.mark.parametrize("name", ["tokens", "linear-max", "convnet", "attention", "local-global"])
def test_kinds_that_have_no_answer_per_token(name: str) -> None:
    assert head_factory(name)(PER_TOKEN, 3) is None


@pytest.mark.parametrize("name", ["linear", "mlp", "conv"])
def test_answers_per_token_need_a_sequence(name: str) -> None:
    assert head_factory(name)(FeatureSpec((6, 4, 4), "NCHW", per_token=True), 3) is None


def macs(name: str, spec: FeatureSpec, outputs: int) -> int:
    head = head_factory(name)(spec, outputs)
    assert head is not None
    return count_macs(lambda: count_module(head, torch.empty(1, *spec.shape, device="meta")))[0]


def test_what_small_networks_cost() -> None:
    image = FeatureSpec((1, 28, 28), "NCHW", inputs=True)
    dense = 14 * 14 * 9 * (1 * 16 + 16 * 32) + 7 * 7 * 9 * 32 * 64 + 7 * 7 * 64 * 10
    assert macs("convnet", image, 10) == dense
    feature = FeatureSpec((28, 28, 16), "NHWC")
    assert macs("convnet", feature, 10) == 14 * 14 * 9 * 16 * 32 + 7 * 7 * 9 * 32 * 64 + 7 * 7 * 64 * 10
    assert macs("convnet-large", image, 10) == dense + 7 * 7 * 9 * 64 * 64
    small = FeatureSpec((64, 8, 8), "NCHW")  # is not made smaller
    assert macs("convnet", small, 10) == 8 * 8 * (9 * 64 * 64 + 64 * 10)
    parts = 14 * 14 * (9 * 16 + 16 * 64) + 7 * 7 * (9 * 64 + 64 * 128)
    parts += 7 * 7 * (9 * 128 + 128 * 128) + 7 * 7 * 128 * 10
    assert macs("separable", feature, 10) == parts


@pytest.mark.parametrize(
    ("outputs", "readout"), [(10, (7, 7)), (400, (4, 4)), (1000, (2, 2)), (10_000, (1, 1))]
)
def test_the_readout_is_as_fine_as_the_outputs_allow(outputs: int, readout: tuple[int, int]) -> None:
    head = made("convnet", FeatureSpec((32, 28, 14), "NCHW"), outputs)
    assert head.readout == readout
    assert head(randn(32, 28, 14)(2)).shape == (2, outputs)


@pytest.mark.parametrize("side", [4, 7, 8, 9, 14, 16, 28, 32, 57, 100])
@pytest.mark.parametrize("inputs", [True, False])
def test_small_networks_on_any_side(side: int, inputs: bool) -> None:
    head = made("convnet", FeatureSpec((3, side, side), "NCHW", inputs=inputs))
    assert head(randn(3, side, side)(2)).shape == (2, 3)


@pytest.mark.parametrize("name", [*SEQUENCE, "linear per token", "mlp per token", "conv per token"])
def test_every_parameter_learns(name: str) -> None:
    kind, _, per_token = name.partition(" ")
    head = made(kind, PER_TOKEN if per_token else MASKED).train()
    apply_head(head, tokens(8), real(12, 9, 5, 3, 12, 11, 7, 8)).square().sum().backward()
    idle = [key for key, value in head.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


@pytest.mark.parametrize("name", SEQUENCE)
def test_heads_keep_the_type_of_the_model(name: str) -> None:
    head, mask = made(name, MASKED).to(torch.bfloat16), real(12, 9, 5, 0)
    out = apply_head(head, tokens().to(torch.bfloat16), mask)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


# ------------------------------------------------------------------------------------------------ choice

SPECS = {
    "line": (FeatureSpec((64,), "NC"), ("linear", "mlp")),
    "image": (FeatureSpec((16, 28, 28), "NCHW"), ("linear-meanmax", "mlp", "convnet")),
    "channels last": (FeatureSpec((28, 28, 16), "NHWC"), ("linear-meanmax", "mlp", "convnet")),
    "many channels": (FeatureSpec((96, 56, 56), "NCHW"), ("linear-meanmax", "mlp", "conv")),
    "sequence": (FeatureSpec((64, 32), "NLC"), ("tokens", "mlp-tokens", "local-global")),
    "masked": (FeatureSpec((64, 32), "NLC", mask=True), ("tokens", "mlp-tokens", "local-global")),
    "long": (FeatureSpec((512, 64), "NLC", mask=True), ("tokens", "mlp-tokens")),
    "signal": (FeatureSpec((32, 64), "NCL"), ("linear-meanmax", "mlp", "conv")),
    "per token": (FeatureSpec((512, 64), "NLC", mask=True, per_token=True), ("linear", "conv")),
}


@pytest.mark.parametrize("case", SPECS)
def test_where_much_remains_up_to_three_kinds_are_chosen(case: str) -> None:
    spec, wanted = SPECS[case]
    before = torch.get_rng_state()
    assert default_heads(spec, 10, 10**9) == wanted
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", SPECS)
def test_where_nothing_remains_only_the_cheapest_is_tried(case: str) -> None:
    spec, wanted = SPECS[case]
    assert default_heads(spec, 10, 0) == wanted[:1]


def test_a_kind_is_left_out_just_where_it_costs_too_much() -> None:
    spec = FeatureSpec((16, 28, 28), "NCHW")
    network, local = macs("convnet", spec, 10) / NETWORK_SHARE, macs("conv", spec, 10) / SHARE
    assert default_heads(spec, 10, round(network) + 1)[2:] == ("convnet",)
    assert default_heads(spec, 10, round(network) - 1)[2:] == ("conv",)  # the next best
    assert default_heads(spec, 10, round(local) + 1)[2:] == ("conv",)
    assert default_heads(spec, 10, round(local) - 1)[2:] == ()


def test_a_kind_is_left_out_where_training_would_keep_too_much() -> None:
    fits = FeatureSpec((KEPT // 64, 64), "NLC")
    assert default_heads(fits, 10, 10**12)[2] == "local-global"
    assert len(default_heads(FeatureSpec((KEPT // 64 + 1, 64), "NLC"), 10, 10**12)) == 2
