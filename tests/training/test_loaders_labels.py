"""Loaders as people have them: samples without a label, and weights of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import offramp
import small
from offramp import TrainConfig, record_outputs, train_exits
from offramp.errors import InputError

QUICK = TrainConfig(epochs=4, batch_size=16)
X = small.inputs(small.Vector, 60)
Y = torch.arange(60) % 3


def batches(*columns: Tensor, size: int = 20) -> list[Any]:
    return [tuple(column[i : i + size] for column in columns) for i in range(0, len(columns[0]), size)]


def heads(net: offramp.ExitNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_samples_without_a_label_do_not_count() -> None:
    some = Y.clone()
    some[::4] = -100
    net = small.network(small.Vector)
    report = train_exits(net, batches(X, some), config=QUICK)
    records = record_outputs(net, batches(X, some))
    known = some != -100
    alone = record_outputs(net, batches(X[known], Y[known]))
    np.testing.assert_allclose(records.confidence, alone.confidence, atol=1e-6)
    assert np.array_equal(records.quality, alone.quality)
    assert report.full_quality == pytest.approx(alone.final_quality.mean())


def test_samples_without_a_label_learn_from_the_model() -> None:
    some = Y.clone()
    some[30:] = -100
    found = []
    for labels in (some, torch.where(some < 0, -100, some)):
        net = small.network(small.Vector)
        train_exits(net, batches(X, labels), config=QUICK)
        found.append(heads(net))
    net = small.network(small.Vector)
    train_exits(net, batches(X[:30], Y[:30]), config=QUICK)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], value) for name, value in heads(net).items())


def test_groups_of_samples_without_a_label_are_left_out() -> None:
    some = Y.clone()
    some[::3] = -100
    net = small.network(small.Vector)
    train_exits(net, batches(X, some), config=QUICK)
    records = record_outputs(net, batches(X, some), groups=np.arange(60) // 2)
    assert records.groups is not None
    assert records.groups.tolist() == [i // 2 for i in range(60) if i % 3]


def test_no_labels_at_all() -> None:
    net = small.network(small.Vector)
    train_exits(net, batches(X), config=QUICK)
    with pytest.raises(InputError, match="no sample has a label, all are -100"):
        record_outputs(net, batches(X, torch.full((60,), -100)))
    assert (
        record_outputs(net, batches(X, torch.full((60,), -100)), quality="agreement").quality.shape[2] == 60
    )


def test_fitted_confidences_without_some_labels() -> None:
    some = Y.clone()
    some[::2] = -100
    net = small.network(small.Vector, confidence="learned")
    train_exits(net, batches(X, some), config=QUICK)
    offramp.calibrate(net, batches(X, some))


def test_weights_of_samples() -> None:
    found = {}
    for name, loader in {
        "none": batches(X, Y),
        "equal": batches(X, Y, torch.full((60,), 3.0)),
        "column": batches(X, Y, torch.full((60, 1), 3.0)),
        "some": batches(X, Y, (torch.arange(60) < 30).float()),
        "half precision": batches(X, Y, (torch.arange(60) < 30).half()),
    }.items():
        net = small.network(small.Vector)
        train_exits(net, loader, config=QUICK)
        found[name] = heads(net)

    def close(a: str, b: str) -> bool:
        return all(torch.allclose(found[a][key], found[b][key], atol=1e-5) for key in found[a])

    assert close("none", "equal")
    assert close("none", "column")
    assert not close("none", "some")
    assert close("some", "half precision")


def test_weights_by_name() -> None:
    model = small.Vector().eval()

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

    found = []
    for key in ("sample_weight", "weights"):
        net = offramp.attach_exits(Named().eval(), {"x": X[:2]}, heads=("linear",))
        loader = [{"x": X, "labels": Y, key: torch.arange(60)}]
        train_exits(net, loader, config=QUICK)
        found.append(heads(net))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_weight_counts_as_often_as_the_sample_would() -> None:
    net = small.network(small.Vector, heads=("linear",))
    twice = torch.cat([X[:20], X[:10]]), torch.cat([Y[:20], Y[:10]])
    weights = 1.0 + (torch.arange(20) < 10).float()
    config = TrainConfig(epochs=60, batch_size=60)
    train_exits(net, batches(X[:20], Y[:20], weights), config=config)
    weighted = net(X), net.forward_all(X)[0]
    other = small.network(small.Vector, heads=("linear",))
    train_exits(other, [twice], config=config)
    for exit_, outputs in other.forward_all(X)[0].items():
        apart = (outputs.softmax(1) - weighted[1][exit_].softmax(1)).abs().mean()
        assert apart < 0.03


def test_weights_are_told_not_to_count_in_records() -> None:
    net = small.network(small.Vector)
    loader = batches(X, Y, torch.ones(60))
    train_exits(net, loader, config=QUICK)
    with pytest.warns(UserWarning, match="records and search count every sample once"):
        records = record_outputs(net, loader)
    assert np.array_equal(records.quality, record_outputs(net, batches(X, Y)).quality)


def test_fine_tuning_goes_by_weights() -> None:
    found = []
    for weights in (torch.ones(60), (torch.arange(60) < 20).float()):
        net = small.network(small.Vector)
        config = TrainConfig(epochs=1, batch_size=16, backbone="finetune", backbone_epochs=1)
        train_exits(net, batches(X, Y, weights), config=config)
        found.append(net.backbone.a.weight.clone())
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(60, 2), r"expected one number for each of 20 samples, got shape \(20, 2\)"),
        (-torch.ones(60), "expected finite numbers of at least 0"),
        (torch.full((60,), torch.nan), "expected finite numbers of at least 0"),
        (torch.zeros(60), "sample weights: all are 0"),
        (torch.arange(60), r"got torch\.int64; drop what is something else .an index, say."),
    ],
)
def test_wrong_weights(weights: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_exits(small.network(small.Vector), batches(X, Y, weights), config=QUICK)


def test_a_third_item_that_is_no_number() -> None:
    loader = [(X, Y, [f"{i}.png" for i in range(60)])]
    with pytest.raises(InputError, match=r"expected sample weights as a tensor or as numbers, got .'0.png'"):
        train_exits(small.network(small.Vector), loader, config=QUICK)


def test_weights_in_some_batches_alone() -> None:
    loader = [*batches(X, Y, torch.ones(60))[:1], *batches(X, Y)[1:]]
    with pytest.raises(InputError, match="some batches have sample weights and some have none"):
        train_exits(small.network(small.Vector), loader, config=QUICK)


@pytest.mark.usefixtures("untrained_heads_are_refused")
def test_untrained_heads_are_not_recorded() -> None:
    net = offramp.attach_exits(small.model(small.Vector), X[:2], heads=("linear",))
    with pytest.raises(InputError, match=r"the heads are not trained yet.*train_exits\(net, loader\) first"):
        record_outputs(net, batches(X, Y))
    net.load_state_dict(net.state_dict())  # weights from elsewhere
    record_outputs(net, batches(X, Y))
    again = offramp.attach_exits(small.model(small.Vector), X[:2], heads=("linear",))
    train_exits(again, batches(X, Y), config=QUICK)
    record_outputs(again, batches(X, Y))
