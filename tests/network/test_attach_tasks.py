"""Several tasks attached to one backbone: shared segments, answers added to a model, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import offramp
import small
from multitask_nets import TASKS, Setting, Shared, data
from offramp.errors import InputError, PartitionError
from offramp.network.multitask import attach_tasks, with_answers
from offramp.runtime.multi_engine import MultiEngine


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


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


def test_a_task_may_name_its_output(setting):
    model = setting.networks["what"].backbone
    nets = attach_tasks(model, setting.x[:2], {"where": {"heads": ("linear",)}, "place": {"output": "where"}})
    out = MultiEngine(nets)(setting.x)
    assert torch.equal(out["where"].outputs, out["place"].outputs)
    assert nets["where"].head_names == ("linear",)


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
