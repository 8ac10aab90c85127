"""The engine against the simulation, one by one, under switching, and on awkward input."""

import math
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import offramp
from offramp import Engine, ExitChoice, ExitConfig
from offramp.errors import InputError
from offramp.runtime.plan import Planner

ONE = offramp.Expected(1, 1, 1, 1, 1)
BORDER = 1e-5  # batch size moves the last bits of a confidence


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(4)))
        self.classify = nn.Linear(8, 3)

    def forward(self, x):
        return self.classify(self.blocks(self.stem(x)).mean((2, 3)))


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.across, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x, weight):
        mean = (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        return self.norm(x + torch.tanh(self.across(x + mean)))


class Tokens(nn.Module):
    """Integer tokens with a mask that every block reads: it must shrink together with the feature."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.layers = nn.ModuleList(Mixer(12) for _ in range(3))
        self.classify = nn.Linear(12, 4)

    def forward(self, tokens, mask):
        weight = mask.float().unsqueeze(-1)
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, weight)
        return {"logits": self.classify((x * weight).sum(1)), "hidden": x}


@pytest.fixture(scope="module")
def setting():
    """A trained toy network, its records, and a frontier with early exits of every kind."""
    torch.manual_seed(0)
    model, random = Images().eval(), torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (160,), generator=random)
    x = torch.randn(160, 1, 8, 8, generator=random) + (y - 1).view(-1, 1, 1, 1) * 0.5
    loader = DataLoader(TensorDataset(x, y), batch_size=40)
    net = offramp.attach_exits(model, x[:2], heads=("linear", "mlp", "conv"))
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=4))
    records, costs = offramp.record_outputs(net, loader), offramp.measure_cost(net)
    return net, x, records, costs, several_configs(records)


def several_configs(records):
    """Thresholds at quantiles, so that samples leave everywhere: what a search returns can be one-sided."""
    configs = [ExitConfig()]
    for share in (0.2, 0.5, 0.8):
        for heads in (("linear", "mlp", "conv"), ("mlp", "linear", "mlp"), ("conv", "conv", "linear")):
            choices = []
            for position, head in zip(records.positions[1:], heads, strict=False):
                p, c = records.positions.index(position), records.heads.index(head)
                choices.append(
                    ExitChoice(position, head, float(np.quantile(records.confidence[p, c], share)))
                )
            configs += [ExitConfig(choices), ExitConfig(choices[::2]), ExitConfig(choices[1:2])]
    return configs


def decided(records, config):
    """Samples whose confidences are clear of every threshold."""
    clear = np.ones(records.samples, bool)
    for choice in config.choices:
        p, c = records.positions.index(choice.position), records.heads.index(choice.head)
        clear &= np.abs(records.confidence[p, c] - np.float32(choice.threshold)) >= BORDER
    return clear


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_engine_equals_evaluate(setting, batch):
    net, x, records, costs, configs = setting
    engine, compared = Engine(net), 0
    for config in configs[:: 4 if batch == 1 else 1]:
        engine.use(config)
        engine.reset_stats()
        outs = [engine(part) for part in x.split(batch)]
        position = torch.cat([out.position for out in outs]).numpy()
        outcome, clear = offramp.evaluate(records, costs, config), decided(records, config)
        np.testing.assert_array_equal(position[clear], outcome.position[clear])
        compared += clear.sum()
        stats = engine.stats()
        if (position == outcome.position).all():
            assert stats.macs == round(outcome.cost * records.samples)
        assert stats.exits == tuple(np.bincount(position, minlength=len(net.positions) + 1))
        assert stats.samples == records.samples
        assert stats.full_macs == records.samples * int(costs.full)
    assert compared > 0.9 * len(x) * len(configs[:: 4 if batch == 1 else 1])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batched_equals_one_by_one(setting, batch):
    net, x, records, _, configs = setting
    clear = decided(records, configs[4])
    engine = Engine(net, configs[4])
    whole, parts = engine(x), [engine(part) for part in x.split(batch)]
    assert len(set(whole.position.tolist())) > 2  # or the test would say little
    position = torch.cat([part.position for part in parts])
    assert (position == whole.position).numpy()[clear].all()
    same = (position == whole.position).nonzero().flatten()
    # 1e-5: convolutions of other batch sizes sum in another order
    for name in ("outputs", "confidence"):
        got = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(got[same], getattr(whole, name)[same], rtol=1e-5, atol=1e-5)


def test_outputs_are_those_of_the_exit_taken(setting):
    net, x, _, _, configs = setting
    for config in configs[1:6]:
        out = Engine(net, config)(x)
        answers, final = net.forward_all(x)
        heads = {c.position: c.head for c in config.choices}
        for i, p in enumerate(out.position.tolist()):
            if p == len(net.positions):
                expected = final[i]
            else:
                expected = answers[p, net.head_names.index(heads[net.positions[p]])][i]
            torch.testing.assert_close(out.outputs[i], expected, rtol=1e-5, atol=1e-5)


def test_without_exits_it_is_the_model_bit_for_bit(setting):
    net, x, *_ = setting
    never = ExitConfig([ExitChoice(position, "mlp", math.inf) for position in net.positions[1:]])
    with torch.inference_mode():
        wanted = net.backbone(x)
    for config in (ExitConfig(), never):
        out = Engine(net, config)(x)
        assert torch.equal(out.outputs, wanted)
        assert (out.position == len(net.positions)).all()
        assert torch.equal(out.confidence, wanted.softmax(1).amax(1))


def test_minus_infinity_lets_everything_leave_and_nothing_later_runs(setting):
    net, x, *_ = setting
    engine = Engine(net, ExitConfig([ExitChoice(net.positions[1], "linear", -math.inf)]))
    with counted_calls(net) as calls:
        out = engine(x)
    assert (out.position == 1).all()
    assert calls == {(1, "linear"): 1}


def test_positions_without_an_enabled_exit_cost_nothing(setting):
    net, x, *_ = setting
    engine = Engine(net, ExitConfig([ExitChoice(net.positions[2], "mlp", 2.0)]))
    with counted_calls(net) as calls:
        engine(x)
    assert calls == {(2, "mlp"): 1}


@contextmanager
def counted_calls(net):
    """How often each head is called: {(position, head name): calls}."""
    calls, hooks = {}, []
    for p, c, head in net.exits():
        key = (p, net.head_names[c])
        count = lambda *_, key=key: calls.update({key: calls.get(key, 0) + 1})  # noqa: E731
        hooks.append(head.register_forward_pre_hook(count))
    yield calls
    for hook in hooks:
        hook.remove()


def test_masks_shrink_with_the_feature():
    torch.manual_seed(0)
    model = Tokens().eval()
    tokens, mask = (
        torch.randint(0, 20, (64, 9)),
        torch.arange(9).expand(64, 9) < torch.randint(1, 10, (64, 1)),
    )
    inputs = {"tokens": tokens, "mask": mask}
    example, cuts = {name: value[:2] for name, value in inputs.items()}, ("layers.0", "layers.1")
    net = offramp.attach_exits(model, example, heads=("linear",), cuts=cuts)
    assert net.positions[1:] == ("layers.0", "layers.1")
    answers, final = net.forward_all(inputs)
    torch.testing.assert_close(final, model(**inputs)["logits"], rtol=0, atol=0)
    first, second = (answers[p, 0].softmax(1).amax(1) for p in (1, 2))
    config = ExitConfig([ExitChoice("layers.0", "linear", float(first.median())),
                         ExitChoice("layers.1", "linear", float(second.median()))])  # fmt: skip
    out = Engine(net, config)(inputs)
    wanted = torch.where(first > first.median(), 1, torch.where(second > second.median(), 2, 3))
    assert out.position.tolist() == wanted.tolist()
    assert len(set(wanted.tolist())) == 3
    rows = torch.arange(64)
    expected = torch.stack([answers[1, 0], answers[2, 0], final])[wanted - 1, rows]
    torch.testing.assert_close(out.outputs, expected, rtol=1e-5, atol=1e-5)


def test_switching_from_another_thread_never_mixes(setting):
    net, x, _, _, configs = setting
    batch, a, b = x[:32], configs[3], configs[7]
    engine = Engine(net, a, prepare=[b])
    alone = []
    for config in (a, b):
        engine.use(config)
        alone.append(engine(batch))
    assert alone[0].position.tolist() != alone[1].position.tolist()
    done = threading.Event()

    def switch():
        for i in range(10_000):
            engine.use((a, b)[i % 2])
        done.set()

    thread = threading.Thread(target=switch)
    thread.start()
    results = []
    while not done.is_set() or len(results) < 20:
        results.append(engine(batch))
    thread.join()
    for out in results:
        assert any(
            torch.equal(out.position, one.position)
            and torch.equal(out.outputs, one.outputs)
            and torch.equal(out.confidence, one.confidence)
            for one in alone
        )


def test_a_call_under_way_finishes_under_its_configuration(setting):
    net, x, _, _, configs = setting
    a, b = configs[3], ExitConfig()
    engine = Engine(net, a, prepare=[b])
    wanted = engine(x)
    first = net.head(net.positions.index(a.choices[0].position), a.choices[0].head)
    hook = first.register_forward_hook(lambda *_: engine.use(b))
    try:
        out = engine(x)
    finally:
        hook.remove()
    assert torch.equal(out.position, wanted.position)
    assert engine.config == b
    assert (engine(x).position == len(net.positions)).all()


def test_not_finite_confidences_never_exit(setting):
    net, x, *_ = setting
    bad = x[:6].clone()
    bad[[1, 4]] = math.nan
    engine = Engine(net, ExitConfig([ExitChoice(net.positions[1], "mlp", -math.inf)]))
    out = engine(bad)
    assert out.position.tolist() == [1, len(net.positions), 1, 1, len(net.positions), 1]
    assert torch.isnan(out.outputs[[1, 4]]).all()


@contextmanager
def certain(net, value):
    """Every exit of engines made inside is of this confidence."""
    own = net.confidence_of
    net.confidence_of = lambda *_: lambda outputs, mask=None: torch.full((len(outputs),), value)
    yield
    net.confidence_of = own


def test_infinite_confidence_never_exits(setting):
    net, x, *_ = setting
    with certain(net, math.inf):
        engine = Engine(net, ExitConfig([ExitChoice(net.positions[1], "mlp", 0.1)]))
    assert (engine(x[:5]).position == len(net.positions)).all()


def test_thresholds_are_compared_in_float32(setting):
    """The float32 nearest to 0.1 is above 0.1: a sample of exactly that confidence stays."""
    net, x, *_ = setting
    with certain(net, 0.1):
        engine = Engine(net, ExitConfig([ExitChoice(net.positions[1], "mlp", 0.1)]))
    assert (engine(x[:5]).position == len(net.positions)).all()


def test_what_is_no_configuration_or_network_is_refused(setting):
    net, _, _, _, configs = setting
    engine = Engine(net, configs[1])
    for wrong in (None, "fast", [configs[1]], offramp.Frontier([offramp.ExitConfig((), expected=ONE)])):
        with pytest.raises(InputError, match="expected an ExitConfig, such as"):
            engine.use(wrong)
    for wrong in ("inductor", "", configs[1]):
        with pytest.raises(InputError, match="expected an Execution, such as"):
            engine.use(execution=wrong)
    with pytest.raises(InputError, match="expected a network from attach_exits, got a Images"):
        Engine(net.backbone)
    assert engine.config == configs[1]


def test_a_configuration_prepared_by_two_threads_is_built_once(setting, monkeypatch):
    net, _, _, _, configs = setting
    engine, built = Engine(net), []
    plan = Planner.plan

    def slowly(self, config):
        built.append(config)
        threading.Event().wait(0.05)
        return plan(self, config)

    monkeypatch.setattr(Planner, "plan", slowly)
    threads = [threading.Thread(target=engine.prepare, args=(configs[5],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [configs[5]]


def test_plans_do_not_pile_up(setting, monkeypatch):
    net, x, *_ = setting
    monkeypatch.setattr("offramp.core.plan_cache._MOST", 5)
    engine = Engine(net)
    for i in range(20):
        engine.use(ExitConfig([ExitChoice(net.positions[1], "mlp", i / 20)]))
        engine(x[:2])
    assert len(engine._plans) == 5


def test_empty_batch_and_batch_of_one(setting):
    net, x, _, _, configs = setting
    engine = Engine(net, configs[2])
    empty = engine(x[:0])
    assert (empty.outputs.shape, empty.position.shape, empty.confidence.shape) == ((0, 3), (0,), (0,))
    assert engine.stats().samples == 0
    assert engine(x[:1]).outputs.shape == (1, 3)


def test_nothing_of_the_model_changes(setting):
    net, x, _, _, configs = setting
    model = net.backbone
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        for config in configs[:4]:
            Engine(net, config)(x)
        assert model.training
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_switch_to_an_unknown_configuration_changes_nothing(setting):
    net, x, _, _, configs = setting
    engine = Engine(net, configs[2])
    with pytest.raises(InputError, match=r"unknown position 'nowhere'; known: input, "):
        engine.use(ExitConfig([ExitChoice("nowhere", "mlp", 0.5)]))
    with pytest.raises(InputError, match=r"unknown head 'huge'; known: linear, mlp, conv"):
        engine.use(ExitConfig([ExitChoice("blocks.0", "huge", 0.5)]))
    with pytest.raises(InputError, match=r"no head 'mlp' at 'input'; it has: none"):
        engine.use(ExitConfig([ExitChoice("input", "mlp", 0.5)]))
    with pytest.raises(InputError, match="comes too late"):
        engine.use(ExitConfig([ExitChoice("blocks.1", "mlp", 0.5), ExitChoice("blocks.0", "mlp", 0.5)]))
    assert engine.config == configs[2]
    engine(x[:2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 1, 9, 8), r"expected shape \(B, 1, 8, 8\), got \(2, 1, 9, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.float64), "expected torch.float32, got torch.float64"),
        ({"x": torch.zeros(2, 1, 8, 8)}, "expected a tensor or a tuple"),
        ((torch.zeros(2, 1, 8, 8),) * 2, "expected 1 tensor, got 2"),
        ([[0.0]], "expected a tensor"),
    ],
)
def test_wrong_inputs(setting, wrong, message):
    with pytest.raises(InputError, match=message):
        Engine(setting[0])(wrong)
