"""Training: heads do not see each other, the model is left alone, and the same seed gives the same bytes."""

from __future__ import annotations

import dataclasses
import math
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

import offramp
import small
from offramp import TrainConfig, train_exits
from offramp.errors import InputError, StorageError
from offramp.network.fingerprint import model_digest
from offramp.training import checkpoint, head_trainer
from offramp.training.train import TrainedExit, TrainReport
from tables import read

QUICK = TrainConfig(epochs=3, batch_size=20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs: expected an integer of at least 1, got 0"),
        ({"epochs": 2.0}, r"epochs: expected an integer of at least 1, got 2.0"),
        ({"batch_size": True}, r"batch_size: expected an integer of at least 1, got True"),
        ({"views": -1}, r"views: expected an integer of at least 1, got -1"),
        ({"seed": -1}, r"seed: expected an integer of at least 0, got -1"),
        ({"seed": 2**64}, r"seed: expected an integer"),
        ({"learning_rate": 0}, r"learning_rate: expected a number above 0, got 0"),
        ({"learning_rate": math.nan}, r"learning_rate: expected a number above 0, got nan"),
        ({"learning_rate": "fast"}, r"learning_rate: expected a number above 0, got 'fast'"),
        ({"weight_decay": -1e-9}, r"weight_decay: expected a number of at least 0, got -1e-09"),
        ({"weight_decay": math.inf}, r"weight_decay: expected a number of at least 0, got inf"),
        ({"distillation": 1.01}, r"distillation: expected a number from 0 to 1, got 1.01"),
        ({"temperature": None}, r"temperature: expected a number above 0, got None"),
        ({"survivors": 1.5}, r"survivors: expected a number from 0 to 1, got 1.5"),
        ({"calibration": 1}, r"calibration: expected a number from 0 to below 1, got 1"),
        ({"cache_dtype": "int8"}, r"cache_dtype: expected one of float32, float16, bfloat16, got 'int8'"),
        ({"backbone": True}, r"backbone: expected one of frozen, finetune, got True"),
        ({"backbone_epochs": 0}, r"backbone_epochs: expected an integer of at least 1, got 0"),
        ({"backbone_rate": 0}, r"backbone_rate: expected a number above 0, got 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=rf"TrainConfig\.{message}"):
        TrainConfig(**changes)


def test_settings_become_plain_numbers():
    config = TrainConfig(epochs=np.int64(2), learning_rate=np.float32(0.5), weight_decay=0, distillation=1)
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    assert {name: type(value).__name__ for name, value in dataclasses.asdict(config).items()} == kinds


def test_training_learns():
    x = small.inputs(count=200)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    net = small.network(heads=("linear", "mlp", "conv"))
    report = train_exits(
        net, small.batches(x, y), config=TrainConfig(epochs=20, batch_size=50, distillation=0)
    )
    by_head = {(e.position, e.head): e.quality for e in report.exits}
    assert by_head["blocks.0", "mlp"] > 0.95  # the labels ask where things are, and a 4x4 grid knows
    assert report.full_quality < 0.7
    assert all(sum(p.isnan().sum() for p in head.parameters()) == 0 for _, _, head in net.exits())


def test_distillation_alone_follows_the_model():
    net = small.network(small.Vector, heads=("mlp",))
    config = TrainConfig(epochs=40, batch_size=50, learning_rate=0.01)
    report = train_exits(net, small.loader(small.Vector, 300, labelled=False), config=config)
    assert not report.labelled
    assert report.full_quality == 1.0  # agreement with itself
    assert min(e.quality for e in report.exits) > 0.9


def by_hand(net, x, y, config):
    """The same training of one linear head per position, written plainly."""
    model, teacher, trained = net.backbone, net.backbone(x), {}
    features = {1: model.a(x), 2: model.b(torch.relu(model.a(x)))}
    for (p, c), head in net.fresh_heads(config.seed).items():
        z = features[p]
        std = z.double().var(0, unbiased=False).sqrt()
        std = std.clamp(min=0.05 * std.mean() + 1e-6).float()
        z = (z - z.double().mean(0).float()) / std
        optimiser = torch.optim.AdamW(head.parameters(), lr=1.0, weight_decay=config.weight_decay)
        steps = math.ceil(len(x) / config.batch_size)
        for epoch in range(config.epochs):
            order = np.random.default_rng((config.seed, epoch)).permutation(len(x))
            for step, rows in enumerate(np.array_split(order, steps)):
                done = (epoch * steps + step) / (config.epochs * steps)
                warm = done / 0.1
                optimiser.param_groups[0]["lr"] = config.learning_rate * (
                    warm if warm < 1 else (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2
                )
                out, t = head.out(z[rows]), config.temperature
                soft = F.kl_div(
                    (out / t).log_softmax(1), (teacher[rows] / t).softmax(1), reduction="batchmean"
                )
                hard = F.cross_entropy(out, y[rows])
                loss = config.distillation * t * t * soft + (1 - config.distillation) * hard
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        trained[p, c] = head.out(z).detach()
    return trained


def test_training_equals_a_plain_loop():
    net, config = (
        small.network(small.Vector, heads=("linear",)),
        TrainConfig(epochs=4, batch_size=20, distillation=0.3),
    )
    for parameter in net.backbone.parameters():
        parameter.requires_grad_(False)
    x, y = small.inputs(small.Vector, 50), small.labels(50)
    train_exits(net, small.batches(x, y), config=config)
    wanted, got = by_hand(net, x, y, config), net.forward_all(x)[0]
    assert got.keys() == wanted.keys()
    for exit_, out in got.items():  # 1e-5: features and scales are folded and summed in another order
        torch.testing.assert_close(out, wanted[exit_], rtol=1e-4, atol=1e-5)


def test_heads_do_not_influence_each_other():
    cut, loader = ["blocks.0"], small.loader()
    alone, together = (
        small.network(cuts=cut, heads=("mlp",)),
        small.network(cuts=cut, heads=("mlp", "conv", "linear")),
    )
    for net in (alone, together):
        train_exits(net, loader, config=QUICK)
    assert small.same(small.weights(alone.head(1, "mlp")), small.weights(together.head(1, "mlp")))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_same_seed_gives_the_same_bytes(labelled):
    heads = ("linear", "conv", "small-plain")
    found = []
    for seed in (0, 0, 1):
        net = small.network(heads=heads)
        torch.manual_seed(random.randrange(1000))  # whatever the caller's random state
        train_exits(net, small.loader(labelled=labelled), config=dataclasses.replace(QUICK, seed=seed))
        found.append(save(net.state_dict()))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_random_state_is_left_alone():
    net = small.network(heads=("small-plain",))
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    train_exits(net, small.loader(), config=QUICK)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


class Broken:
    """A loader that fails in the middle."""

    def __iter__(self):
        yield small.loader()[0]
        raise RuntimeError("the data is gone")


def surroundings(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
    )


@pytest.mark.parametrize("loader", [small.loader(), Broken()], ids=["done", "failed"])
def test_the_backbone_is_left_as_found(loader):
    model = small.model()
    net = offramp.attach_exits(model, small.inputs()[:2])
    model.train()
    model.blocks[1].eval()
    model.stem.weight.requires_grad_(False)
    model.stem.register_forward_hook(lambda *_: pytest.fail("the hook ran"))
    before, heads = surroundings(model), small.weights(net)
    try:
        train_exits(net, loader, config=QUICK)
    except RuntimeError:
        assert small.same(heads, small.weights(net))
    after = surroundings(model)
    assert small.same(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine")])
@pytest.mark.parametrize(
    ("owner", "where"), [(head_trainer.HeadTrainer, "_loss"), (head_trainer, "check_finite")]
)
def test_an_interruption_leaves_the_network_unchanged(monkeypatch, error, owner, where):
    net = small.network(small.Vector)
    before, calls = small.weights(net), []
    original = getattr(owner, where)

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return original(*arguments)

    monkeypatch.setattr(owner, where, interrupted)
    with pytest.raises(type(error)):
        train_exits(net, small.loader(small.Vector), config=QUICK)
    assert small.same(before, small.weights(net))
    assert not any(parameter.grad is not None for parameter in net.parameters())


def test_views_pass_over_the_loader_again():
    class Noisy:
        def __iter__(self):
            return ((x + torch.randn_like(x), y) for x, y in small.loader(small.Vector))

    net = small.network(small.Vector)
    assert train_exits(net, Noisy(), config=dataclasses.replace(QUICK, views=3)).samples == 3 * 96
    with pytest.raises(InputError, match="gone through 3 times"):
        train_exits(net, iter(Noisy()), config=dataclasses.replace(QUICK, views=3))


def nan_at(rows, tensor):
    tensor = tensor.clone()
    tensor[rows] = math.nan
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (nan_at(40, x), y),
            r"batch 1 of the loader: the feature at 'a' is not finite; check the inputs",
        ),
        (
            lambda x, y: (x, y + 1),
            r"batch 0 of the loader: labels: expected 0 to 2 because the model has 3 outputs",
        ),
        (lambda x, y: (x, y.float()), r"batch 0 of the loader: labels: expected integers, got torch.float32"),
        (lambda x, y: (x, y[:, None]), r"batch 0 of the loader: labels: expected shape \(32,\)"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_batch(change, message):
    net = small.network(small.Vector)
    before = small.weights(net)
    with pytest.raises(InputError, match=message):
        train_exits(net, small.batches(*change(small.inputs(small.Vector), small.labels())), config=QUICK)
    assert small.same(before, small.weights(net))


def test_a_model_that_gives_nan_is_refused():
    model = small.model(small.Vector)
    net = offramp.attach_exits(model, small.inputs(small.Vector)[:2])
    with torch.no_grad():
        model.c.weight[0, 0] = math.nan
    with pytest.raises(InputError, match=r"batch 0 .*the model's output is not finite; check .* weights"):
        train_exits(net, small.loader(small.Vector))


def test_training_that_diverges_is_an_error():
    net = small.network(small.Vector, heads=("linear",))
    before = small.weights(net)
    with pytest.raises(
        InputError, match=r"diverged: head 'linear' at 'a' .*lower learning_rate \(it is 1e\+38\)"
    ):
        train_exits(net, small.loader(small.Vector), config=dataclasses.replace(QUICK, learning_rate=1e38))
    assert small.same(before, small.weights(net))


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_trains_whatever_the_callers_gradient_mode(grad):
    nets = [small.network(small.Vector) for _ in range(2)]
    train_exits(nets[0], small.loader(small.Vector), config=QUICK)
    with grad():
        train_exits(nets[1], small.loader(small.Vector), config=QUICK)
    assert small.same(*map(small.weights, nets))
    assert not any(value.is_inference() for value in nets[1].state_dict().values())


def test_a_bfloat16_model_gets_heads_trained_in_float32():
    model = small.model().bfloat16()
    net = offramp.attach_exits(model, small.inputs()[:2].bfloat16())
    x, y = small.inputs().bfloat16(), small.labels()
    report = train_exits(net, small.batches(x, y), config=QUICK)
    assert {value.dtype for name, value in net.state_dict().items() if "tracked" not in name} == {
        torch.bfloat16
    }
    answers, final = net.forward_all(x)
    assert {out.dtype for out in (*answers.values(), final)} == {torch.bfloat16}
    got = {
        (net.positions[p], net.head_names[c]): (out.argmax(1) == y).float().mean()
        for (p, c), out in answers.items()
    }
    for exit_ in report.exits:  # rounded weights may flip a few answers
        assert abs(float(got[exit_.position, exit_.head]) - exit_.quality) < 0.1


@pytest.mark.parametrize(("rows", "batch_size"), [(21, 20), (1, 8), (5, 1), (96, 32)])
def test_batches_of_one_sample_do_not_upset_a_batch_norm(rows, batch_size):
    net = small.network(heads=("conv", "small-plain"))
    report = train_exits(net, small.loader(count=rows), config=TrainConfig(epochs=2, batch_size=batch_size))
    assert report.samples == rows
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())


def test_heads_share_features_only_where_they_say_so(tmp_path):
    net = small.network(heads=("linear", "small-plain", "small-own", "mlp"), cuts=["blocks.1"])
    report = train_exits(net, small.loader(), config=QUICK, work_dir=tmp_path)
    files = {path.name: path.stat().st_size for path in tmp_path.glob("features-*/*.bin")}
    row = 6 * 4 * 96  # bytes of (96, 6) float32
    assert sorted(files.values()) == sorted([96 * 8, 96 * 3 * 4, row, row, 16 * row, 64 * row])
    answers, _ = net.forward_all(small.inputs())
    for exit_, out in zip(report.exits, answers.values(), strict=True):
        assert exit_.quality == pytest.approx(
            float((out.argmax(1) == small.labels()).float().mean()), abs=0.02
        )


def test_the_report_says_what_was_trained():
    net = small.network()
    report = train_exits(net, small.loader(), config=QUICK)
    costs = offramp.measure_cost(net)
    assert (report.samples, report.labelled) == (96, True)
    assert [(e.position, e.head) for e in report.exits] == [
        (net.positions[p], net.head_names[c]) for p, c, _ in net.exits()
    ]
    right = (net.backbone(small.inputs()).argmax(1) == small.labels()).float().mean()
    assert report.full_quality == pytest.approx(float(right))
    for entry, (p, c, _) in zip(report.exits, net.exits(), strict=True):
        assert entry.head_macs == costs.heads[p, c]
        assert entry.total_macs == costs.heads[p, c] + costs.backbone[p]
        assert entry.relative_cost == entry.total_macs / costs.full


def test_tokens_with_a_mask():
    net = small.network(small.Tokens)
    x = small.inputs(small.Tokens, 200)
    wrong = (net.backbone(**x)["logits"].argmax(1) + 1) % 3
    config = TrainConfig(epochs=20, batch_size=50, distillation=0)
    report = train_exits(net, small.batches(x, wrong), config=config)
    assert report.full_quality == 0
    assert min(e.quality for e in report.exits) > 0.5


class Counting(list):
    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def counted(monkeypatch):
    """Counts of (batches through the backbone, training steps)."""
    counts = {"features": 0, "steps": 0}
    features, step = offramp.ExitNetwork.features, head_trainer.HeadTrainer._step

    def counting_features(self, values):
        counts["features"] += 1
        return features(self, values)

    def counting_step(self, *arguments):
        counts["steps"] += 1
        return step(self, *arguments)

    monkeypatch.setattr(offramp.ExitNetwork, "features", counting_features)
    monkeypatch.setattr(head_trainer.HeadTrainer, "_step", counting_step)
    return counts


def train_counted(counts, tmp_path, config=QUICK, loader=None, **options):
    net = small.network(**options)
    counts.update(features=0, steps=0)
    report = train_exits(net, loader or small.loader(), config=config, work_dir=tmp_path)
    return small.weights(net), report, (counts["features"], counts["steps"])


def test_a_work_dir_saves_features_and_training(tmp_path, monkeypatch):
    counts = counted(monkeypatch)
    plain = small.network()
    train_exits(plain, small.loader(), config=QUICK)
    first, report, work = train_counted(counts, tmp_path)
    assert work == (3, 15)
    again, same_report, work = train_counted(counts, tmp_path)
    assert work == (0, 0)
    assert small.same(first, again)
    assert small.same(first, small.weights(plain))
    assert report == same_report
    _, _, work = train_counted(counts, tmp_path, config=dataclasses.replace(QUICK, learning_rate=1e-2))
    assert work == (0, 15)  # features do not depend on how heads are trained
    _, _, work = train_counted(counts, tmp_path, config=dataclasses.replace(QUICK, views=2))
    assert work == (6, 30)
    _, _, work = train_counted(counts, tmp_path, heads=("linear",))
    assert work == (3, 15)


def test_other_data_in_the_same_work_dir_is_trained_on(tmp_path, monkeypatch):
    counts = counted(monkeypatch)
    train_counted(counts, tmp_path)
    other = small.loader(seed=7)
    with pytest.warns(UserWarning, match="rows of other batches"):
        second, _, work = train_counted(counts, tmp_path, loader=other)
    assert work == (3, 15)
    plain = small.network()
    train_exits(plain, other, config=QUICK)
    assert small.same(second, small.weights(plain))


@pytest.mark.parametrize("heads", [("linear", "mlp", "conv"), ("small-own", "small-plain")])
def test_stopped_training_goes_on_and_ends_alike(tmp_path, monkeypatch, heads):
    monkeypatch.setattr(checkpoint, "_SAVE_EVERY", 0.0)
    counts = counted(monkeypatch)
    whole, _, _ = train_counted(counts, tmp_path / "whole", heads=heads)
    step = head_trainer.HeadTrainer._step

    def stopping(self, *arguments):
        if counts["steps"] == 12:
            raise KeyboardInterrupt
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(head_trainer.HeadTrainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_counted(counts, tmp_path / "cut", heads=heads)
    resumed, _, work = train_counted(counts, tmp_path / "cut", heads=heads)
    assert work == (0, 5)  # two epochs of five steps were saved
    assert small.same(whole, resumed)


@pytest.mark.parametrize("damage", ["truncated", "changed", "text", "of other heads"])
def test_a_damaged_checkpoint_is_not_used(tmp_path, monkeypatch, damage):
    counts = counted(monkeypatch)
    first, _, _ = train_counted(counts, tmp_path)
    (path,) = tmp_path.glob("heads-*.safetensors")
    whole = path.read_bytes()
    if damage == "of other heads":
        train_counted(counts, tmp_path, heads=("linear",))
        (other,) = set(tmp_path.glob("heads-*.safetensors")) - {path}
        path.write_bytes(other.read_bytes())
    else:
        path.write_bytes(
            {"truncated": whole[:-9], "changed": whole[:-9] + b"\0" + whole[-8:], "text": b"text"}[damage]
        )
    again, _, work = train_counted(counts, tmp_path)
    assert work == (0, 15)
    assert small.same(first, again)
    assert path.read_bytes() == whole


def test_a_disk_that_fills_up_in_training_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("no space left")

    monkeypatch.setattr(checkpoint, "save_arrays", full)
    net = small.network(small.Vector)
    before = small.weights(net)
    with pytest.raises(StorageError):
        train_exits(net, small.loader(small.Vector), config=QUICK, work_dir=tmp_path)
    assert small.same(before, small.weights(net))


def test_no_place_for_temporary_files_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match=r"cannot write .*gone"):
        train_exits(small.network(small.Vector), small.loader(small.Vector))


def test_nothing_is_left_of_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train_exits(small.network(small.Vector), small.loader(small.Vector), config=QUICK)
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    """State of every kind."""

    def __init__(self, extra=None, **tensors):
        super().__init__()
        self.extra = extra
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_the_digest_sees_every_value():
    base = torch.arange(6).reshape(2, 3)
    x = base.float()
    tensors = [
        x, x + 1, x.reshape(3, 2), x.double(), x.bfloat16(), base > 2, base, x.to(torch.complex64),
        torch.tensor(1.0), torch.tensor(2.0), torch.zeros(0),
        *(torch.quantize_per_tensor(x, scale, 0, torch.qint8) for scale in (0.1, 0.2)),
        torch.quantize_per_channel(x, torch.tensor([0.1, 0.2]), torch.zeros(2), 0, torch.qint8),
    ]  # fmt: skip
    odd = [Odd(x=tensor) for tensor in tensors]
    extras = (1, 2, "1", (1, 2), [1, 3], {"a": 1}, {"b": 1}, torch.qint8, torch.ones(2), (torch.ones(3),))
    odd += [Odd(extra=extra) for extra in extras]
    assert len({model_digest(each) for each in odd}) == len(odd)
    assert model_digest(Odd(extra=object())) == model_digest(Odd(extra=object()))


def test_the_digest_does_not_see_memory_format_or_ties():
    model = small.model()
    before = model_digest(model)
    assert model_digest(model.to(memory_format=torch.channels_last)) == before
    assert model_digest(small.model()) == before
    assert model_digest(small.model(seed=1)) != before
    tied, plain = (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
    )
    tied[1].weight = tied[0].weight
    plain.load_state_dict(tied.state_dict())
    assert model_digest(tied) == model_digest(plain)


def test_a_model_without_values_has_no_digest():
    with pytest.raises(InputError, match=r"'bias' is on the meta device and has no values; load its weights"):
        model_digest(nn.Linear(2, 2, device="meta"))


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_resumes_on_an_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SAVE_EVERY", 0.0)
    loader, found = small.loader(), []
    for stop in (None, 12, None):
        model = small.model().cuda()
        net = offramp.attach_exits(model, small.inputs()[:2].cuda(), heads=("linear", "conv", "small-plain"))
        before = torch.get_rng_state(), torch.cuda.get_rng_state()
        counts = []
        step = head_trainer.HeadTrainer._step

        def stopping(self, *arguments, step=step, counts=counts, stop=stop):
            counts.append(1)
            if len(counts) == stop:
                raise KeyboardInterrupt
            step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(head_trainer.HeadTrainer, "_step", stopping)
            with suppress(KeyboardInterrupt):
                train_exits(net, loader, config=QUICK, work_dir=None if not found else tmp_path)
        assert torch.equal(before[0], torch.get_rng_state())
        assert torch.equal(before[1], torch.cuda.get_rng_state())
        found.append((len(counts), small.weights(net)))
    assert [steps for steps, _ in found] == [15, 12, 5]
    for name, value in found[0][1].items():  # sums on the device have no fixed order
        torch.testing.assert_close(value, found[2][1][name], rtol=1e-3, atol=1e-4)


def test_a_report_in_one_line_and_in_a_notebook():
    exits = (
        TrainedExit("<a>", "mlp", 0.61, 10, 110, 0.11),
        TrainedExit("<a>", "conv", 0.7, 20, 120, 0.12),
        TrainedExit("b", "conv", 0.8, 20, 220, 0.22),
    )
    report = TrainReport(exits, full_quality=0.9, samples=1200, labelled=True)
    assert repr(report) == (
        "TrainReport(3 exits, quality 0.6100 to 0.8000, full model 0.9000, on 1200 samples)"
    )
    table = read(report)
    assert table.heads == ["position", "cost with first head", "mlp", "conv"]
    assert table.rows == [["<a>", "11.0%", "61.0%", "70.0%"], ["b", "22.0%", "\u2013", "80.0%"]]
    assert table.caption.startswith("3 exits trained on 1,200 samples: quality on these samples (in-sample")
    unlabelled = TrainReport((), 1.0, 5, labelled=False)
    assert repr(unlabelled) == "TrainReport(0 exits, full model 1.0000, on 5 samples)"
    assert "agreement with the full model on these samples" in unlabelled._repr_html_()
