"""Fitted confidences in a network: rows that heads never see, and what is learned on them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import offramp
import small
from offramp import TrainConfig, train_exits
from offramp.core.ranking import auroc
from offramp.errors import InputError
from offramp.tasks.confidence import get_confidence, get_fitted
from offramp.training import head_trainer
from offramp.training.cache import Cache
from offramp.training.calibrate import calibrate, unfitted
from offramp.training.truth import Truth

QUICK = TrainConfig(epochs=4, batch_size=40, calibration=0.25)
COUNT = 160


class Tagger(nn.Module):
    """Tokens (B, 5) and a mask to an answer for each token (B, 5, 3); positions input, layers.0."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(small.Mixer() for _ in range(3))
        self.top = nn.Linear(8, 3)

    def forward(self, ids, mask):
        x = self.embed(ids) * mask.to(torch.float32).unsqueeze(-1)
        for layer in self.layers:
            x = layer(x)
        return self.top(x)


class Small(nn.Module):
    """Somebody's small model, for the input."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 3)

    def forward(self, x):
        return self.map(x)


def learnable(kind=small.Picture, count=COUNT, seed=1):
    x = small.inputs(kind, count, seed)
    values = x.flatten(1)
    return small.batches(x, (values[:, : values.shape[1] // 2].mean(1) > values.mean(1)).long())


def states(net):
    return {name: small.weights(calibrator) for name, calibrator in net.calibrators.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(small.same(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["temperature", "learned"])
def test_training_fits_a_gauge_for_every_exit_on_the_rows_held_out(name):
    net = small.network(heads=("linear", "conv"), confidence=name)
    loader = learnable()
    report = train_exits(net, loader, config=QUICK)
    assert (report.samples, report.held_out) == (COUNT, COUNT // 4)
    picked = torch.from_numpy(np.random.default_rng((0, 1)).permutation(COUNT)[: COUNT // 4]).sort().values
    x, y = (torch.cat(each)[picked] for each in zip(*loader, strict=True))
    answers, final = net.forward_all(x)
    answers[len(net.positions), 0] = final
    assert sorted(net.calibrators) == sorted(f"{p}|{c}" for p, c in answers)
    for (p, c), outputs in answers.items():
        wanted = get_fitted(name)(3)
        wanted.fit(outputs, (outputs.argmax(1) == y).float())
        # cached features are pooled in another order than features on the way
        torch.testing.assert_close(net.confidence_of(p, c)(outputs), wanted(outputs), rtol=1e-3, atol=1e-4)


def test_heads_do_not_see_what_is_held_out(monkeypatch):
    seen = set()
    step = head_trainer.HeadTrainer._step

    def watching(self, rows, rate):
        seen.update(rows.tolist())
        step(self, rows, rate)

    monkeypatch.setattr(head_trainer.HeadTrainer, "_step", watching)
    for name, share, expected in (("learned", 0.25, 120), ("learned", 0.0, 160), ("margin", 0.25, 160)):
        seen.clear()
        net = small.network(heads=("linear", "conv"), confidence=name)
        report = train_exits(net, learnable(), config=dataclasses.replace(QUICK, calibration=share))
        assert len(seen) == expected == COUNT - report.held_out
    fresh = small.weights(get_fitted("learned")(3))
    net = small.network(heads=("linear", "conv"), confidence="learned")
    train_exits(net, learnable(), config=dataclasses.replace(QUICK, calibration=0))
    assert all(small.same(fresh, state) for state in states(net).values())


def cache(rows, views):
    return Cache({}, torch.zeros(rows, 2), None, None, "", {}, views)


def test_a_sample_is_held_out_in_all_its_views():
    found = cache(300, 3).held_out(0.2, 0)
    assert found.sum() == 60
    assert (found[:100] == found[100:200]).all()
    assert (found[:100] == found[200:]).all()
    assert (found[:100] != cache(300, 3).held_out(0.2, 1)[:100]).any()
    assert [cache(n, 1).held_out(0.999, 0).sum() for n in (1, 2, 10)] == [0, 1, 9]  # one is left to train on
    assert cache(7, 1).held_out(0.0, 0).sum() == 0


def test_the_same_seed_gives_the_same_gauges(tmp_path):
    found = []
    for folder in ("a", "a", "b"):
        net = small.network(heads=("linear", "conv"), confidence="learned")
        train_exits(net, learnable(), config=QUICK, work_dir=tmp_path / folder)
        found.append(states(net))
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    train_exits(net, learnable(), config=dataclasses.replace(QUICK, seed=1))
    assert not equal(found[0], states(net))


def test_without_labels_the_full_model_is_the_truth():
    net = small.network(small.Vector, confidence="learned")
    report = train_exits(net, small.loader(small.Vector, 200, labelled=False), config=QUICK)
    assert report.held_out == 50
    confidence_fn = net.confidence_of(len(net.positions))(net(small.inputs(small.Vector)))
    assert confidence_fn.min() > 0.8  # it always agrees with itself


def test_calibrate_fits_on_other_samples():
    net = small.network(confidence="learned", heads=("linear", "mlp"))
    train_exits(net, learnable(), config=QUICK)
    before, weights = states(net), {name: v.clone() for name, v in net.heads.state_dict().items()}
    loader = learnable(count=300, seed=8)
    report = calibrate(net, loader)
    assert not equal(before, states(net))
    assert small.same(weights, net.heads.state_dict())
    records = offramp.record_outputs(net, loader)
    by_name = {(e.position, e.head): e.auroc for e in report.exits}
    assert report.samples == 300
    assert repr(report) == f"CalibrationReport({len(report.exits)} confidences on 300 samples)"
    assert len(by_name) == 1 + len(list(net.exits()))
    for p, c, _ in net.exits():
        wanted = auroc(records.confidence[p, c], records.quality[p, c])
        assert by_name[net.positions[p], net.head_names[c]] == pytest.approx(wanted, abs=1e-3)
    final = auroc(records.final_confidence, records.final_quality)
    assert by_name["output", None] == pytest.approx(final, abs=1e-3, nan_ok=True)


def test_calibrate_goes_on_where_it_stopped(tmp_path, monkeypatch):
    net = small.network(heads=("linear",), confidence="temperature")
    counts = {"batches": 0}
    answers = offramp.ExitNetwork.answers

    def counting(self, values):
        counts["batches"] += 1
        return answers(self, values)

    monkeypatch.setattr(offramp.ExitNetwork, "answers", counting)
    calibrate(net, learnable(), work_dir=tmp_path)
    first = states(net)
    assert counts["batches"] == 5
    calibrate(net, learnable(), work_dir=tmp_path)
    assert counts["batches"] == 5
    assert equal(first, states(net))
    train_exits(net, learnable(), config=QUICK)
    calibrate(net, learnable(), work_dir=tmp_path)  # other heads: other outputs
    assert counts["batches"] == 10


@pytest.mark.parametrize("labelled", [True, False])
def test_each_token_that_counts_is_a_row(labelled):
    model = small.model(Tagger)
    x = small.inputs(small.Tokens, 90)
    y = torch.randint(0, 3, (90, 5), generator=torch.Generator().manual_seed(0))
    y[x["mask"] == 0] = 1  # padding has labels, too: they must not count
    y[:, 1] = -100
    net = offramp.attach_exits(
        model, small.few(x), task="token-classification", confidence="learned", mask="mask", heads=("linear",)
    )
    mask = x["mask"] != 0
    counts = mask & (y >= 0) if labelled else mask
    _, final = net.forward_all(x)
    right = (final.argmax(2) == y) if labelled else torch.ones(90, 5, dtype=torch.bool)
    wanted = get_fitted("learned")(3)
    wanted.fit(final[counts], right[counts].float())
    calibrate(net, small.batches(x, y if labelled else None), quality="labels" if labelled else "agreement")
    got = net.confidence_of(len(net.positions))(final, mask)
    each = wanted(final.flatten(0, 1)).view(90, 5)
    torch.testing.assert_close(got, (each * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-5)
    config = dataclasses.replace(QUICK, survivors=0.5)
    report = train_exits(net, small.batches(x, y if labelled else None), config=config)
    assert report.held_out == 22
    records = offramp.record_outputs(
        net, small.batches(x, y if labelled else None), quality="labels" if labelled else "agreement"
    )
    assert np.isfinite(records.confidence).all()


def test_a_module_given_for_the_input_is_gauged_and_not_trained():
    given = small.model(Small)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    net = small.network(small.Vector, heads=("linear",), input_exits={"own": given}, confidence="learned")
    loader = learnable(small.Vector)
    report = train_exits(net, loader, config=QUICK)
    assert small.same(before, given.state_dict())
    assert "own" not in {entry.head for entry in report.exits}
    column = net.head_names.index("own")
    picked = torch.from_numpy(np.random.default_rng((0, 1)).permutation(COUNT)[: COUNT // 4]).sort().values
    x, y = (torch.cat(each)[picked] for each in zip(*loader, strict=True))
    wanted = get_fitted("learned")(3)
    wanted.fit(given(x), (given(x).argmax(1) == y).float())
    torch.testing.assert_close(net.confidence_of(0, column)(given(x)), wanted(given(x)))


def test_unfitted_confidences():
    outputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    for name in ("margin", "temperature"):
        confidence_fn = unfitted(small.network(small.Vector, confidence=name))
        plain = get_confidence("margin" if name == "margin" else "max-probability")
        torch.testing.assert_close(confidence_fn(outputs), plain(outputs))
    net = small.network(small.Vector, confidence="temperature")
    train_exits(net, learnable(small.Vector), config=QUICK)
    assert torch.equal(unfitted(net)(outputs), confidence_fn(outputs))  # whatever was fitted before


def test_truth_by_labels_and_by_agreement():
    net = small.network(small.Vector)
    answers, outputs = torch.eye(3), torch.eye(3)[[0, 2, 2]]
    assert Truth(answers, torch.tensor([0, 0, 2]), None).quality(net, outputs).tolist() == [1, 0, 1]
    assert Truth(answers, None, None).quality(net, outputs).tolist() == [1, 0, 1]


def without_labels(loader):
    return [x for x, _ in loader]


@pytest.mark.parametrize(
    ("name", "loader", "quality", "message"),
    [
        ("margin", learnable, "labels", r"the confidence 'margin' has nothing to fit; .*'temperature' or"),
        ("learned", learnable, "right", r"expected 'labels' or 'agreement', got 'right'"),
        ("learned", lambda: without_labels(learnable()), "labels", r"got none; pass quality='agreement'"),
        ("learned", list, "labels", r"the loader yields no samples"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(name, loader, quality, message):
    net = small.network(heads=("linear", "conv"), confidence=name)
    before = states(net)
    with pytest.raises(InputError, match=message):
        calibrate(net, loader(), quality=quality)
    assert equal(before, states(net))


def test_an_exit_that_is_not_finite_is_refused():
    net = small.network(small.Vector, heads=("linear",), confidence="temperature")
    with torch.no_grad():
        net.head(1, "linear").out.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"head 'linear' at 'a' .*not finite; train it again"):
        calibrate(net, learnable(small.Vector))
