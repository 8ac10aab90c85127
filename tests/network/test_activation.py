"""Models whose outputs are probabilities already, and models with one output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.errors import InputError
from offramp.tasks.activation import activate, looks_like, undone

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
TRUTH = X[:, 0] + 0.3 * X[:, 1]


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))


class Net(nn.Module):
    def __init__(self, outputs: int, last: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6)) for _ in range(3)
        )
        self.top, self.last = nn.Linear(6, outputs), last

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        logits = self.top(x)
        return logits if self.last is None else self.last(logits)  # type: ignore[no-any-return]


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)  # type: ignore[no-any-return]


def trained(net: offramp.ExitNetwork, labels: Tensor, **options: Any) -> offramp.ExitRecords:
    loader = [(X, labels)]
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=3, batch_size=8), progress=False)
    return offramp.record_outputs(net, loader, progress=False, **options)


ENDS = {
    "softmax": (nn.Softmax(dim=1), "softmax"),
    "softmax of the last": (nn.Softmax(dim=-1), "softmax"),
    "log-softmax": (nn.LogSoftmax(dim=1), "log_softmax"),
    "sigmoid, one against all": (nn.Sigmoid(), "sigmoid"),
    "special softmax": (lambda y: torch.special.softmax(y, 1), "softmax"),
    "special": (torch.special.expit, "sigmoid"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_a_classifier_ends_with_is_found(name: str) -> None:
    last, activation = ENDS[name]
    model = Net(4, last).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",))
    assert net.task.activation == activation
    wanted, labels = answers(model), answers(model).argmax(1)
    assert torch.equal(offramp.Engine(net)(X).outputs, wanted)
    assert torch.equal(net(X), wanted)
    records = trained(net, labels)
    assert records.final_quality.mean() == 1
    logits = answers(Net(4).eval())
    np.testing.assert_allclose(
        records.final_confidence, logits.softmax(1).amax(1), atol=1e-6
    )  # of the logits: not of the probabilities, taken for logits


@pytest.mark.parametrize("position", [1, 2])
def test_exits_answer_as_the_model_does(position: int) -> None:
    model = Net(4, nn.Softmax(1)).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",))
    trained(net, answers(model).argmax(1))
    exit_ = offramp.ExitChoice(net.positions[position], "linear", -1.0)
    got = offramp.Engine(net, offramp.ExitConfig((exit_,)))(X)
    assert got.position.unique().tolist() == [position]
    torch.testing.assert_close(got.outputs.sum(1), torch.ones(40))
    torch.testing.assert_close(got.outputs.amax(1), got.confidence)


def test_a_softmax_over_groups_of_outputs_is_left_alone() -> None:
    model = Net(4, lambda y: y.view(-1, 2, 2).softmax(-1).flatten(1)).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",))
    assert net.task.activation is None
    assert torch.equal(offramp.Engine(net)(X).outputs, answers(model))


def test_a_dimension_that_is_not_the_classes_is_left_alone() -> None:
    model = Net(4, lambda y: torch.softmax(y, 0)).eval()
    with pytest.raises(offramp.OfframpError, match="depends on the others in the batch"):
        offramp.attach_exits(model, X[:4])


@pytest.mark.parametrize(
    ("last", "activation"),
    [
        (lambda y: y.softmax(1) * 1.0, "softmax"),
        (lambda y: y.log_softmax(1).exp(), "softmax"),
        (lambda y: y.softmax(1).log(), "log_softmax"),
        (lambda y: y.sigmoid() * 1.0, "sigmoid"),
        (lambda y: y.clone().sigmoid_(), "sigmoid"),
    ],
)
def test_probabilities_whose_maker_is_not_found_are_told_and_undone(last: Any, activation: str) -> None:
    model = Net(4, last).eval()
    with pytest.warns(UserWarning, match=f"look like probabilities.*exits with activation='{activation}'"):
        offramp.attach_exits(model, X[:20], heads=("linear",))
    net = offramp.attach_exits(model, X[:8], heads=("linear",), activation=activation)
    torch.testing.assert_close(offramp.Engine(net)(X).outputs, answers(model), rtol=1e-4, atol=1e-6)
    assert trained(net, answers(model).argmax(1)).final_quality.mean() == 1


def test_few_probabilities_in_the_example_are_told_when_training() -> None:
    model = Net(4, lambda y: y.sigmoid() * 1.0).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",), task="multi-label")
    with pytest.warns(UserWarning, match="outputs of Net look like probabilities .made by sigmoid."):
        trained(net, (answers(model) > 0.5).float())


def test_outputs_taken_as_they_are() -> None:
    model = Net(4, nn.Softmax(1)).eval()
    with pytest.warns(UserWarning, match="look like probabilities"):
        net = offramp.attach_exits(model, X[:2], heads=("linear",), activation=None)
    assert net.task.activation is None
    assert torch.equal(offramp.Engine(net)(X).outputs, answers(model))


@pytest.mark.parametrize("last", [nn.Sigmoid(), lambda y: torch.sigmoid(y)])
@pytest.mark.parametrize("task", ["multi-label", "multi-label-exact", "multi-label-f1"])
def test_labels_of_a_model_that_ends_in_a_sigmoid(task: str, last: Any) -> None:
    model = Net(4, last).eval()
    truth = (answers(model) > 0.5).float()
    net = offramp.attach_exits(model, X[:2], heads=("linear",), task=task)
    records = trained(net, truth)
    assert records.final_quality.mean() == 1
    assert 0 < records.quality[1:].mean() < 1


def test_labels_of_a_model_that_ends_in_a_softmax_are_told() -> None:
    with pytest.warns(UserWarning, match="made by softmax.*task 'multi-label' reads them as logits"):
        offramp.attach_exits(Net(4, nn.Softmax(1)).eval(), X[:8], task="multi-label")


def test_wrong_activations() -> None:
    model = Net(4).eval()
    with pytest.raises(InputError, match="expected one of softmax, log_softmax, sigmoid, or None"):
        offramp.attach_exits(model, X[:2], activation="tanh")
    with pytest.raises(InputError, match="activation: expected one of sigmoid, or None; got 'softmax'"):
        offramp.attach_exits(model, X[:2], task="multi-label", activation="softmax")
    with pytest.raises(InputError, match="activation: expected one of none, or None; got 'sigmoid'"):
        offramp.attach_exits(model, X[:2], task=offramp.Regression(scale=1.0), activation="sigmoid")


def test_an_artifact_remembers_the_activation(tmp_path: Path) -> None:
    model = Net(4, nn.Softmax(1)).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",))
    records = trained(net, answers(model).argmax(1))
    costs = offramp.measure_cost(net)
    offramp.save(tmp_path / "art", net, offramp.search(records, costs), costs)
    again, _, _ = offramp.load(tmp_path / "art", Net(4, nn.Softmax(1)).eval())
    assert again.task.activation == "softmax"
    assert torch.equal(again(X), net(X))
    for exit_, out in net.forward_all(X)[0].items():
        assert torch.equal(again.forward_all(X)[0][exit_], out)


@pytest.mark.parametrize("task", ["classification", "token-classification"])
def test_one_output_is_no_class(task: str) -> None:
    example: Any = X[:2] if task == "classification" else X[:2, None].expand(2, 3, 6)
    with pytest.raises(InputError, match=r"two outputs or more.*task='binary'.*task='regression'"):
        offramp.attach_exits(Net(1).eval(), example, task=task)


SHAPES = {
    "(B, 1)": None,
    "(B,)": lambda y: y[:, 0],
    "squeezed": lambda y: y.squeeze(1),
    "flat": torch.flatten,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "labels", [lambda t: t, lambda t: t[:, None], lambda t: t.bool(), lambda t: t.double()]
)
def test_yes_or_no(shape: str, labels: Any) -> None:
    model = Net(1, SHAPES[shape]).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",), task="binary")
    logits = answers(model).view(-1, 1)
    assert torch.equal(offramp.Engine(net)(X).outputs, logits)
    yes = (logits[:, 0] > 0).long()
    records = trained(net, labels(yes))
    assert records.final_quality.tolist() == [1.0] * 40
    flipped = offramp.record_outputs(net, [(X, labels(1 - yes))], progress=False)
    assert flipped.final_quality.tolist() == [0.0] * 40
    agreement = offramp.record_outputs(net, [X], quality="agreement", progress=False)
    answers_, final = net.forward_all(X)
    wanted = ((answers_[1, 0] > 0) == (final > 0)).float()[:, 0]
    assert agreement.quality[1, 0].tolist() == wanted.tolist()


def test_yes_or_no_of_a_model_that_ends_in_a_sigmoid() -> None:
    model = Net(1, lambda y: torch.sigmoid(y[:, 0])).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",), task="binary")
    got = offramp.Engine(net)(X).outputs
    torch.testing.assert_close(got[:, 0], answers(model), rtol=1e-5, atol=1e-6)
    assert trained(net, (answers(model) > 0.5).long()).final_quality.mean() == 1


def test_wrong_labels_and_models_of_yes_or_no() -> None:
    net = offramp.attach_exits(Net(1).eval(), X[:2], heads=("linear",), task="binary")
    with pytest.raises(InputError, match="expected 0 or 1 for each output"):
        offramp.train_exits(net, [(X, torch.full((40,), 2))], progress=False)
    with pytest.raises(InputError, match="task 'binary': expected a model of one output, got 2"):
        offramp.attach_exits(Net(2).eval(), X[:2], task="binary")


@pytest.mark.parametrize("flat", [False, True])
def test_a_number_per_sample(flat: bool) -> None:
    model = Net(1, (lambda y: y[:, 0]) if flat else None).eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",), task=offramp.Regression(scale=1.0))
    assert trained(net, answers(model).view(-1)).final_quality.mean() == 1


def test_a_number_per_sample_is_no_class() -> None:
    with pytest.raises(InputError, match=r"got \(B\).*task='binary' or 'regression'"):
        offramp.attach_exits(Net(1, torch.flatten).eval(), X[:2])


def test_classes_masked_with_minus_infinity() -> None:
    gone = torch.tensor([False, False, True, False])
    model = Net(4, lambda y: y.masked_fill(gone, -torch.inf)).eval()
    for confidence in ("max-probability", "margin", "entropy", "temperature", "learned"):
        net = offramp.attach_exits(model, X[:2], heads=("linear",), confidence=confidence)
        records = trained(net, answers(model).argmax(1))
        assert records.final_quality.mean() == 1
        assert np.isfinite(records.final_confidence).all()
        assert torch.equal(offramp.Engine(net)(X).outputs, answers(model))
    offramp.search(records, offramp.measure_cost(net))


@pytest.mark.parametrize("last", [lambda y: y * torch.nan, lambda y: y + torch.inf, lambda y: y - torch.inf])
def test_answers_that_cannot_be_read(last: Any) -> None:
    net = offramp.attach_exits(Net(4, last).eval(), X[:2], heads=("linear",))
    with pytest.raises(InputError, match="the model's output is not finite"):
        trained(net, torch.zeros(40, dtype=torch.long))


def test_values_that_look_like_probabilities() -> None:
    logits = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    for name in ("softmax", "log_softmax", "sigmoid"):
        made = activate(name, logits)
        assert looks_like(made) == name
        torch.testing.assert_close(activate(name, undone(name, made)), made)
        assert looks_like(made[:, :1]) == ("sigmoid" if name != "log_softmax" else None)
    assert looks_like(logits) is None
    assert looks_like(torch.zeros(3, 4)) is None
    assert looks_like(torch.full((3, 4), 0.25)) is None  # the same for every sample: an untrained model
    assert looks_like(logits[:0]) is None
    assert looks_like(logits[:9].sigmoid()) is None  # too few to tell
    assert looks_like(logits[:9].softmax(1)) == "softmax"
    assert looks_like(logits * torch.nan) is None
