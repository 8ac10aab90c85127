"""Every task from a trained model to the engine and through an artifact, on models of milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.errors import InputError
from offramp.tasks.base import Task, make_task, register_task
from offramp.tasks.multi_label import MultiLabel
from offramp.tasks.regression import Regression
from small import Vector, batches, inputs, model


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        return x + torch.relu(self.near((x * real).transpose(1, 2))).transpose(1, 2)


class Tags(nn.Module):
    """ids (B, 6) and mask (B, 6) to (B, 6, 3); padding does not reach real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Mixing() for _ in range(3))
        self.top = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, real = self.embed(ids), mask.unsqueeze(2).to(torch.float32)
        for layer in self.layers:
            x = layer(x, real)
        return self.top(x)


@register_task("weighted-labels")
class WeightedLabels(MultiLabel):
    """A user's own: the first label counts as much as all others."""

    name = "weighted-labels"

    def __init__(self, first: float = 0.5) -> None:
        self.first = first

    def options(self) -> dict[str, Any]:
        return {"first": self.first}

    def _score(self, found: Tensor, wanted: Tensor) -> Tensor:
        right = (found == wanted).float()
        return self.first * right[:, 0] + (1 - self.first) * right[:, 1:].mean(1)


COUNT = 96
TASKS: dict[str, Task] = {
    name: make_task(name) for name in ("multi-label", "multi-label-exact", "multi-label-f1")
} | {
    "regression": Regression(scale=[1.0, 2.0, 3.0], center=[0.1, 0.0, -0.1]),
    "token-classification": make_task("token-classification"),
    "weighted-labels": WeightedLabels(first=0.75),
}


def sentences() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    mask = (torch.arange(6) < torch.randint(1, 7, (COUNT, 1), generator=random)).long()
    return {"ids": torch.randint(0, 20, (COUNT, 6), generator=random), "mask": mask}


def given(task: Task) -> tuple[nn.Module, Any, Tensor]:
    """(model, inputs, labels)."""
    random = torch.Generator().manual_seed(2)
    if task.per_token:
        return model(Tags), sentences(), torch.randint(0, 3, (COUNT, 6), generator=random)
    labels = torch.randn(COUNT, 3, generator=random)
    return model(Vector), inputs(Vector, COUNT), labels if task.name == "regression" else labels > 0


def built(task: Task, labelled: bool = True) -> tuple[Any, Any, Any, Any, list[Any]]:
    """(net, inputs, labels, records, costs)"""
    backbone, x, y = given(task)
    few = {name: value[:2] for name, value in x.items()} if isinstance(x, dict) else x[:2]
    mask = "mask" if task.per_token else None
    net = offramp.attach_exits(backbone, few, task=task, mask=mask, heads=("linear", "mlp"))
    loader = batches(x, y if labelled else None)
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=2))
    records = offramp.record_outputs(net, loader, quality="labels" if labelled else "agreement")
    return net, x, y, records, loader


@pytest.mark.parametrize("name", sorted(TASKS))
def test_from_model_to_engine_and_through_an_artifact(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    net, x, y, records, loader = built(task)
    costs = offramp.measure_cost(net)
    frontier = offramp.search(records, costs, regularise=None)
    p, c = map(int, np.argwhere(records.exists)[0])
    middle = float(np.median(records.confidence[p, c]))
    config = offramp.ExitConfig(
        (offramp.ExitChoice(records.positions[p], records.heads[c], np.nextafter(np.float32(middle), 0)),)
    )
    outcome = offramp.evaluate(records, costs, config)
    assert 0 < outcome.exit_shares[p] < 1 or name == "multi-label-exact"
    out = offramp.Engine(net, config)(x)
    assert np.array_equal(out.position.numpy(), outcome.position)
    real = task.real_labels(y, net.mask(list(x.values())) if task.per_token else None)
    quality = float(task.quality(task.from_model(out.outputs), real).double().mean())
    assert quality == pytest.approx(outcome.quality, abs=1e-6)

    offramp.save(tmp_path / "artifact", net, frontier, costs)
    again, _, _ = offramp.load(tmp_path / "artifact", net.backbone)
    assert again.task.identity == task.identity
    same = offramp.record_outputs(again, loader)
    assert np.array_equal(same.confidence, records.confidence)
    assert np.array_equal(same.quality, records.quality)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_all_exits_off_is_the_model_bit_for_bit(name: str) -> None:
    backbone, x, _ = given(TASKS[name])
    net = built(TASKS[name])[0]
    with torch.no_grad():
        wanted = backbone(**x) if isinstance(x, dict) else backbone(x)
    assert torch.equal(offramp.Engine(net)(x).outputs, wanted)
    assert torch.equal(net(x), wanted)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_without_labels_the_model_is_right(name: str) -> None:
    records = built(TASKS[name], labelled=False)[3]
    assert bool((records.final_quality == 1).all())
    there = records.quality[records.exists]
    assert 0 <= there.min() < there.max() <= 1


def test_an_artifact_of_a_task_that_is_not_registered_here(tmp_path: Path) -> None:
    class Unknown(MultiLabel):
        name = "nobody-knows"

    net, _, _, records, _ = built(Unknown())
    costs = offramp.measure_cost(net)
    offramp.save(tmp_path / "artifact", net, offramp.search(records, costs), costs)
    with pytest.raises(offramp.OfframpError, match="unknown task 'nobody-knows'"):
        offramp.load(tmp_path / "artifact", net.backbone)


def test_padding_changes_nothing() -> None:
    """Other characters behind the end: the same answers there, confidences and qualities, in every exit."""
    net, x, y, records, _ = built(TASKS["token-classification"])
    pad = x["mask"] == 0
    other = {"ids": torch.where(pad, 19 - x["ids"], x["ids"]), "mask": x["mask"]}
    again = offramp.record_outputs(net, batches(other, torch.where(pad, 2 - y, y)))
    np.testing.assert_allclose(again.confidence, records.confidence, atol=1e-6)
    np.testing.assert_array_equal(again.quality, records.quality)
    assert int(pad.sum()) > 0


def test_a_mask_of_another_length_than_the_answer() -> None:
    class Shorter(Tags):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids, mask)[:, 1:]

    few = {name: value[:2] for name, value in sentences().items()}
    with pytest.raises(InputError, match="expected one entry for each of the answer's 5 tokens"):
        offramp.attach_exits(model(Shorter), few, task="token-classification", mask="mask")


def test_a_scale_for_other_outputs_than_the_model_has() -> None:
    with pytest.raises(InputError, match="expected one number, or 3 because the model has 3 outputs; got 2"):
        offramp.attach_exits(model(Vector), inputs(Vector, 2), task=Regression(scale=[1.0, 2.0]))


def test_the_task_of_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "tasks.md").read_text(encoding="utf-8")
    code = next(block for block in guide.split("```python\n") if '@register_task("reciprocal-rank")' in block)
    backbone, x, _ = given(TASKS["multi-label"])
    names: dict[str, Any] = {"model": backbone, "example": x[:2], "offramp": offramp}
    exec(code.split("```")[0], names)
    task = names["net"].task
    outputs = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]])
    assert task.quality(outputs, torch.tensor([2, 1])).tolist() == pytest.approx([1 / 3, 1])
    assert task.agreement(outputs, outputs.flip(1)).tolist() == pytest.approx([1 / 3, 1])
