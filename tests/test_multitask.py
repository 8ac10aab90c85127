"""Several tasks over one backbone: one call against one engine per task, and against the simulation."""

from __future__ import annotations

import copy
import math
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import offramp
import small
from offramp import Engine, ExitChoice, ExitConfig
from offramp.core.joint import evaluate_together
from offramp.errors import InputError, PartitionError
from offramp.network.multitask import attach_tasks, labels_of, with_answers
from offramp.runtime.multi_engine import MultiEngine
from offramp.tasks.base import make_task

BORDER = 1e-5  # batch size moves the last bits of a confidence


class Shared(nn.Module):
    """(B, 1, 8, 8) to {"what": (B, 3), "where": (B, 2), "much": (B, 1)}; positions input, blocks.0 to .2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.Sequential(*(small.Block(6) for _ in range(4)))
        self.what, self.where, self.much = nn.Linear(6, 3), nn.Linear(24, 2), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.blocks(self.stem(x))
        pooled, grid = x.mean((2, 3)), nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return {"what": self.what(pooled), "where": self.where(grid), "much": self.much(pooled)}


class Guess(nn.Module):
    """A small model for one of the tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


TASKS = ("what", "where", "much")


def data(count: int = 150) -> TensorDataset:
    random = torch.Generator().manual_seed(1)
    what, where = (torch.randint(0, k, (count,), generator=random) for k in (3, 2))
    x = 0.7 * torch.randn(count, 1, 8, 8, generator=random) + (what - 1).view(-1, 1, 1, 1) * 0.5
    x[torch.arange(count), 0, :, 3 * where] += 0.7
    return TensorDataset(x, what, where, x.mean((1, 2, 3)))


class Setting:
    """Three tasks, trained a little, their records, and settings in which samples leave everywhere."""

    def __init__(self) -> None:
        self.data = data()
        self.x = self.data.tensors[0]
        loader = DataLoader(self.data, batch_size=50)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            guess = Guess()
        self.networks = attach_tasks(
            small.model(Shared),
            self.x[:2],
            {
                "what": {"heads": ("linear", "mlp"), "input_exits": {"guess": guess}},
                "where": {"heads": ("linear",), "input_exits": {"raw": "linear"}},
                "much": {"heads": ("linear",), "task": make_task("regression", scale=1.0)},
            },
        )
        train = offramp.TrainConfig(epochs=2)
        self.records, self.costs = {}, {}
        for i, (name, net) in enumerate(self.networks.items()):
            offramp.train_exits(net, labels_of(loader, i), config=train)
            self.records[name] = offramp.record_outputs(net, labels_of(loader, i))
            self.costs[name] = offramp.measure_cost(net)
        self.settings = [
            {},
            {"what": self.config("what", {"input": "guess", "blocks.1": "mlp"}, 0.5)},
            {name: self.config(name, {"blocks.0": "linear", "blocks.2": "linear"}, 0.5) for name in TASKS},
            {
                "what": self.config("what", {"input": "guess", "blocks.0": "mlp", "blocks.2": "linear"}, 0.7),
                "where": self.config("where", {"input": "raw", "blocks.1": "linear"}, 0.4),
                "much": self.config("much", {"blocks.0": "linear", "blocks.2": "linear"}, 0.6),
            },
        ]

    def config(self, task: str, exits: dict[str, str], share: float) -> ExitConfig:
        """Thresholds at a quantile of the confidences."""
        records, choices = self.records[task], []
        for position, head in exits.items():
            p, c = records.positions.index(position), records.heads.index(head)
            threshold = float(np.quantile(records.confidence[p, c], share))
            choices.append(ExitChoice(position, head, threshold))
        return ExitConfig(choices)

    def full(self, setting: dict[str, ExitConfig]) -> dict[str, ExitConfig]:
        return {name: setting.get(name, ExitConfig()) for name in TASKS}

    def clear(self, setting: dict[str, ExitConfig]) -> np.ndarray:
        """Samples whose confidences are clear of every threshold of every task."""
        clear = np.ones(len(self.x), bool)
        for name, config in setting.items():
            records = self.records[name]
            for choice in config.choices:
                p, c = records.positions.index(choice.position), records.heads.index(choice.head)
                clear &= np.abs(records.confidence[p, c] - np.float32(choice.threshold)) >= BORDER
        return clear


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def close(a: Tensor, b: Tensor) -> None:
    # 1e-5: convolutions of other batch sizes sum in another order
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_networks_share_their_segments_and_are_those_of_attach_exits(setting):
    nets = setting.networks
    assert list(nets) == list(TASKS)
    assert len({id(net.partition) for net in nets.values()}) == 1
    assert [net.answer_shape for net in nets.values()] == [(3,), (2,), (1,)]
    assert [net.output for net in nets.values()] == list(TASKS)
    assert [net.task.name for net in nets.values()] == ["classification", "classification", "regression"]
    alone = offramp.attach_exits(nets["what"].backbone, setting.x[:2], heads=("linear", "mlp"), output="what")
    assert alone.positions == nets["what"].positions
    model = nets["what"].backbone(setting.x)
    for name, net in nets.items():
        assert torch.equal(net(setting.x), model[name])


@pytest.mark.parametrize("batch", [1, 7, 150])
def test_each_task_answers_as_an_engine_of_its_own(setting, batch):
    several, singles = MultiEngine(setting.networks), {n: Engine(setting.networks[n]) for n in TASKS}
    for configs in setting.settings[1 if batch == 1 else 0 :]:
        several.use(setting.full(configs))
        several.reset_stats()
        x = setting.x[:40] if batch == 1 else setting.x
        outs = [several(part) for part in x.split(batch)]
        clear, spent = torch.from_numpy(setting.clear(configs))[: len(x)], 0
        assert clear.float().mean() > 0.9
        for name, single in singles.items():
            single.use(several.configs[name])
            single.reset_stats()
            wanted = single(x)
            position = torch.cat([out[name].position for out in outs])
            assert torch.equal(position[clear], wanted.position[clear])
            same = position == wanted.position
            close(torch.cat([out[name].outputs for out in outs])[same], wanted.outputs[same])
            close(torch.cat([out[name].confidence for out in outs])[same], wanted.confidence[same])
            spent += single.stats().macs
            if same.all():
                assert several.stats().exits[name] == single.stats().exits
        if clear.all():
            assert several.stats().separate_macs == spent
        assert several.stats().macs <= several.stats().separate_macs


def test_a_task_may_name_its_output(setting):
    model = setting.networks["what"].backbone
    nets = attach_tasks(model, setting.x[:2], {"where": {"heads": ("linear",)}, "place": {"output": "where"}})
    out = MultiEngine(nets)(setting.x)
    assert torch.equal(out["where"].outputs, out["place"].outputs)
    assert nets["where"].head_names == ("linear",)


def test_samples_leave_everywhere_and_at_different_places(setting):
    """Or the other tests would say little."""
    out = MultiEngine(setting.networks, setting.settings[3])(setting.x)
    assert set(out["what"].position.tolist()) == {0, 1, 3, 4}
    assert set(out["where"].position.tolist()) == {0, 2, 4}
    assert set(out["much"].position.tolist()) == {1, 3, 4}


def test_the_simulation_says_what_the_engine_spends(setting):
    several = MultiEngine(setting.networks)
    compared = 0
    for configs in setting.settings:
        full, clear = setting.full(configs), setting.clear(configs)
        several.use(full)
        several.reset_stats()
        out = several(setting.x[clear])
        records = {name: each.subset(clear) for name, each in setting.records.items()}
        joint = evaluate_together(records, setting.costs, full)
        stats = several.stats()
        for name in TASKS:
            np.testing.assert_array_equal(out[name].position.numpy(), joint.tasks[name].position)
        assert stats.macs == round(joint.cost * clear.sum())
        assert stats.separate_macs == round(joint.separate_cost * clear.sum())
        assert stats.macs / stats.full_macs == pytest.approx(joint.relative_cost, rel=1e-12)
        assert stats.samples == clear.sum()
        compared += len({*joint.position.tolist()})
    assert compared > 5


def test_the_joint_cost_by_hand():
    """Three samples: each pays the backbone to the deeper of its two exits, and all heads passed."""
    backbone = [0.0, 10, 30, 100]

    def records(confidence):
        one = np.array(confidence, np.float32)[:, None]  # (P, 1, N)
        exists = np.array([[False], [True], [True]])
        return offramp.ExitRecords(one, one, np.ones(3, np.float32), exists, ("input", "a", "b"), ("h",))

    what = records([[0, 0, 0], [0.9, 0.1, 0.1], [0.9, 0.9, 0.1]])  # leaves at a, b, the output
    where = records([[0, 0, 0], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9]])  # at a, a, b
    config = ExitConfig([ExitChoice("a", "h", 0.5), ExitChoice("b", "h", 0.5)])
    costs = {
        "what": offramp.CostTable(backbone, [[0.0], [1], [2]], "macs"),
        "where": offramp.CostTable(backbone, [[0.0], [3], [4]], "macs"),
    }
    joint = evaluate_together({"what": what, "where": where}, costs, {"what": config, "where": config})
    assert joint.position.tolist() == [1, 2, 3]
    assert joint.cost * 3 == pytest.approx((10 + 1 + 3) + (30 + 3 + 3) + (100 + 3 + 7))
    assert joint.separate_cost * 3 == pytest.approx((10 + 1) + (30 + 3) + (100 + 3) + (10 + 3) * 2 + (30 + 7))
    assert joint.relative_cost == pytest.approx(joint.cost / 100)
    assert joint.share == pytest.approx(joint.cost / joint.separate_cost)
    alone = evaluate_together({"what": what}, costs, {"what": config})
    assert alone.cost == alone.separate_cost == offramp.evaluate(what, costs["what"], config).cost
    assert joint.tasks["what"].quality == alone.tasks["what"].quality


def test_a_call_may_ask_for_some_of_the_tasks(setting):
    several = MultiEngine(setting.networks, setting.settings[3])
    everything = several(setting.x)
    for names in (("where",), ("much", "what")):
        several.reset_stats()
        out = several(setting.x, tasks=names)
        assert list(out) == list(names)
        records = {name: setting.records[name] for name in names}
        joint = evaluate_together(records, setting.costs, {n: several.configs[n] for n in names})
        for name in names:
            assert torch.equal(out[name].position, everything[name].position)
            close(out[name].outputs, everything[name].outputs)
        assert several.stats().macs == round(joint.cost * len(setting.x))
        assert all(sum(several.stats().exits[name]) == len(setting.x) * (name in names) for name in TASKS)


def test_each_sample_may_ask_for_its_own_tasks(setting):
    several = MultiEngine(setting.networks, setting.settings[3])
    everything = several(setting.x)
    wants = torch.rand(len(setting.x), 3, generator=torch.Generator().manual_seed(0)) < 0.5
    assert (~wants.any(1)).any()
    several.reset_stats()
    kept = wants.clone()
    out = several(setting.x, tasks=wants)
    assert torch.equal(wants, kept)
    for i, name in enumerate(TASKS):
        asked = wants[:, i]
        assert torch.equal(out[name].position[asked], everything[name].position[asked])
        assert (out[name].position[~asked] == -1).all()
        assert out[name].outputs[~asked].isnan().all()
        assert out[name].confidence[~asked].isnan().all()
        close(out[name].outputs[asked], everything[name].outputs[asked])
        assert sum(several.stats().exits[name]) == asked.sum()
    assert several.stats().samples == wants.any(1).sum()
    nothing = several(setting.x, tasks=torch.zeros_like(wants))
    assert [out.outputs.shape for out in nothing.values()] == [(150, 3), (150, 2), (150, 1)]
    assert all(out.outputs.isnan().all() for out in nothing.values())


def test_heads_see_only_samples_that_want_their_task_and_nothing_runs_after_the_last_answer(setting):
    net = setting.networks["what"]
    early = ExitConfig([ExitChoice("blocks.0", "linear", -math.inf)])
    later = setting.config("what", {"blocks.1": "linear"}, 0.5)
    seen: list[tuple[str, int]] = []
    hooks = [
        setting.networks[task]
        .head(p, "linear")
        .register_forward_pre_hook(lambda _, args, key=f"{task}@{p}": seen.append((key, len(args[0]))))
        for task in ("what", "where")
        for p in (1, 2, 3)
    ]
    several = MultiEngine(setting.networks, {"what": later, "where": early})
    wants = torch.zeros(len(setting.x), 3, dtype=torch.bool)
    wants[:60, 0] = wants[50:80, 1] = True
    seen.clear()
    try:
        several(setting.x, tasks=wants)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [("where@1", 30), ("what@2", 60)]
    several.reset_stats()
    several(setting.x, tasks=("where",))
    costs = setting.costs["where"]
    assert several.stats().macs == 150 * int(costs.backbone[1] + costs.heads[1, 0])
    assert net.positions[1] == "blocks.0"


def test_without_exits_it_is_the_model_bit_for_bit(setting):
    with torch.inference_mode():
        wanted = setting.networks["what"].backbone(setting.x)
    several = MultiEngine(setting.networks)
    out = several(setting.x)
    for name in TASKS:
        assert torch.equal(out[name].outputs, wanted[name])
        assert (out[name].position == 4).all()
    stats = several.stats()
    assert stats.macs == stats.full_macs == 150 * int(setting.costs["what"].full)
    assert stats.separate_macs == 3 * stats.full_macs


def test_empty_batch_and_batch_of_one(setting):
    several = MultiEngine(setting.networks, setting.settings[3])
    empty = several(setting.x[:0])
    for name, width in zip(TASKS, (3, 2, 1), strict=True):
        out = empty[name]
        assert (out.outputs.shape, out.position.shape, out.confidence.shape) == ((0, width), (0,), (0,))
    assert several.stats().samples == several.stats().macs == 0
    assert several(setting.x[:1])["much"].outputs.shape == (1, 1)


def test_not_finite_confidences_never_exit(setting):
    bad = setting.x[:4].clone()
    bad[2] = math.nan
    exits = {name: ExitConfig([ExitChoice("blocks.0", "linear", -math.inf)]) for name in ("what", "where")}
    out = MultiEngine(setting.networks, exits)(bad, tasks=("what", "where"))
    for each in out.values():
        assert each.position.tolist() == [1, 1, 4, 1]
        assert each.outputs[2].isnan().all()


def test_infinite_confidences_never_exit(setting, monkeypatch):
    def certain(outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.full((len(outputs),), math.inf)

    monkeypatch.setattr(setting.networks["what"], "confidence_of", lambda *_: certain)
    exits = {"what": ExitConfig([ExitChoice("blocks.0", "linear", 0.1)])}
    assert (MultiEngine(setting.networks, exits)(setting.x[:5])["what"].position == 4).all()


def test_a_switch_is_for_all_tasks_at_once_and_from_any_thread(setting):
    x, a, b = setting.x[:40], setting.full(setting.settings[2]), setting.full(setting.settings[3])
    several = MultiEngine(setting.networks, a, prepare=[b])
    alone = []
    for configs in (a, b):
        several.use(configs)
        alone.append(several(x))
    done = threading.Event()

    def switch():
        for i in range(4000):
            several.use((a, b)[i % 2])
        done.set()

    thread = threading.Thread(target=switch)
    thread.start()
    results = []
    while not done.is_set() or len(results) < 10:
        results.append(several(x))
    thread.join()
    for out in results:
        assert any(
            all(
                torch.equal(out[name].position, one[name].position)
                and torch.equal(out[name].outputs, one[name].outputs)
                for name in TASKS
            )
            for one in alone
        )


def test_a_call_under_way_finishes_under_its_setting(setting):
    several = MultiEngine(setting.networks, setting.settings[2])
    wanted = several(setting.x)
    first = setting.networks["what"].head(1, "linear")
    hook = first.register_forward_hook(lambda *_: several.use(setting.full({})))
    try:
        out = several(setting.x)
    finally:
        hook.remove()
    assert all(torch.equal(out[name].position, wanted[name].position) for name in TASKS)
    assert all((each.position == 4).all() for each in several(setting.x).values())


def test_switching_one_task_keeps_the_others(setting):
    several = MultiEngine(setting.networks, setting.settings[3])
    other = setting.settings[2]["where"]
    several.use({"where": other})
    assert several.configs == {**setting.settings[3], "where": other}


def test_plans_do_not_pile_up(setting, monkeypatch):
    monkeypatch.setattr("offramp.core.plan_cache._MOST", 4)
    several = MultiEngine(setting.networks)
    for i in range(12):
        several.use({"what": ExitConfig([ExitChoice("blocks.0", "mlp", i / 20)])})
    assert len(several._plans) == 4


class Text(small.Tokens):
    """Two answers of different depth of meaning, and a mask that must shrink with the feature."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 2)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        weight = attention_mask.to(torch.float32).unsqueeze(-1)
        x = self.embed(ids) * weight
        for layer in self.layers:
            x = layer(x)
        pooled = (x * weight).sum(1)
        return {"topic": self.top(pooled), "tone": self.second(pooled)}


def test_masks_go_to_every_tasks_heads():
    inputs = small.inputs(small.Tokens, 60)
    inputs = {"ids": inputs["ids"], "attention_mask": inputs["mask"]}
    few = {name: value[:2] for name, value in inputs.items()}
    nets = attach_tasks(
        small.model(Text), few, {"topic": {"heads": ("mlp",)}, "tone": {"heads": ("linear",)}}
    )
    configs = {}
    for name, net in nets.items():
        assert net.mask_input == 1
        answers, _ = net.forward_all(inputs)
        confidence = {p: net.confidence_of(p, 0)(answers[p, 0]) for p in (1, 2)}
        configs[name] = ExitConfig(
            [ExitChoice(net.positions[p], net.head_names[0], float(confidence[p].median())) for p in (1, 2)]
        )
    out = MultiEngine(nets, configs)(inputs)
    for name, net in nets.items():
        wanted = Engine(net, configs[name])(inputs)
        assert torch.equal(out[name].position, wanted.position)
        assert len(set(wanted.position.tolist())) == 3
        close(out[name].outputs, wanted.outputs)


def test_answers_per_token_beside_one_per_sample():
    class Tagger(Text):
        def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            x = self.embed(ids) * attention_mask.to(torch.float32).unsqueeze(-1)
            for layer in self.layers:
                x = layer(x)
            return {"topic": self.top(x.sum(1)), "tags": self.second(x)}

    inputs = small.inputs(small.Tokens, 40)
    inputs = {"ids": inputs["ids"], "attention_mask": inputs["mask"]}
    few = {name: value[:2] for name, value in inputs.items()}
    tasks = {"topic": {"heads": ("linear",)}, "tags": {"task": "token-classification"}}
    nets = attach_tasks(small.model(Tagger), few, tasks)
    net = nets["tags"]
    p, c, _ = next(iter(net.exits()))
    answers, _ = net.forward_all(inputs)
    sure = net.confidence_of(p, c)(answers[p, c], net.mask(list(inputs.values())))
    config = ExitConfig([ExitChoice(net.positions[p], net.head_names[c], float(sure.median()))])
    several, wanted = MultiEngine(nets, {"tags": config}), Engine(net, config)(inputs)
    out = several(inputs)
    assert torch.equal(out["tags"].position, wanted.position)
    assert len(set(wanted.position.tolist())) == 2
    close(out["tags"].outputs, wanted.outputs)
    assert several({name: value[:0] for name, value in inputs.items()})["tags"].outputs.shape == (0, 5, 2)
    wants = torch.tensor([[True, False]]).expand(40, 2)
    assert several(inputs, tasks=wants)["tags"].outputs.shape == (40, 5, 2)


def test_a_task_that_the_model_does_not_answer():
    torch.manual_seed(0)
    model = small.model(small.Picture)
    probe = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2))
    both = with_answers(model, {"where": probe}, feature="blocks")
    x = small.inputs(small.Picture, 20)
    with torch.no_grad():
        wanted, feature = model(x), model.blocks(model.stem(x))
        out = both(x)
        assert torch.equal(out["logits"], wanted)
        assert torch.equal(out["where"], probe(feature))
    assert not model.blocks._forward_hooks
    nets = attach_tasks(both, x[:2], {"what": {"output": "logits"}, "where": {}})
    assert nets["what"].positions[:3] == ("input", "model.blocks.0", "model.blocks.1")
    answers = MultiEngine(nets)(x)
    assert torch.equal(answers["what"].outputs, wanted)
    assert torch.equal(answers["where"].outputs, out["where"])


def test_further_answers_of_a_model_with_named_inputs():
    inputs = small.inputs(small.Tokens, 12)
    probe = nn.Sequential(nn.Flatten(), nn.Linear(40, 2))
    both = copy.deepcopy(with_answers(small.model(small.Tokens), {"tone": probe}, feature="layers.1"))
    nets = attach_tasks(both, {name: value[:2] for name, value in inputs.items()}, {"logits": {}, "tone": {}})
    out = MultiEngine(nets)(inputs)
    with torch.inference_mode():
        wanted = both(**inputs)
    assert not both.training
    assert list(wanted) == ["logits", "tone"]
    for name in wanted:
        assert torch.equal(out[name].outputs, wanted[name])


def test_answers_read_off_what_the_model_returns():
    backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    both = with_answers(backbone, {"a": nn.Linear(8, 3), "b": nn.Linear(8, 2)})
    x = torch.randn(5, 6)
    out = both(x)
    assert set(out) == {"logits", "a", "b"}
    assert torch.equal(out["b"], both.answers["b"](backbone(x)))
    again = with_answers(both, {"a": nn.Linear(8, 3)}, feature="model")
    with pytest.raises(InputError, match="answers: the model answers 'a' itself; choose another name"):
        again(x)
    with pytest.raises(InputError, match="feature: the model has no sub-module 'layer9'; it has 0, 1, 2"):
        with_answers(backbone, {"a": nn.Linear(8, 3)}, feature="layer9")
    with pytest.raises(InputError, match=r"answers\['a'\]: expected a module, got a int"):
        with_answers(backbone, {"a": 3})  # type: ignore[dict-item]


X, A, B = torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([5, 6])


@pytest.mark.parametrize(
    ("batch", "task", "inputs"),
    [
        ((X, {"a": A, "b": B}), "b", 1),
        ((X, A, B), 1, 1),
        ((X, (A, B)), 1, 1),
        ([X, [A, B]], 1, 1),
        ((X, X, {"b": B}), "b", 2),
        (({"ids": X}, {"b": B}), "b", 1),
    ],
)
def test_labels_of_a_task_in_tuples(batch, task, inputs):
    loader = labels_of([batch, batch], task, inputs=inputs)
    assert len(loader) == 2
    for _ in range(2):
        for got in loader:
            assert got[-1] is B
            assert len(got) == inputs + 1
            assert all(mine is theirs for mine, theirs in zip(got[:-1], batch, strict=False))


@pytest.mark.parametrize("batch", [{"ids": X, "labels": {"a": A, "b": B}}, {"ids": X, "a": A, "b": B}])
def test_labels_of_a_task_in_dicts(batch):
    (got,) = labels_of([batch], "b")
    assert got["labels"] is B
    assert got["ids"] is X


@pytest.mark.parametrize(
    ("batch", "task", "message"),
    [
        ((X, {"a": A}), "b", "the batch has no labels 'b'; it has 'a'"),
        ((X, A), 1, "the batch has no labels 1; it has '0'"),
        ({"ids": X, "labels": {"a": A}}, "b", "the batch has no labels 'b'; it has 'a'"),
        ((X,), 0, "expected batches of 1 inputs and then labels, got 1 items"),
        (X, 0, "expected batches of 1 inputs and then labels, got Tensor"),
    ],
)
def test_labels_that_are_not_there(batch, task, message):
    with pytest.raises(InputError, match=message):
        list(labels_of([batch], task))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "tasks: expected a dict such as"),
        (["what"], "tasks: expected a dict such as"),
        ({"a/b": {}}, "expected names of letters, digits, '_' and '-'; got 'a/b'"),
        ({"what": "linear"}, r"tasks\['what'\]: expected a dict of options, got a str"),
        ({"what": {"head": ()}}, r"tasks\['what'\]: unknown option 'head'; known: heads, task, "),
        ({"what": {"cuts": "all"}}, r"unknown option 'cuts'.*the same for all tasks"),
        ({"what": {}, "who": {}}, r"tasks\['who'\]: model output: "),
        ({"what": {"task": "speech"}}, r"tasks\['what'\]: unknown task 'speech'"),
        ({"what": {"heads": "linear"}}, r"tasks\['what'\]: heads: expected distinct names such as"),
        ({"what": {"input_exits": {"x": 3}}}, r"tasks\['what'\]: input_exits\['x'\]: expected a trained"),
        ({"what": {"confidence": "hope"}}, r"tasks\['what'\]: unknown confidence 'hope'"),
        ({"where": {"heads": ("huge",)}}, r"tasks\['where'\]: unknown head 'huge'"),
    ],
)
def test_tasks_that_cannot_be(tasks, message):
    with pytest.raises(InputError, match=message):
        attach_tasks(small.model(Shared), data(4).tensors[0][:2], tasks)


def test_a_model_that_cannot_be_cut():
    with pytest.raises(PartitionError, match="Linear: found no place for an exit"):
        attach_tasks(nn.Linear(4, 2), torch.randn(2, 4), {"a": {}})


def test_networks_and_settings_that_cannot_be(setting):
    nets = setting.networks
    apart = {"what": nets["what"], "pic": small.network()}
    for networks, message in [
        (apart, "expected networks that share their segments; attach all of them with attach_tasks"),
        ({"what": nets["what"].backbone}, "expected a network for 'what', got a Shared"),
        ({}, "expected networks by task, from attach_tasks"),
    ]:
        with pytest.raises(InputError, match=message):
            MultiEngine(networks)
    several = MultiEngine(nets, setting.settings[3])
    for wrong, message in [
        ({"who": ExitConfig()}, "unknown task 'who'; there are 'what', 'where', 'much'"),
        ({"what": None}, "'what': expected an ExitConfig, such as"),
        (ExitConfig(), "expected a dict task -> ExitConfig, got a ExitConfig"),
        (
            {"where": ExitConfig([ExitChoice("blocks.0", "mlp", 0.5)])},
            "'where': unknown head 'mlp'; known: linear, raw",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            several.use(wrong)
    for wanted, message in [
        (("who",), "unknown task 'who'"),
        ((), "expected names such as"),
        ("what", "expected names such as"),
        (torch.ones(2, 2, dtype=torch.bool), r"bool of shape \(2, 3\), a column for each of 'what'"),
        (torch.ones(2, 3), r"got torch.float32 of shape \(2, 3\)"),
    ]:
        with pytest.raises(InputError, match=message):
            several(setting.x[:2], tasks=wanted)
    with pytest.raises(InputError, match=r"expected shape \(B, 1, 8, 8\)"):
        several(torch.zeros(2, 1, 9, 8))
    assert several.configs == setting.settings[3]


def test_records_that_cannot_be_put_together(setting):
    records, costs, configs = setting.records, setting.costs, setting.full({})
    one = {"what": records["what"]}
    for r, c, k, message in [
        (records, costs, {}, "expected a configuration for at least one task, got none"),
        (one, costs, configs, "task 'where' has a configuration but no records; there are records of 'what'"),
        (records, {}, configs, "task 'what' has a configuration but no costs; there are costs of none"),
        (
            {**records, "much": records["much"].subset(np.arange(9))},
            costs,
            configs,
            "the same samples, got 150 of 'what' and 9 of 'much'",
        ),
        (
            records,
            {**costs, "where": offramp.CostTable(2 * costs["where"].backbone, costs["where"].heads, "macs")},
            configs,
            "'where' and 'what' have other positions or backbone costs",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate_together(r, c, k)


def test_the_model_stays_as_it_was(setting):
    model = setting.networks["what"].backbone
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        MultiEngine(setting.networks, setting.settings[3])(setting.x)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_input_that_is_called_like_labels_stays():
    batch = {"x": torch.zeros(2), "target": torch.ones(2), "labels": {"a": torch.tensor([0, 1])}}
    (found,) = labels_of([batch], "a")
    assert set(found) == {"x", "target", "labels"}
    assert found["labels"].tolist() == [0, 1]
