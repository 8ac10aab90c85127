"""Weights of samples: who reaches an exit, and that heads are trained for them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import offramp
import small
from offramp import TrainConfig, train_exits
from offramp.core.config import ExitChoice, ExitConfig
from offramp.errors import InputError
from offramp.training import checkpoint, head_trainer, survivors

QUICK = TrainConfig(epochs=4, batch_size=20, survivors=0.7)


def test_by_rank_is_the_chance_to_pass_random_shares():
    """Each exit before lets go a random share, the surest first: simulated."""
    random = np.random.default_rng(0)
    confidence_fn = torch.from_numpy(random.random(40)).float()
    found = survivors.by_rank({(1, 0): confidence_fn, (3, 1): torch.zeros(40)})
    order = np.argsort(-confidence_fn.numpy())
    passed = np.zeros(40)
    for share in random.random(4000):
        passed[order[round(share * 40) :]] += 1 / 4000
    assert found[1, 0].tolist() == [1.0] * 40
    np.testing.assert_allclose(found[3, 1].numpy(), passed, atol=0.03)


def test_by_rank_takes_the_mean_over_exits_of_earlier_positions_alone():
    values = {
        (0, 2): torch.tensor([3.0, 2.0, 1.0]),
        (1, 0): torch.tensor([1.0, 1.0, 2.0]),
        (1, 1): torch.tensor([5.0, math.nan, 4.0]),
        (4, 0): torch.tensor([0.0, 0.0, 0.0]),
    }
    found = survivors.by_rank(values)
    third = 1 / 3
    assert found[0, 2].tolist() == [1, 1, 1]
    for exit_ in ((1, 0), (1, 1)):
        assert found[exit_].tolist() == pytest.approx([third / 2, 0.5, 1 - third / 2])
    ranks = np.array([[0.5, 1.5, 2.5], [2.0, 2.0, 0.5], [0.5, 2.5, 1.5]]) / 3  # what is not finite is last
    np.testing.assert_allclose(found[4, 0].numpy(), ranks.mean(0), rtol=1e-6)


def test_weights_have_mean_one():
    reach = {(1, 0): torch.rand(50), (2, 0): torch.zeros(50)}
    for share in (0.0, 0.3, 1.0):
        found = survivors.weights(reach, share)
        assert found[1, 0].mean().item() == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(found[1, 0], 1 - share + share * reach[1, 0] / reach[1, 0].mean())
        torch.testing.assert_close(found[2, 0], torch.ones(50))  # nobody gets there: no reason to choose


def test_by_frontier_is_who_the_evaluation_says_gets_there():
    net = small.network(heads=("linear", "mlp"))
    loader = small.loader(count=200)
    train_exits(net, loader, config=dataclasses.replace(QUICK, survivors=0))
    records, costs = offramp.record_outputs(net, loader), offramp.measure_cost(net)
    first, second = net.positions[1:3]
    configs = [
        ExitConfig((ExitChoice(first, "linear", 0.4), ExitChoice(second, "mlp", 0.5))),
        ExitConfig((ExitChoice(first, "mlp", 0.45),)),
        ExitConfig((ExitChoice(first, "mlp", 0.6), ExitChoice(second, "mlp", math.inf))),
        ExitConfig(),
    ]
    confidence = {
        (p, c): torch.from_numpy(records.confidence[p, c]) for p, c in np.argwhere(records.exists).tolist()
    }
    found = survivors.by_frontier(net, configs, confidence)
    left = [offramp.evaluate(records, costs, config).position for config in configs]
    at = {
        (1, 0): [left[0] >= 1], (1, 1): [left[1] >= 1, left[2] >= 1],
        (2, 1): [left[0] >= 2, left[2] >= 2], (2, 0): [each >= 2 for each in left],
    }  # fmt: skip
    for exit_, reached in at.items():
        np.testing.assert_allclose(found[exit_].numpy(), np.mean(reached, 0), rtol=1e-6)
    assert 0 < found[2, 1].mean() < 1


def plain_loop(net, x, y, config, reach):
    """One linear head per position, weighed; written plainly. ``reach(p, outputs so far) -> (N,)``."""
    model, trained = net.backbone, {}
    features = {1: model.a(x), 2: model.b(torch.relu(model.a(x)))}
    heads = net.fresh_heads(config.seed)
    for (p, c), head in heads.items():
        z = features[p].detach()
        std = z.double().var(0, unbiased=False).sqrt()
        z = (z - z.double().mean(0).float()) / std.clamp(min=0.05 * std.mean() + 1e-6).float()
        trained[p, c] = (
            head,
            z,
            torch.optim.AdamW(head.parameters(), lr=1.0, weight_decay=config.weight_decay),
        )
    steps = math.ceil(len(x) / config.batch_size)
    for epoch in range(config.epochs):
        weights = reach(epoch, {e: head.out(z).detach() for e, (head, z, _) in trained.items()})
        order = np.random.default_rng((config.seed, epoch)).permutation(len(x))
        for step, rows in enumerate(np.array_split(order, steps)):
            done = (epoch * steps + step) / (config.epochs * steps)
            for exit_, (head, z, optimiser) in trained.items():
                optimiser.param_groups[0]["lr"] = config.learning_rate * head_trainer.cycle(done)
                losses = F.cross_entropy(head.out(z[rows]), y[rows], reduction="none")
                optimiser.zero_grad()
                (losses * weights[exit_][rows]).mean().backward()
                optimiser.step()
    return {exit_: head.out(z).detach() for exit_, (head, z, _) in trained.items()}


@pytest.mark.parametrize("second", [False, True])
def test_training_weighs_samples_as_a_plain_loop_does(second):
    config = TrainConfig(epochs=4, batch_size=20, distillation=0, survivors=0.6)
    net = small.network(small.Vector, heads=("linear",))
    x, y = small.inputs(small.Vector, 80), small.labels(80)
    frontier = [ExitConfig((ExitChoice("a", "linear", 0.4), ExitChoice("b", "linear", 0.5)))]
    before = {e: out.softmax(1).amax(1) for e, out in net.forward_all(x)[0].items()}

    def reach(epoch, outputs):
        if second:
            return survivors.weights(
                {(1, 0): torch.ones(80), (2, 0): (before[1, 0] <= 0.4).float()}, config.survivors
            )
        if epoch < 1:  # a quarter of four epochs
            return dict.fromkeys(outputs, torch.ones(80))
        confidence_fn = {e: out.softmax(1).amax(1) for e, out in outputs.items()}
        return survivors.weights(survivors.by_rank(confidence_fn), config.survivors)

    wanted = plain_loop(net, x, y, config, reach)
    train_exits(net, small.batches(x, y), config=config, frontier=frontier if second else None)
    for exit_, out in net.forward_all(x)[0].items():
        torch.testing.assert_close(out, wanted[exit_], rtol=1e-3, atol=1e-4)


def test_the_first_position_is_trained_as_without_weights():
    found = []
    for share in (0.0, 1.0):
        net = small.network(heads=("linear", "conv"))
        train_exits(net, small.loader(), config=dataclasses.replace(QUICK, survivors=share))
        found.append(small.weights(net))
    differ = {name for name, value in found[0].items() if not torch.equal(value, found[1][name])}
    assert {name.split(".")[1] for name in differ} == {"2"}


def test_stopped_training_goes_on_and_ends_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SAVE_EVERY", 0.0)
    whole = small.network(heads=("linear", "conv"))
    train_exits(whole, small.loader(), config=QUICK, work_dir=tmp_path / "whole")
    steps, step = [], head_trainer.HeadTrainer._step

    def stopping(self, *arguments):
        steps.append(1)
        if len(steps) == 13:  # in the third of four epochs
            raise KeyboardInterrupt
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(head_trainer.HeadTrainer, "_step", stopping)
        net = small.network(heads=("linear", "conv"))
        with pytest.raises(KeyboardInterrupt):
            train_exits(net, small.loader(), config=QUICK, work_dir=tmp_path / "cut")
    train_exits(net, small.loader(), config=QUICK, work_dir=tmp_path / "cut")
    assert small.same(small.weights(whole), small.weights(net))


def test_a_second_round_asks_given_modules_too():
    x = small.inputs(small.Vector, 80)
    given = small.model(small.Vector, seed=5)
    found = []
    for threshold in (0.3, 2.0):  # all leave at once, or none does
        net = small.network(small.Vector, heads=("linear",), input_exits={"own": given})
        frontier = [ExitConfig((ExitChoice("input", "own", threshold), ExitChoice("a", "linear", 0.4)))]
        before = {e: out.softmax(1).amax(1) for e, out in net.forward_all(x)[0].items()}
        assert (before[1, net.head_names.index("linear")] > 0.4).any()
        train_exits(net, small.batches(x, small.labels(80)), config=QUICK, frontier=frontier)
        found.append(small.weights(net))
    assert not small.same(*found)  # b.linear: nobody gets there, or who stays at a


@pytest.mark.parametrize(
    ("changes", "frontier", "message"),
    [
        ({"survivors": 0}, [ExitConfig()], r"weighs samples by TrainConfig.survivors, which is 0; set it"),
        ({"backbone": "finetune"}, [ExitConfig()], r"expected backbone='frozen'; fine-tune first, search"),
        ({}, [ExitConfig((ExitChoice("c", "linear", 0.5),))], r"unknown position 'c'"),
    ],
)
def test_second_rounds_that_cannot_be(changes, frontier, message):
    net = small.network(small.Vector, heads=("linear",))
    before = small.weights(net)
    with pytest.raises(InputError, match=message):
        train_exits(
            net, small.loader(small.Vector), config=dataclasses.replace(QUICK, **changes), frontier=frontier
        )
    assert small.same(before, small.weights(net))
