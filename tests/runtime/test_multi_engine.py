"""Several tasks in one call, against one engine per task and against the simulation."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

import small
from multitask_nets import TASKS, Setting, Text, close
from offramp import Engine, ExitChoice, ExitConfig
from offramp.core.evaluate import evaluate_together
from offramp.errors import InputError
from offramp.network.multitask import attach_tasks
from offramp.runtime.multi_engine import MultiEngine


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


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
    confidence_fn = net.confidence_of(p, c)(answers[p, c], net.mask(list(inputs.values())))
    config = ExitConfig([ExitChoice(net.positions[p], net.head_names[c], float(confidence_fn.median()))])
    several, wanted = MultiEngine(nets, {"tags": config}), Engine(net, config)(inputs)
    out = several(inputs)
    assert torch.equal(out["tags"].position, wanted.position)
    assert len(set(wanted.position.tolist())) == 2
    close(out["tags"].outputs, wanted.outputs)
    assert several({name: value[:0] for name, value in inputs.items()})["tags"].outputs.shape == (0, 5, 2)
    wants = torch.tensor([[True, False]]).expand(40, 2)
    assert several(inputs, tasks=wants)["tags"].outputs.shape == (40, 5, 2)


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


def test_it_looks_like_one_line(setting):
    several = MultiEngine(setting.networks)
    model = type(setting.networks[TASKS[0]].backbone).__name__
    assert repr(several) == f"MultiEngine({model}, tasks {', '.join(setting.networks)})"
    out = several(setting.x[:7])[TASKS[0]]
    assert repr(out) == f"EngineOutput(7 answers of shape {tuple(out.outputs.shape[1:])}, on cpu)"
    engine = Engine(setting.networks[TASKS[0]])
    assert repr(engine) == f"Engine({model}, ExitConfig(no exits))"
