"""Exits at the model's input: given modules that stay as they are, and heads trained on the raw input."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import offramp
import small
from offramp import Engine, ExitChoice, ExitConfig
from offramp.artifacts.manifest import write_manifest
from offramp.errors import ArtifactError, InputError
from offramp.graph.macs import count_macs, count_module
from offramp.network.network import InputExit


class Little(nn.Module):
    """(B, 1, 8, 8) to (B, 3), with batch statistics that must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def little(seed: int = 3) -> Little:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Little()


def attach(kind: type[nn.Module], **options: object) -> offramp.ExitNetwork:
    return offramp.attach_exits(small.model(kind), small.inputs(kind), **options)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def made():
    x = small.inputs(small.Picture)
    x = torch.cat([x] * 4)[:64] + 0.1 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.arange(64) % 3
    given, model = little(), small.model(small.Picture)
    before = state(given)
    net = offramp.attach_exits(
        model, x[:2], heads=("linear",), input_exits={"little": given, "raw": "mlp", "again": little(4)}
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    report = offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=3, batch_size=16))
    return model, given, before, net, loader, x, report


def test_positions_and_columns(made):
    net = made[3]
    assert net.positions[0] == "input"
    assert net.head_names == ("linear", "little", "raw", "again")
    assert net.exists[0].tolist() == [False, True, True, True]
    assert not net.exists[1:, 1:].any()
    assert net.exists[1:, 0].all()
    assert [net.kind(0, c) for c in range(4)] == [None, None, "mlp", None]
    assert [(p, c) for p, c, _ in net.trained_exits()] == [(0, 2), (1, 0), (2, 0)]


def test_a_given_module_is_not_trained_and_a_head_on_the_input_is(made):
    _, given, before, net, _, x, report = made
    assert same(state(given), before)
    fresh = net.fresh_heads(0)
    assert set(fresh) == {(0, 2), (1, 0), (2, 0)}
    assert not same(state(fresh[0, 2]), state(net.head(0, "raw")))
    assert {(each.position, each.head) for each in report.exits} >= {("input", "raw"), ("blocks.0", "linear")}
    with torch.no_grad():
        assert torch.equal(net.forward_all(x)[0][0, 1], given.eval()(x))
        assert torch.equal(net.forward_all(x)[0][0, 2], net.head(0, "raw").eval()(x))


def test_costs_of_exits_at_the_input(made):
    net, x = made[3], made[5]
    costs = offramp.measure_cost(net)
    meta = x[:1].to("meta")
    for name in ("little", "again"):
        column = net.head_names.index(name)
        assert costs.heads[0, column] == count_macs(lambda: count_module(little(), meta))[0] > 0
    assert costs.heads[0, 2] == count_macs(lambda: count_module(net.head(0, "raw"), meta))[0] > 0
    assert costs.heads[0, 0] == 0
    assert costs.backbone[0] == 0


def test_records_search_and_engine_agree(made):
    _, _, _, net, loader, x, _ = made
    records, costs = offramp.record_outputs(net, loader), offramp.measure_cost(net)
    middle = float(np.median(records.confidence[0, 1]))
    several = [
        ExitConfig([ExitChoice("input", "little", middle)]),
        ExitConfig([ExitChoice("input", "raw", 0.35), ExitChoice("blocks.0", "linear", 0.34)]),
        *offramp.search(records, costs),
    ]
    engine = Engine(net)
    for config in several:
        engine.use(config)
        engine.reset_stats()
        out, outcome = engine(x), offramp.evaluate(records, costs, config)
        confidence_fn = np.ones(64, bool)
        for choice in config.choices:
            p, c = net.positions.index(choice.position), net.head_names.index(choice.head)
            confidence_fn &= np.abs(records.confidence[p, c] - choice.threshold) > 1e-5
        assert confidence_fn.mean() > 0.8
        np.testing.assert_array_equal(out.position.numpy()[confidence_fn], outcome.position[confidence_fn])
        if confidence_fn.all():
            stats = engine.stats()
            assert stats.macs / stats.full_macs == pytest.approx(outcome.relative_cost, rel=1e-9)
    engine.use(several[0])
    at_input = engine(x)
    assert 0 < (at_input.position == 0).sum() < 64
    one_by_one = torch.cat([engine(x[i : i + 1]).outputs for i in range(64)])
    torch.testing.assert_close(one_by_one, at_input.outputs)


def test_leaving_at_the_input_runs_nothing_else(made):
    net, x = made[3], made[5]
    engine = Engine(net, ExitConfig([ExitChoice("input", "little", -1.0)]))
    assert engine(x).position.tolist() == [0] * 64
    costs = offramp.measure_cost(net)
    assert engine.stats().macs == 64 * int(costs.heads[0, 1])


def test_an_artifact_brings_back_the_weights(made, tmp_path):
    model, _, before, net, loader, x, _ = made
    records, costs = offramp.record_outputs(net, loader), offramp.measure_cost(net)
    offramp.save(tmp_path / "a", net, offramp.search(records, costs), costs)
    others = {"little": little(9), "again": little(8)}
    again, _, more = offramp.load(tmp_path / "a", model, input_exits=others)
    assert again.head_names == net.head_names
    assert same(state(others["little"]), before)
    np.testing.assert_array_equal(more.heads, costs.heads)
    for exit_, out in net.forward_all(x)[0].items():
        assert torch.equal(again.forward_all(x)[0][exit_], out)
    with pytest.raises(ArtifactError, match=r"expected input exits again, little, got none; pass them"):
        offramp.load(tmp_path / "a", model)
    with pytest.raises(ArtifactError, match="do not fit this model"):
        offramp.load(tmp_path / "a", model, input_exits={"little": nn.Flatten(), "again": little()})


def test_several_inputs_go_to_a_given_module():
    class Counter(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"logits": torch.stack([(ids * mask).sum(1), mask.sum(1), ids.sum(1)], 1).float()}

    inputs = small.inputs(small.Tokens)
    net = offramp.attach_exits(
        small.model(small.Tokens), inputs, heads=("linear",), input_exits={"count": Counter()}
    )
    found, _ = net.forward_all(inputs)
    assert torch.equal(found[0, 1], Counter()(**inputs)["logits"])
    out = Engine(net, ExitConfig([ExitChoice("input", "count", -1.0)]))(inputs)
    assert torch.equal(out.outputs, found[0, 1])
    assert isinstance(net.head(0, "count"), InputExit)


class Overwriting(Little):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Named(Little):
    def forward(self, image: Tensor, size: int) -> Tensor:
        return super().forward(image)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ({"linear": little()}, "'linear' is a head's name already; choose another name"),
        ({"a.b": little()}, "expected names of letters, digits, '_' and '-'; got 'a.b'"),
        ({"x": 3}, r"input_exits\['x'\]: expected a trained torch.nn.Module or a kind of head, got a int"),
        ({"x": "convv"}, "unknown head 'convv'; did you mean 'conv'"),
        ({"x": nn.Sequential(nn.Flatten(), nn.Linear(64, 4))},
         r"expected outputs of shape \('B', 3\) like the model's, got \('B', 4\)"),
        ({"x": nn.Linear(3, 3)}, r"\['x'\]: calling it as the model is called fails: RuntimeError"),
        ({"x": Named()}, r"fails: TypeError.*; wrap it so that it takes the same inputs"),
        ({"x": nn.Flatten(0)}, r"input_exits\['x'\]: model output: expected a tensor \(batch, outputs\)"),
        ({"x": Overwriting()}, "it changes its input in place, which the model still needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_exit_at_the_input(exits, message):
    with pytest.raises(InputError, match=message):
        attach(small.Picture, heads=("linear",), input_exits=exits)


def test_heads_on_inputs_that_are_no_features():
    with pytest.raises(InputError, match=r"raw input needs floating point, 'ids' is torch.int64"):
        attach(small.Tokens, input_exits={"raw": "linear"})
    x = torch.randn(4, 6)
    with pytest.raises(InputError, match=r"input_exits\['raw'\]: a head 'conv' does not apply to"):
        offramp.attach_exits(small.model(small.Vector), x, heads=("linear",), input_exits={"raw": "conv"})


def test_a_layout_for_the_input(tmp_path):
    class Odd(small.Picture):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1).view(-1, 1, 8, 8))

    x = torch.randn(4, 8, 8, 1)
    options = {"heads": ("linear",), "input_exits": {"raw": "linear"}}
    with pytest.raises(InputError, match=r"the layout of input '0' of shape \('B', 8, 8, 1\) is unclear"):
        offramp.attach_exits(Odd(), x, **options)
    net = offramp.attach_exits(Odd(), x, layouts={"input": "NHWC"}, **options)
    assert net.specs[0].layout == "NHWC"
    assert net.specs[0].inputs
    costs = offramp.measure_cost(net)
    records = offramp.record_outputs(net, [(x, torch.zeros(4, dtype=torch.int64))])
    offramp.save(tmp_path / "a", net, offramp.search(records, costs), costs)
    again, _, _ = offramp.load(tmp_path / "a", net.backbone)
    assert again.specs == net.specs


def test_heads_by_position():
    net = offramp.attach_exits(
        small.model(small.Picture),
        small.inputs(small.Picture),
        heads={"blocks.1": ("mlp",), "blocks.0": ("linear",)},
    )
    assert net.head_names == ("linear", "mlp")
    assert net.exists.tolist() == [[False, False], [True, False], [False, True]]
    with pytest.raises(InputError, match=r"heads: no position 'blocks.9'; there are blocks.0, blocks.1"):
        attach(small.Picture, heads={"blocks.9": ("mlp",)})


def test_an_operation_that_cannot_be_counted():
    class Picky(Little):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if x.mean().item() > 0 else 2)

    net = attach(small.Picture, heads=("linear",), input_exits={"x": Picky()})
    with pytest.raises(InputError, match=r"operations of head 'x' at 'input'.*CostTable of your own"):
        offramp.measure_cost(net)


class Forgetful(Little):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().forward(x), training=self.training)


def test_a_given_module_keeps_its_modes_and_answers_in_eval_mode():
    given, inputs = Forgetful().train(), small.inputs(small.Picture)
    net = attach(small.Picture, heads=("linear",), input_exits={"odd": given})
    engine = Engine(net, ExitConfig([ExitChoice("input", "odd", -1.0)]))
    assert all(part.training for part in given.modules())
    first, again = engine(inputs).outputs, engine(inputs).outputs
    assert torch.equal(first, again)
    assert torch.equal(first, net.forward_all(inputs)[0][0, 1])
    assert all(part.training for part in given.modules())
    with torch.no_grad():
        assert torch.equal(first, given.eval()(inputs))


def test_answers_have_one_type_wherever_a_sample_leaves():
    model, inputs = small.model(small.Picture).bfloat16(), small.inputs(small.Picture).bfloat16()

    class Wide(Little):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    net = offramp.attach_exits(model, inputs[:2], heads=("linear",), input_exits={"wide": Wide()})
    for threshold in (-1.0, 2.0):
        out = Engine(net, ExitConfig([ExitChoice("input", "wide", threshold)]))(inputs)
        assert out.outputs.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["half", "pop", "training", "forward"])
def test_names_that_modules_have_already(name):
    with pytest.raises(InputError, match=f"input_exits: '{name}' cannot be a name; try '{name}1'"):
        attach(small.Picture, heads=("linear",), input_exits={name: little()})


def test_a_load_that_fails_leaves_a_given_module_alone(made, tmp_path):
    model, _, _, net, loader, _, _ = made
    records, costs = offramp.record_outputs(net, loader), offramp.measure_cost(net)
    offramp.save(tmp_path / "a", net, offramp.search(records, costs), costs)
    fewer = offramp.CostTable(costs.backbone[:-1], costs.heads[:-1], "macs")
    (tmp_path / "a" / "costs.json").write_text(fewer.to_json())
    document = json.loads((tmp_path / "a" / "manifest.json").read_text())
    described = {key: document[key] for key in ("backbone", "network", "inputs")}
    (tmp_path / "a" / "manifest.json").unlink()
    write_manifest(tmp_path / "a", described)
    others = {"little": little(9), "again": little(8)}
    before = state(others["little"])
    with pytest.raises(ArtifactError, match="its parts do not belong together"):
        offramp.load(tmp_path / "a", model, input_exits=others)
    assert same(state(others["little"]), before)


def test_a_quantised_exit_is_run_with_costs_given_and_cannot_be_stored(tmp_path):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of another package
        quantised = torch.ao.quantization.quantize_dynamic(linear, {nn.Linear})
    inputs = small.inputs(small.Picture)
    net = attach(small.Picture, heads=("linear",), input_exits={"int8": quantised})
    with pytest.raises(InputError, match=r"CostTable of your own for search and Engine\(costs=...\)"):
        Engine(net)
    costs = offramp.CostTable([0, 1, 2, 3], [[0, 1], [1, 0], [1, 0]], "macs")
    out = Engine(net, ExitConfig([ExitChoice("input", "int8", -1.0)]), costs=costs)(inputs)
    assert out.position.tolist() == [0] * len(inputs)
    records = offramp.record_outputs(net, [(inputs, torch.zeros(len(inputs), dtype=torch.int64))])
    with pytest.raises(
        InputError, match=r"cannot store a head or an exit at the input: .* is not an ordinary tensor"
    ):
        offramp.save(tmp_path / "a", net, offramp.search(records, costs), costs)
