from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.base import make_task
from offramp.tasks.confidence import get_confidence

OUTPUTS = torch.tensor([[2.0, -1.0, 0.5, -3.0], [-1.0, -1.0, -1.0, -1.0], [0.0, 4.0, -4.0, 1.0]])
LABELS = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]])


def test_quality_is_the_share_of_right_labels_all_right_or_f1() -> None:
    assert make_task("multi-label").quality(OUTPUTS, LABELS).tolist() == [0.5, 1, 1]
    assert make_task("multi-label-exact").quality(OUTPUTS, LABELS).tolist() == [0, 1, 1]
    # the first finds {0, 2} where {0, 3} are: one hit of two and two
    assert make_task("multi-label-f1").quality(OUTPUTS, LABELS).tolist() == [0.5, 1, 1]
    assert make_task("multi-label-f1").quality(OUTPUTS, 1 - LABELS).tolist() == [0.5, 0, 0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("multi-label", [0.5, 0.25]), ("multi-label-exact", [0, 0]), ("multi-label-f1", [0.5, 0.4])],
)
def test_agreement_is_the_quality_against_what_the_model_finds(name: str, wanted: list[float]) -> None:
    student = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, 1.0]])  # {0, 2} and {0, 2, 3}
    teacher = torch.tensor([[1.0, 1.0, -1.0, -1.0]]).expand(2, 4)  # {0, 1}
    assert make_task(name).agreement(student, teacher).tolist() == pytest.approx(wanted)


def test_loss_is_the_mean_log_loss_of_the_labels() -> None:
    p = 1 / (1 + (-OUTPUTS).exp())
    wanted = -torch.where(LABELS == 1, p, 1 - p).log().mean(1)
    for dtype in (torch.long, torch.bool, torch.float64):
        torch.testing.assert_close(make_task("multi-label").loss(OUTPUTS, LABELS.to(dtype)), wanted)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_of_bernoullis_by_definition(temperature: float) -> None:
    student, teacher = OUTPUTS, OUTPUTS.flip(0) + 0.3
    p, q = (teacher / temperature).sigmoid(), (student / temperature).sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    found = make_task("multi-label").distillation(student, teacher, temperature)
    torch.testing.assert_close(found, temperature**2 * each.mean(1))


def test_a_teacher_that_is_certain_stays_finite() -> None:
    teacher = torch.tensor([[math.inf, -math.inf]])
    loss = make_task("multi-label").distillation(torch.tensor([[0.0, 0.0]]), teacher, 1.0)
    assert loss.item() == pytest.approx(math.log(2))


def test_one_label_may_have_no_dimension_of_its_own() -> None:
    task, outputs = make_task("multi-label"), torch.tensor([[1.0], [-2.0]])
    for labels in (torch.tensor([1, 1]), torch.tensor([[1], [1]])):
        task.check_labels(labels, outputs)
        assert task.quality(outputs, labels).tolist() == [1, 0]
        wanted = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
        assert task.loss(outputs, labels).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 0, 1]), r"expected shape \(3, 4\), 0 or 1 for each output; got \(3,\)"),
        (torch.zeros(2, 4), r"expected shape \(3, 4\), 0 or 1 for each output; got \(2, 4\)"),
        (torch.full((3, 4), 2), "expected 0 or 1 for each output, got other values; pass labels > 0.5"),
        (torch.full((3, 4), 0.5), "expected 0 or 1 for each output, got other values"),
        (torch.full((3, 4), math.nan), "expected 0 or 1 for each output, got other values"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task("multi-label").check_labels(labels, OUTPUTS)


def test_labels_that_fit() -> None:
    for dtype in (torch.bool, torch.uint8, torch.float32):
        make_task("multi-label-f1").check_labels(LABELS.to(dtype), OUTPUTS)


def test_confidence_is_what_quality_would_be_if_the_sigmoids_were_right() -> None:
    """Labels drawn from the model's own probabilities: the mean quality is the confidence."""
    outputs = torch.tensor([[1.0, -0.5, 2.0]])
    draws = 200_000
    labels = torch.rand(draws, 3, generator=torch.Generator().manual_seed(0)) < outputs.sigmoid()
    for task, name in (("multi-label", "label-mean"), ("multi-label-exact", "label-product")):
        assert make_task(task).confidence == name
        quality = make_task(task).quality(outputs.expand(draws, 3), labels).mean().item()
        assert get_confidence(name)(outputs).item() == pytest.approx(quality, abs=0.005)  # 5 standard errors


def test_the_least_sure_label() -> None:
    p = get_confidence("label-least")(torch.tensor([[5.0, -0.5, 2.0]]))
    assert p.item() == pytest.approx(1 / (1 + math.exp(-0.5)))


@pytest.mark.parametrize("name", ["label-mean", "label-product", "label-least"])
def test_label_confidences_of_other_types_and_of_nan(name: str) -> None:
    confidence = get_confidence(name)
    half = confidence(OUTPUTS.to(torch.bfloat16))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, confidence(OUTPUTS))  # these numbers are exact in bfloat16
    assert math.isnan(confidence(torch.tensor([[1.0, math.nan]])).item())
