"""Fine-tuning: the one thing that may change the user's model, and only when asked to."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree

import offramp
import small
import toys
from offramp import TrainConfig, train_exits
from offramp.errors import InputError
from offramp.network.fingerprint import graph_digest
from offramp.training import finetune, head_trainer, train

QUICK = TrainConfig(
    epochs=3, batch_size=20, backbone="finetune", backbone_epochs=2, backbone_rate=1e-2, calibration=0.25
)


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def learnable(count=160):
    x = small.inputs(count=count)
    return small.batches(x, (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long())


@pytest.mark.filterwarnings("ignore:fine-tuning")
def test_it_equals_a_plain_loop():
    """One linear head per position; the model itself, in eval mode, under the same losses."""
    net = small.network(small.Vector, heads=("linear",))
    config = dataclasses.replace(QUICK, distillation=0.4, temperature=1.5)
    x, y = small.inputs(small.Vector, 64), small.labels(64)
    held = np.zeros(64, bool)
    held[np.random.default_rng((0, 1)).permutation(64)[:16]] = True
    twin = small.network(small.Vector, heads=("linear",))
    heads = frozen_heads(twin, x, y, config)
    model, before = twin.backbone, small.model(small.Vector)
    groups = [list(model.parameters()), [p for head in heads.values() for p in head.parameters()]]
    optimiser = torch.optim.AdamW([{"params": group} for group in groups], weight_decay=config.weight_decay)

    def loss(out, teacher, labels):
        t = config.temperature
        soft = F.kl_div((out / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean") * t * t
        return 0.4 * soft + 0.6 * F.cross_entropy(out, labels)

    for epoch in range(2):
        for start in (0, 32):
            keep = torch.from_numpy(~held[start : start + 32])
            rows, labels = x[start : start + 32][keep], y[start : start + 32][keep]
            for group, rate in zip(optimiser.param_groups, (1e-2, 0.1 * config.learning_rate), strict=True):
                group["lr"] = rate * head_trainer.cycle((epoch + start / 64) / 2)
            teacher = before(rows).detach()
            a = model.a(rows)
            b = model.b(torch.relu(a))
            total = loss(model.c(torch.relu(b)), teacher, labels)
            total = (
                total + (loss(heads[1, 0](a), teacher, labels) + loss(heads[2, 0](b), teacher, labels)) / 2
            )
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
    report = train_exits(net, small.batches(x, y), config=config)
    for name, value in net.backbone.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5)
    rows = torch.from_numpy(held)
    wanted = [(m(x[rows]).argmax(1) == y[rows]).float().mean().item() for m in (before, net.backbone)]
    change = report.backbone
    assert (change.before, change.after) == pytest.approx(tuple(wanted))
    assert (change.samples, change.held_out, report.held_out) == (16, True, 16)


def frozen_heads(net, x, y, config):
    """Heads as the first phase leaves them."""
    found = {}
    original = finetune.finetuned

    class StopError(Exception):
        pass

    def caught(net, heads, *_):
        found.update(heads)
        raise StopError

    train.finetuned = caught
    try:
        train_exits(net, small.batches(x, y), config=config)
    except StopError:
        pass
    finally:
        train.finetuned = original
    return found


def test_the_model_learns_and_its_exits_with_it():
    loader = learnable()
    frozen = small.network(heads=("linear", "conv"))
    plain = train_exits(frozen, loader, config=dataclasses.replace(QUICK, backbone="frozen"))
    net = small.network(heads=("linear", "conv"))
    config = dataclasses.replace(QUICK, backbone_epochs=15, distillation=0)
    report = train_exits(net, loader, config=config)
    assert plain.backbone is None
    assert report.backbone.after > report.backbone.before + 0.3
    assert report.full_quality > plain.full_quality + 0.3
    x, y = (torch.cat(each) for each in zip(*loader, strict=True))
    right = (net.backbone(x).argmax(1) == y).float().mean().item()
    assert report.full_quality == pytest.approx(right)
    assert torch.equal(net(x), net.backbone(x))  # the chain is still the model
    # the heads are those for the model as it is now
    for entry, out in zip(report.exits, net.forward_all(x)[0].values(), strict=True):
        assert entry.quality == pytest.approx((out.argmax(1) == y).float().mean().item(), abs=0.02)


def test_what_needs_no_gradient_stays_and_all_else_is_left_as_found():
    net = small.network(heads=("linear", "conv"))
    model = net.backbone.train()
    model.stem.weight.requires_grad_(False)
    model.stem.register_forward_hook(lambda *_: pytest.fail("the hook ran"))
    model.top.bias.grad = torch.ones(3)
    before = values(model)
    train_exits(net, learnable(), config=QUICK)
    after = values(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, _ in model.named_parameters()} - {"stem.weight"}
    assert all(module.training for module in model.modules())
    assert not model.stem.weight.requires_grad
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"top.bias"}
    assert torch.equal(model.top.bias.grad, torch.ones(3))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine")])
@pytest.mark.parametrize("where", ["mixed", "heads after"])
def test_an_interruption_puts_the_model_back(monkeypatch, error, where):
    net = small.network(heads=("linear", "conv"))
    before, heads, calls = values(net.backbone), small.weights(net), []

    def interrupted(original, at):
        def call(*arguments):
            calls.append(1)
            if len(calls) == at:
                raise error
            return original(*arguments)

        return call

    if where == "mixed":
        monkeypatch.setattr(finetune._Mixed, "_step", interrupted(finetune._Mixed._step, 4))
    else:  # the second training of heads: 6 steps an epoch, 3 epochs
        step = head_trainer.HeadTrainer._step
        monkeypatch.setattr(head_trainer.HeadTrainer, "_step", interrupted(step, 20))
    with pytest.raises(type(error)):
        train_exits(net, learnable(), config=QUICK)
    assert len(calls) in (4, 20)
    assert small.same(before, values(net.backbone))
    assert small.same(heads, small.weights(net))
    assert not any(p.grad is not None for p in net.backbone.parameters())


def test_a_killed_run_goes_on_and_ends_alike(tmp_path, monkeypatch):
    whole = small.network(heads=("linear", "conv"))
    train_exits(whole, learnable(), config=QUICK, work_dir=tmp_path / "whole")
    steps, step = [], finetune._Mixed._step

    def stopping(self, *arguments):
        steps.append(1)
        if len(steps) == 8:  # in the second epoch of five batches
            raise KeyboardInterrupt
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(finetune._Mixed, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_exits(
                small.network(heads=("linear", "conv")), learnable(), config=QUICK, work_dir=tmp_path / "cut"
            )
    steps.clear()
    monkeypatch.setattr(finetune._Mixed, "_step", lambda *a: (steps.append(1), step(*a)))
    net = small.network(heads=("linear", "conv"))  # as a new process would find it
    report = train_exits(net, learnable(), config=QUICK, work_dir=tmp_path / "cut")
    assert len(steps) == 5
    assert small.same(values(whole.backbone), values(net.backbone))
    assert small.same(small.weights(whole), small.weights(net))
    assert graph_digest(whole) == graph_digest(net)
    assert report.backbone is not None


def test_a_fall_is_said():
    net = small.network(small.Vector, heads=("linear",))
    x = small.inputs(small.Vector, 96)
    y = net.backbone(x).argmax(1)
    wrong = torch.where(torch.arange(96) % 2 == 0, y, (y + 1) % 3)  # half of the labels spoil it
    config = dataclasses.replace(QUICK, distillation=0, backbone_rate=0.3, calibration=0)
    with pytest.warns(UserWarning, match=r"full model's quality fell from 0\.5000 to 0\.\d+ on 96 samples"):
        report = train_exits(net, small.batches(x, wrong), config=config)
    assert report.backbone.after < report.backbone.before
    assert not report.backbone.held_out


def test_tokens_and_masks_and_no_labels():
    net = small.network(small.Tokens, heads=("linear",))
    x = small.inputs(small.Tokens, 60)
    before = values(net.backbone)
    report = train_exits(net, small.batches(x), config=QUICK)
    assert report.backbone.before == 1.0
    assert not small.same(before, values(net.backbone))


class Once:
    """Gives more samples the second time."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(learnable(64 if self.passes == 1 else 160))


def test_what_cannot_be_fine_tuned_is_refused():
    frozen = small.network(heads=("linear", "conv"))
    frozen.backbone.requires_grad_(False)
    with pytest.raises(InputError, match=r"no parameter of Picture requires a gradient; call requires_grad_"):
        train_exits(frozen, learnable(), config=QUICK)
    half = offramp.attach_exits(small.model().bfloat16(), small.inputs()[:2].bfloat16())
    with pytest.raises(InputError, match=r"expected parameters in float32, got torch.bfloat16; steps are"):
        train_exits(half, [(x.bfloat16(), y) for x, y in learnable()], config=QUICK)
    net = small.network(heads=("linear", "conv"))
    before = values(net.backbone)
    with pytest.raises(InputError, match=r"gives more than the 64 samples of before; pass one that can"):
        train_exits(net, Once(), config=QUICK)
    with pytest.raises(InputError, match=r"diverged: the backbone .* is put back; lower backbone_rate \(it "):
        train_exits(net, learnable(), config=dataclasses.replace(QUICK, backbone_rate=1e38))
    assert small.same(before, values(net.backbone))
    assert math.isfinite(sum(float(value.sum()) for value in before.values()))


def test_a_model_that_cannot_be_trained_is_said_to_be_one():
    model, draw = toys.TOYS["in-place"]()
    net = offramp.attach_exits(model, draw(2), heads=("linear",))
    before = values(model)
    with pytest.raises(InputError, match=r"InPlace writes over what its gradient needs, so it cannot"):
        train_exits(net, [draw(8)], config=QUICK)
    assert small.same(before, values(model))


GRADED = ("residual", "shared", "sequence", "encoder", "windows", "branches", "filled", "autocast")


@pytest.mark.parametrize("name", GRADED)
def test_gradients_flow_through_the_chain_as_through_the_model(name):
    """In-place operations, views, shared and parametrised weights."""
    model, draw, parts = toys.cut(name)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(outputs):
        flat = [out for out in _pytree.tree_leaves(outputs) if isinstance(out, torch.Tensor)]
        total = sum(out.float().square().sum() for out in flat if out.is_floating_point())
        return torch.autograd.grad(total, parameters, allow_unused=True)

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        inputs = toys.clone(draw(3))
        wanted = gradients(model(*inputs) if isinstance(inputs, tuple) else model(inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    activations = tuple(parts.spec.flatten(draw(3)))
    for segment in parts.segments:
        activations = segment(*activations)
    assert any(each is not None for each in wanted)
    for got, want in zip(gradients(activations), wanted, strict=True):
        if got is None or want is None:  # a branch that the answer does not depend on
            assert got is want or not (want if got is None else got).any()
        else:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
