from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp import partition
from offramp.errors import InputError, PartitionError
from toys import TOYS, Residual, ResidualNet, answer, clone, cut, identical, randn, seeded, state

CUTS = {
    "residual": ["blocks.0", "blocks.1"],
    "in-place": ["first", "second"],
    "shared": ["block", "block@2", "block@3"],
    "dict": ["layers.0", "layers.1", "layers.2"],
    "masked": ["layers.0", "layers.1"],
    "two inputs": ["layers.0", "layers.1", "layers.2"],
    "constants": ["layers.0", "layers.1", "layers.2"],
    "batch size": ["blocks.0", "blocks.1", "blocks.2"],
    "channels last": ["blocks.0", "blocks.1"],
    "sequence": ["stem", "blocks.0", "blocks.1"],
    "encoder": ["layers.0", "layers.1"],
    "plain sequence": ["2", "5", "8"],
    "features and classifier": ["features.1", "features.4", "features.5", "classifier.1"],
    "flat": ["blocks.0.1", "blocks.1.1", "blocks.2.1"],
    "windows": ["blocks.0", "blocks.1"],
    "branches": ["first", "skip", "third"],
    "filled": ["layers.0", "layers.0@2", "layers.1", "layers.1@2", "layers.2", "layers.2@2"],
    "dataclass": ["layers.0", "layers.1", "layers.2"],
    "bfloat16": ["blocks.0", "blocks.1"],
    "float64": ["blocks.0", "blocks.1"],
    "autocast": [],
    "tables": ["blocks.0", "blocks.1", "blocks.2"],
    "wrapped": ["body.stem", "body.blocks.block_0", "body.blocks.block_1", "body.blocks"],
}


def names(cuts: object) -> list[str]:
    return [each.name for each in cuts]  # type: ignore[attr-defined]


def reasons(parts: object) -> dict[str, str]:
    return {each.name: each.reason for each in parts.refused}  # type: ignore[attr-defined]


def test_every_toy_is_listed() -> None:
    assert set(CUTS) == set(TOYS)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", TOYS)
def test_segments_equal_the_model_bit_for_bit(name: str, batch: int) -> None:
    model, draw, parts = cut(name)
    inputs = draw(batch, seed=batch)
    assert identical(parts.run(inputs), answer(model, inputs))


@pytest.mark.parametrize("name", TOYS)
def test_automatic_cuts(name: str) -> None:
    assert names(cut(name)[2].cuts) == CUTS[name]


@pytest.mark.parametrize("name", TOYS)
def test_every_legal_cut_splits_the_model_exactly(name: str) -> None:
    model, draw, parts = cut(name)
    inputs = draw(3, seed=3)
    whole = partition(model, draw(2), cuts="all")
    assert len({each.border.after for each in whole.cuts}) == len(whole.cuts)
    assert set(names(whole.cuts)) <= set(names(parts.legal))
    assert {each.border.after for each in whole.cuts} == {each.border.after for each in parts.legal}
    assert identical(whole.run(inputs), answer(model, inputs))


@pytest.mark.parametrize("name", TOYS)
def test_the_batch_is_left_as_it_was(name: str) -> None:
    _, draw, parts = cut(name)
    inputs = draw(2)
    before = clone(inputs)
    parts.run(inputs)
    assert identical(inputs, before)


@pytest.mark.parametrize("name", TOYS)
def test_model_and_example_are_left_as_they_were(name: str, untouched_random_state: None) -> None:
    model, draw = TOYS[name]()
    model.train()
    next(model.children()).eval()  # a mixture, to be restored as it is
    example = draw(2)
    before, inputs = state(model), clone(example)
    partition(model, example).run(draw(3))
    after = state(model)
    assert identical(before.pop("values"), after.pop("values"))
    assert after == before
    assert identical(example, inputs)


def test_samples_may_leave_between_two_segments() -> None:
    model, draw, parts = cut("masked")
    stay = torch.tensor([0, 3, 4])
    activations = tuple(parts.spec.flatten(draw(5)))
    for i, segment in enumerate(parts.segments):
        activations = segment(*activations)
        if i == 0:
            per_sample = (True, *parts.cuts[0].carried_per_sample)
            activations = tuple(
                v[stay] if each else v for v, each in zip(activations, per_sample, strict=True)
            )
    wanted = answer(model, {name: value[stay] for name, value in draw(5).items()})
    torch.testing.assert_close(activations[0], wanted)  # rows of a matrix product may differ in the last bit


def test_weights_that_are_computed_are_no_place_to_cut() -> None:
    parts = cut("sequence")[2]
    assert not [name for name in [*names(parts.legal), *reasons(parts)] if "parametrizations" in name]


def test_carried_values() -> None:
    assert cut("masked")[2].cuts[0].carried_per_sample == (True, True)
    assert cut("constants")[2].cuts[0].carried_per_sample == ()  # made, and written in place, again
    assert cut("two inputs")[2].cuts[2].carried_per_sample == (True,)
    assert cut("encoder")[2].cuts[0].carried_per_sample == (True,)


def test_features_are_described() -> None:
    first = cut("bfloat16")[2].cuts[0]
    assert (first.shape, first.dtype, first.layout) == ((8, 8, 8), torch.bfloat16, "NCHW")


def test_spans_of_several_segments() -> None:
    model, draw, parts = cut("residual")
    inputs = draw(2)
    middle = parts.span(0, 2)(inputs)
    assert identical(parts.span(2, 3)(*middle), (answer(model, inputs),))
    assert identical(parts.span(0, 3)(inputs), (answer(model, inputs),))


def test_segments_have_names() -> None:
    segments = cut("residual")[2].segments
    assert [(s.start, s.name) for s in segments] == [
        ("input", "blocks.0"),
        ("blocks.0", "blocks.1"),
        ("blocks.1", "output"),
    ]


def test_cuts_by_name_in_any_order() -> None:
    model, draw = TOYS["shared"]()
    parts = partition(model, draw(2), cuts=["block@3", "block", "block"])
    assert names(parts.cuts) == ["block", "block@3"]
    assert identical(parts.run(draw(4)), answer(model, draw(4)))


def test_no_cuts_is_one_segment() -> None:
    model, draw = TOYS["residual"]()
    parts = partition(model, draw(2), cuts=[])
    assert len(parts.segments) == 1
    assert identical(parts.run(draw(4)), answer(model, draw(4)))


def test_an_example_of_one_sample_is_enough() -> None:
    model, draw = TOYS["dict"]()
    parts = partition(model, draw(1))
    assert identical(parts.run(draw(6)), answer(model, draw(6)))


def test_gradients_are_not_tracked_by_run() -> None:
    _, draw, parts = cut("residual")
    out = parts.run(draw(2))
    assert isinstance(out, Tensor)
    assert not out.requires_grad


def test_tables_that_a_model_keeps_are_not_taken_for_constants() -> None:
    model, draw = TOYS["tables"]()
    model(draw(1))  # the tables are there
    kept = [(block.tables, dict(block.tables)) for block in model.blocks]
    parts = partition(model, draw(2))
    assert all(block.tables is table for block, (table, _) in zip(model.blocks, kept, strict=True))
    assert all(len(content) == 1 and table == content for table, content in kept)
    with torch.no_grad():
        for block in model.blocks:
            block.biases += randn(4)(1)[0]
    model.train().eval()
    assert identical(parts.run(draw(3)), answer(model, draw(3)))


def test_tables_are_not_left_behind() -> None:
    model, draw = TOYS["tables"]()
    partition(model, draw(2)).run(draw(3))
    assert all(block.tables == {} for block in model.blocks)


class Remembering(nn.Module):
    """Adds the first answer that it ever gave: no table, but a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.memory: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x)
        return x + self.memory.setdefault("first", x.mean(0))


def test_a_model_that_remembers_what_it_was_asked_is_refused() -> None:
    with pytest.raises(PartitionError, match="depends on more than its inputs"):
        partition(seeded(Remembering), randn(4)(8))


class Leaning(nn.Module):
    """A sample's answer leans a little on the others: too much for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x)
        return x + 0.1 * x.mean(0)


def test_a_model_that_mixes_its_samples_a_little_is_refused() -> None:
    with pytest.raises(PartitionError, match="depends on the others in the batch"):
        partition(seeded(Leaning), randn(4)(2))


def test_refusals_say_why() -> None:
    windows = reasons(cut("windows")[2])
    assert "the batch must be first" in windows["blocks.0.inner.0"]  # (B * 4, ...) between the two reshapes
    assert "(4*s" in windows["blocks.0.inner.0"]
    branches = reasons(cut("branches")[2])
    assert branches["second"].startswith("2 values are alive, expected one feature")
    assert branches["head"] == "the model is finished here"


class Apply(nn.Module):
    """A module call that does what it is told."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: object) -> Tensor:
        return self.function(*values)


class Between(nn.Module):
    """line, there, back, head: is the feature between ``there`` and ``back`` one to cut at?"""

    def __init__(
        self,
        there: Callable[[Tensor], Tensor] = torch.relu,
        back: Callable[..., Tensor] = lambda y, extra: y,
        extra: Callable[[Tensor], object] = lambda mask: None,
    ) -> None:
        super().__init__()
        self.line, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.there, self.back, self.extra = Apply(there), Apply(back), extra

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        extra = self.extra(mask)
        return self.head(self.back(self.there(self.line(x)), extra))


def twice(mask: Tensor) -> list[Tensor]:
    copy = mask * 1
    return [copy, copy.view(-1, 4)]


@pytest.mark.parametrize(
    ("there", "back", "extra", "reason"),
    [
        (
            lambda x: x.t().relu(),
            lambda y, _: y.t(),
            lambda _: None,
            r"shape \(4, s\d+\): the batch must be first",
        ),
        (
            lambda x: x[:, None, :1] + torch.zeros(x.shape[0], x.shape[0], 1),
            lambda y, _: y[:, 0].expand(-1, 4),
            lambda _: None,
            r"shape \(s\d+, s\d+, 1\): the batch must be first, and only there",
        ),
        (
            lambda x: (9 * x).long(),
            lambda y, _: y.float(),
            lambda _: None,
            "type torch.int64, expected floating",
        ),
        (
            lambda x: x[:, :, None, None, None, None].relu(),
            lambda y, _: y[:, :, 0, 0, 0, 0],
            lambda _: None,
            r"shape \('B', 4, 1, 1, 1, 1\); heads take features of 2 to 5 dimensions",
        ),
        (
            lambda x: x.sum(1),
            lambda y, _: y[:, None].expand(-1, 4),
            lambda _: None,
            r"shape \('B',\); heads take",
        ),
        (
            lambda x: x.view(-1, 2, 2).relu(),
            lambda y, _: y.view(-1, 4),
            lambda _: None,
            "the layout of the feature is unclear",
        ),
        (torch.relu, lambda y, m: y + m.t(), lambda m: m.t() + 1, r"mask add has shape \(4, s\d+\)"),
        (torch.relu, lambda y, m: y * m[0] + m[1].add_(1), twice, "share storage here and one is changed"),
        (
            torch.relu,
            lambda y, n: y * n,
            lambda m: (m * 0).sum().item() + 2,
            "which is no tensor but SymFloat",
        ),
    ],
)
def test_what_cannot_be_handed_on(
    there: Callable[..., Tensor], back: Callable[..., Tensor], extra: Callable[..., object], reason: str
) -> None:
    model = seeded(lambda: Between(there, back, extra))
    inputs = (randn(4)(3), randn(4)(3, seed=1))
    parts = partition(model, inputs)
    assert re.search(reason, reasons(parts)["there"]), reasons(parts)["there"]
    assert names(parts.cuts) == ["back"]
    assert identical(parts.run(inputs), answer(model, inputs))


def test_values_read_off_a_parameter_are_no_obstacle() -> None:
    model = seeded(lambda: Scaled())
    parts = partition(model, randn(4)(2), cuts="all")
    assert names(parts.cuts) == ["first.0", "first", "second.0", "second"]
    assert identical(parts.run(randn(4)(5)), answer(model, randn(4)(5)))


class Scaled(nn.Module):
    """A number read off a parameter in the first segment is used in the last."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.item()
        return self.head(self.second(self.first(x * scale) * scale) * scale)


def test_shapes_that_depend_on_values_are_refused() -> None:
    model = seeded(lambda: Between(extra=lambda m: m, back=lambda y, m: y + (m > 0).nonzero().sum() * 0))
    with pytest.raises(PartitionError, match="cannot count the operations of Between"):
        partition(model, (randn(4)(3), randn(4)(3, seed=1)))


class Picks(nn.Module):
    """The last marked step of each sample, of (B, 5, 4) and a mask (B, 5); or work on all marked ones."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.more, self.head, self.packed = nn.Linear(4, 4), nn.Linear(4, 3), packed

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        picked = x[mask > 0]
        if self.packed:
            picked = self.more(picked)
        return self.head(picked.view(x.shape[0], -1, 4)[:, -1])  # type: ignore[no-any-return]


def test_what_a_mask_picks_of_each_sample_counts_once() -> None:
    x, mask = randn(5, 4)(3), torch.tensor([[0, 1.0, 0, 0, 0]] * 3)
    parts = partition(seeded(lambda: Picks(packed=False)), (x, mask))
    assert sum(parts.macs) == 3 * 5 * 16 + 12
    assert identical(parts.run((x, mask)), answer(parts.model, (x, mask)))
    with pytest.raises(PartitionError, match="cannot count the operations of Picks"):
        partition(seeded(lambda: Picks(packed=True)), (x, mask))  # how many rows, nobody knows


def test_before_the_first_parameter_there_is_no_feature() -> None:
    model = seeded(lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))
    parts = partition(model, randn(4)(2))
    assert reasons(parts)["0"] == "nothing has been computed with the model's parameters yet"
    assert names(parts.cuts) == ["2"]


def test_outputs_without_a_batch_are_not_compared_across_batch_sizes() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.line(x)
            return x, x @ x.transpose(0, 1)  # (B, B)

    model = seeded(Table)
    assert identical(partition(model, randn(4)(2)).run(randn(4)(5)), answer(model, randn(4)(5)))


def test_layout_by_name() -> None:
    model, draw = TOYS["autocast"]()
    assert "layouts=" in reasons(cut("autocast")[2])["blocks.0"]
    parts = partition(model, draw(2), layouts={"blocks.0": "NCHW", "blocks.1": "NCHW"})
    assert [(c.name, c.layout) for c in parts.cuts] == [("blocks.0", "NCHW"), ("blocks.1", "NCHW")]
    assert identical(parts.run(draw(7)), answer(model, draw(7)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuts": "everything"}, "expected 'auto', 'all' or a list of names; got 'everything'"),
        ({"cuts": ["blocks.01"]}, "no module call 'blocks.01' to cut after; try blocks.1, blocks.0"),
        ({"cuts": ["blocks.0.conv"]}, "cannot cut after 'blocks.0.conv': 2 values are alive"),
        (
            {"layouts": {"blocks.0": "NCWH"}},
            "expected one of NC, NCL, NLC, NCHW, NHWC, NCDHW, NDHWC; got 'NCWH'",
        ),
        ({"layouts": {"block.0": "NCHW"}}, "no module call 'block.0' to cut after; try blocks.0"),
        ({"cuts": ["stem"], "layouts": {"stem": "NLC"}}, "layout 'NLC' was given for a feature of shape"),
    ],
)
def test_wrong_names_are_refused(options: dict[str, object], message: str) -> None:
    model, draw = TOYS["residual"]()
    with pytest.raises(PartitionError) as error:
        partition(model, draw(2), **options)  # type: ignore[arg-type]
    assert message in str(error.value)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.line(x), 0.5, training=True)


def test_a_model_that_is_random_in_eval_mode_is_refused() -> None:
    with pytest.raises(PartitionError, match="random in eval mode"):
        partition(seeded(Noisy), randn(4)(8))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ResidualNet(1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.view(1)[0] += 1  # through two views
        return self.block(x)


class Reassigning(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.block(x)


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.mean, self.var, training=True)
        return self.conv(x).mean((2, 3))


class AutocastCounting(Counting):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            self.calls.add_(1)
            x = self.block(x)
        return x.float()


@pytest.mark.parametrize(
    ("make", "name"),
    [(Counting, "calls"), (Statistics, "mean"), (AutocastCounting, "calls"), (Reassigning, "calls")],
)
def test_a_model_that_changes_a_buffer_is_refused_before_it_does(make: type[nn.Module], name: str) -> None:
    model = seeded(make).train()
    before = state(model)
    with pytest.raises(PartitionError, match=f"changes its own parameter or buffer '{name}' in") as error:
        partition(model, randn(3, 8, 8)(4))
    if make is Counting:
        assert "self.calls.view(1)[0] += 1" in str(error.value)
    after = state(model)
    assert identical(before.pop("values"), after.pop("values"))
    assert after == before


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x)
        return (x - x.mean(0)) / (1 + x.std(0, unbiased=False))


def test_a_model_whose_samples_depend_on_each_other_is_refused() -> None:
    with pytest.raises(PartitionError, match="depends on the others in the batch"):
        partition(seeded(BatchStatistics), randn(4)(8))


def test_weights_changed_in_place_later_are_seen() -> None:
    model, draw = TOYS["sequence"]()
    parts = partition(model, draw(2))
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.mul_(1.1)
    assert identical(parts.run(draw(3)), answer(model, draw(3)))


def test_weights_replaced_later_are_seen() -> None:
    model, draw = TOYS["residual"]()
    parts = partition(model, draw(2))
    model.load_state_dict(seeded(ResidualNet, seed=1).state_dict(), assign=True)
    assert identical(parts.run(draw(3)), answer(model, draw(3)))


def test_hooks_of_the_user_are_part_of_the_model() -> None:
    model, draw = TOYS["residual"]()
    assert isinstance(model, ResidualNet)
    plain = answer(model, draw(2))
    model.blocks[0].register_forward_hook(lambda module, args, out: out * 2)
    model.head.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    before = state(model)["hooks"]
    parts = partition(model, draw(2))
    assert state(model)["hooks"] == before
    assert identical(parts.run(draw(2)), answer(model, draw(2)))
    assert not identical(parts.run(draw(2)), plain)


def test_a_model_in_training_mode_is_cut_in_eval_mode() -> None:
    model, draw = TOYS["plain sequence"]()
    wanted = answer(model, draw(3))
    model.train()
    parts = partition(model, draw(2))
    assert all(module.training for module in model.modules())
    assert identical(parts.run(draw(3)), wanted)


def test_one_block_is_cut_at_its_leaves_and_none_gives_no_cut() -> None:
    parts = partition(seeded(lambda: nn.Linear(4, 4)), randn(4)(2))
    assert parts.cuts == ()
    assert parts.legal == ()


class Outputs(nn.Module):
    """Returns its input, a parameter, a constant and a number beside the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[object, ...]:
        return self.third(self.second(self.first(x))), x, self.bias, torch.arange(3), x.shape[0], "name"


def test_outputs_that_are_not_computed() -> None:
    model = seeded(Outputs)
    parts = partition(model, randn(4)(2))
    assert Counter(names(parts.cuts)) == Counter(["first", "second"])
    inputs = randn(4)(5)
    assert identical(parts.run(inputs), answer(model, inputs))


def test_the_block_that_the_toys_are_made_of_writes_in_place() -> None:
    """Guards the guards: without in-place operations these tests would show little."""
    block, x = seeded(lambda: Residual(4)), randn(4, 3, 3)(2)
    seen: list[Tensor] = []
    block.norm.register_forward_hook(lambda module, args, out: seen.append(out))  # type: ignore[union-attr]
    assert block(x).data_ptr() == seen[0].data_ptr()


def test_inputs_are_checked() -> None:
    model, _ = TOYS["residual"]()
    with pytest.raises(InputError, match="the model fails on example_inputs"):
        partition(model, torch.zeros(2, 4, 8, 8))
