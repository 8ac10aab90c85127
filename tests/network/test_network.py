from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import offramp
import small
from offramp import ExitNetwork, attach_exits
from offramp.errors import InputError, PartitionError
from offramp.graph.macs import count_macs, count_module
from offramp.heads.features import FeatureSpec
from offramp.heads.registry import register_head
from tables import read
from toys import TOYS, answer, clone, identical, randn, seeded, state

HEADS = ("linear", "mlp", "conv")


def attach(name: str = "residual", **options: object) -> ExitNetwork:
    model, draw = TOYS[name]()
    return attach_exits(model, draw(2), **{"heads": HEADS, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def net() -> ExitNetwork:
    return attach()


def test_positions_heads_and_outputs(net: ExitNetwork) -> None:
    assert net.positions == ("input", "blocks.0", "blocks.1")
    assert net.head_names == ("linear", "mlp", "conv")
    assert net.outputs == 5
    assert (net.task.name, net.confidence) == ("classification", "max-probability")
    assert [(p, c) for p, c, _ in net.exits()] == [(p, c) for p in (1, 2) for c in (0, 1, 2)]
    assert net.head(1, "mlp") is next(head for p, c, head in net.exits() if (p, c) == (1, 1))


def test_the_network_owns_its_heads_only(net: ExitNetwork) -> None:
    assert all(name.startswith("heads.") for name in net.state_dict())
    backbone = {id(p) for p in net.backbone.parameters()}
    assert not backbone & {id(p) for p in net.parameters()}
    net.backbone.eval()
    net.train()
    assert not net.backbone.training


def test_same_seed_same_heads(untouched_random_state: None) -> None:
    first, again, other = attach(seed=1), attach(seed=1), attach(seed=2)
    assert identical(dict(first.state_dict()), dict(again.state_dict()))
    assert not identical(dict(first.state_dict()), dict(other.state_dict()))
    fresh = first.fresh_heads(1)
    assert identical(dict(fresh[2, 1].state_dict()), dict(first.head(2, "mlp").state_dict()))
    assert fresh[2, 1] is not first.head(2, "mlp")


@pytest.mark.parametrize("name", ["residual", "masked", "in-place", "two inputs", "bfloat16"])
def test_forward_all_equals_the_model(name: str) -> None:
    model, draw = TOYS[name]()
    net = attach_exits(model, draw(2))
    inputs = draw(5)
    before = clone(inputs)
    found, final = net.forward_all(inputs)
    assert torch.equal(final, answer(model, inputs))
    assert torch.equal(net(inputs), final)
    assert set(found) == {(p, c) for p, c, _ in net.exits()}
    assert all(out.shape == final.shape and out.dtype == final.dtype for out in found.values())
    assert identical(inputs, before)


def test_heads_see_the_feature_before_the_next_segment_changes_it() -> None:
    model, draw = TOYS["in-place"]()
    net = attach_exits(model, draw(2), heads=("linear",))
    found, _ = net.forward_all(draw(3))
    parts = net.partition
    feature = parts.segments[0](*parts.spec.flatten(draw(3)))[0]
    with torch.no_grad():
        assert torch.equal(found[1, 0], net.head(1, "linear").eval()(feature))


def test_the_answer_among_other_outputs() -> None:
    assert attach("dict").outputs == 3
    net = attach("dict", output="logits")
    assert net.output == "logits"
    inputs = TOYS["dict"]()[1](4)
    assert torch.equal(net.forward_all(inputs)[1], answer(net.backbone, inputs)["logits"])


def test_heads_follow_the_dtype_of_their_feature() -> None:
    """Under autocast a feature may be of another type than the model's output."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
            self.third = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = self.second(self.first(x))
            return self.third(x.float())

    net = attach_exits(seeded(Mixed), randn(4)(2), cuts="all", heads=("linear",))
    assert net.partition.cuts[0].dtype == torch.bfloat16
    found, _ = net.forward_all(randn(4)(3))
    assert found[1, 0].dtype == torch.bfloat16


def test_heads_that_do_not_apply_are_left_out() -> None:
    flat = attach("flat")
    assert [(p, flat.head_names[c]) for p, c, _ in flat.exits()] == [
        (p, name) for p in (1, 2, 3) for name in ("linear", "mlp")
    ]
    with pytest.raises(InputError, match="none of conv applies to features laid out NC; try 'linear'"):
        attach("flat", heads=("conv",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ()}, r"expected distinct names such as \('linear', 'mlp'\), or 'auto'; got \(\)"),
        ({"heads": "linear"}, "expected distinct names"),
        ({"heads": ("mlp", "mlp")}, "expected distinct names"),
        ({"heads": ("linear", "conf")}, "unknown head 'conf'; did you mean 'conv'"),
        ({"task": "classify"}, "unknown task 'classify'; did you mean 'classification'"),
        ({"confidence": "margins"}, "unknown confidence 'margins'"),
        ({"output": "logits"}, r"no 'logits' in \(B, 5\)"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attach(**options)


def test_an_output_that_is_no_answer() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    with pytest.raises(InputError, match=r"expected a tensor .batch, outputs., got \(B, 4, 8, 8\)"):
        attach_exits(model, randn(3, 8, 8)(2))


def test_a_model_without_a_place_for_an_exit_says_why() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    model = seeded(lambda: nn.Sequential(Scale(), Scale(), nn.Flatten(), nn.Linear(16, 3)))
    with pytest.raises(PartitionError, match="Sequential: found no place for an exit") as error:
        attach_exits(model, randn(4, 4)(2))
    assert "\n  0: the layout of the feature is unclear" in str(error.value)
    assert "try: cuts='all'" in str(error.value)
    with pytest.raises(PartitionError, match="it calls no sub-modules"):
        attach_exits(seeded(lambda: nn.Linear(4, 3)), randn(4)(2))


class FailsInEval(nn.Module):
    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__()
        self.part = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        raise ArithmeticError


def test_modes_of_heads_are_restored_after_an_error(registry: Iterator[None]) -> None:
    register_head("fails")(FailsInEval)
    net = attach(heads=("linear", "fails"))
    net.train()
    net.head(1, "linear").eval()
    before = [module.training for module in net.modules()]
    with pytest.raises(ArithmeticError):
        net.forward_all(randn(3, 8, 8)(2))
    assert [module.training for module in net.modules()] == before


def test_the_backbone_is_left_as_it_was() -> None:
    model, draw = TOYS["residual"]()
    model.train()
    before = state(model)
    attach_exits(model, draw(2)).forward_all(draw(3))
    after = state(model)
    assert identical(before.pop("values"), after.pop("values"))
    assert after == before


def test_inputs_that_do_not_fit(net: ExitNetwork) -> None:
    with pytest.raises(InputError, match="expected shape"):
        net.forward_all(torch.zeros(1, 3, 9, 9))


def test_macs_by_hand() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    count, out = count_macs(lambda: conv.to("meta")(torch.empty(2, 3, 5, 5, device="meta")))
    assert (count, tuple(out.shape)) == (2 * 25 * 27 * 8, (2, 8, 5, 5))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.drop = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x) * self.scale
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_macs_of_fused_attention_and_modes_restored() -> None:
    norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()  # needs two samples in training mode
    assert count_macs(lambda: count_module(norm, torch.empty(1, 4, device="meta")))[0] == 12
    module = Attending().train()
    count, _ = count_macs(lambda: count_module(module, torch.empty(1, 2, 6, 4, device="meta")))
    assert count == 2 * (2 * 6 * 6 * 4)  # two heads: queries by keys, weights by values
    assert module.training
    assert module.drop.training
    assert module.scale.device.type == "cpu"


def test_forward_runs_the_segments_alone(net: ExitNetwork) -> None:
    called: list[nn.Module] = []
    hooks = [
        head.register_forward_pre_hook(lambda head, _: called.append(head)) for _, _, head in net.exits()
    ]
    inputs = randn(3, 8, 8)(4)
    try:
        assert torch.equal(net(inputs), answer(net.backbone, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    assert not called


def test_a_network_in_one_line_and_in_a_notebook(net: ExitNetwork) -> None:
    heads = list(net.head_names)
    count = len(list(net.exits()))
    model = type(net.backbone).__name__
    assert repr(net) == (
        f"ExitNetwork({model}, {len(net.positions)} positions, {count} exits of {', '.join(heads)}, "
        "classification)"
    )
    table = read(net)
    assert table.heads == ["position", "feature", *heads]
    assert [row[0] for row in table.rows] == list(net.positions)
    assert f"{model} with {count} exits" in table.caption
    assert table.rows[0][1:] == ["\u2013"] * (1 + len(heads))  # nothing at the input
    p, c, head = next(net.exits())
    spec = net.specs[p]
    assert spec is not None
    assert table.rows[p][1] == " \u00d7 ".join(map(str, spec.shape))
    assert table.rows[p][2 + c] == f"{sum(each.numel() for each in head.parameters()):,}"


def test_exits_attached_in_inference_mode_can_be_trained() -> None:
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    for confidence in ("max-probability", "learned"):
        with torch.inference_mode():
            net = offramp.attach_exits(small.model(), x[:2], heads=("linear",), confidence=confidence)
        offramp.train_exits(net, [(x, y)], config=offramp.TrainConfig(epochs=1), progress=False)
        with torch.inference_mode():
            offramp.record_outputs(net, [(x, y)], progress=False)


def test_arrays_are_examples_and_batches() -> None:
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    net = offramp.attach_exits(small.model(), x[:2].numpy(), heads=("linear",))
    again = offramp.attach_exits(small.model(), x[:2], heads=("linear",))
    config = offramp.TrainConfig(epochs=1)
    offramp.train_exits(net, [(x.numpy(), y.numpy())], config=config, progress=False)
    offramp.train_exits(again, [(x, y)], config=config, progress=False)
    for name, value in again.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ([(torch.ones(2, 1, 8, 8), torch.ones(2))] * 3, "pass a batch of inputs, such as next"),
        (None, "expected a tensor, got NoneType; pass a batch of inputs"),
        (torch.ones(2, 1, 8, 8, dtype=torch.float64), "the model fails on example_inputs: .*type"),
    ],
)
def test_what_is_no_example(example: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        offramp.attach_exits(small.model(), example)


def test_a_network_takes_no_further_exits() -> None:
    net = offramp.attach_exits(small.model(), torch.ones(2, 1, 8, 8), heads=("linear",))
    with pytest.raises(
        InputError, match=r"the model has exits already; attach to the model inside, net\.backbone"
    ):
        offramp.attach_exits(net, torch.ones(2, 1, 8, 8))


def test_samples_and_lists_in_the_place_of_batches() -> None:
    x = torch.ones(3, 1, 8, 8)
    net = offramp.attach_exits(small.model(), x[:2], heads=("linear",))
    with pytest.raises(
        InputError, match=r"got one sample \(1, 8, 8\); add a dimension by unsqueeze.* DataLoader"
    ):
        net(x[0])
    with pytest.raises(InputError, match=r"expected 1 tensor, got 3; labels are no inputs.*torch\.stack"):
        net(list(x))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazy_modules_without_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.ReLU(), torch.nn.LazyLinear(2)).eval()
    with pytest.raises(PartitionError, match="run the model once on a batch, so that its lazy modules know"):
        offramp.attach_exits(model, torch.ones(2, 5))
    model(torch.ones(2, 5))
    offramp.attach_exits(model, torch.ones(2, 5))
