from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.base import Task, as_task, make_task, register_task
from offramp.tasks.confidence import get_confidence
from offramp.tasks.regression import Regression

TASK = Regression(scale=10.0)
LABELS = torch.tensor([[3.0, -2.0], [0.0, 40.0]])
OUTPUTS = torch.cat([torch.tensor([[5.0, -2.0], [1.0, 20.0]]), torch.tensor([[-1.0, 0.0], [1.0, 2.0]])], 1)


def test_quality_falls_with_the_error_down_to_nothing() -> None:
    # errors 2, 0 and 1, 20 of a scale of 10
    assert TASK.quality(OUTPUTS, LABELS).tolist() == pytest.approx([(0.8 + 1) / 2, 0.9 / 2])
    each = Regression(scale=[4.0, 40.0]).quality(OUTPUTS, LABELS)
    assert each.tolist() == pytest.approx([(0.5 + 1) / 2, (0.75 + 0.5) / 2])
    assert TASK.agreement(OUTPUTS, TASK.from_model(LABELS)).tolist() == pytest.approx([0.9, 0.45])


def test_loss_is_the_likelihood_of_a_laplace_distribution() -> None:
    b = 10 * OUTPUTS[:, 2:].exp()
    wanted = -torch.distributions.Laplace(OUTPUTS[:, :2], b).log_prob(LABELS).mean(1) - math.log(20)
    torch.testing.assert_close(TASK.loss(OUTPUTS, LABELS), wanted)
    torch.testing.assert_close(TASK.distillation(OUTPUTS, TASK.from_model(LABELS), 3.0), wanted)


def test_loss_is_least_where_the_expected_error_is_the_mean_one() -> None:
    labels = torch.tensor([[1.0], [-1.0], [4.0], [-2.0]])  # mean absolute error of the answer 0: 2
    losses = [
        float(TASK.loss(torch.tensor([[0.0, math.log(b / 10)]]).expand(4, 2), labels).mean())
        for b in (1.8, 2.0, 2.2)
    ]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("log_error", [-6.0, -1.0, 0.0, 1.5, 6.0])
def test_confidence_is_the_expected_quality(log_error: float) -> None:
    """Against the integral of quality times the Laplace density on a grid."""
    b = math.exp(log_error)
    e = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000  # errors over the scale, up to 1
    wanted = float(((1 - e) * (-e / b).exp() / b).mean())
    found = get_confidence("expected-quality")(torch.tensor([[123.0, log_error]]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, abs=1e-5)


def test_confidence_is_a_mean_over_outputs_and_of_the_model_itself_it_is_one() -> None:
    confidence = get_confidence(TASK.confidence)
    both = confidence(torch.tensor([[0.0, 0.0, -1.0, 2.0]]))
    each = [confidence(torch.tensor([[0.0, s]])).item() for s in (-1.0, 2.0)]
    assert both.item() == pytest.approx(sum(each) / 2)
    assert confidence(TASK.from_model(LABELS)).tolist() == [1, 1]
    assert math.isnan(confidence(torch.tensor([[0.0, math.nan]])).item())
    with pytest.raises(InputError, match="expected values and their expected errors, got 3 outputs"):
        confidence(torch.zeros(1, 3))


def test_heads_start_in_the_middle_of_the_labels() -> None:
    task = Regression(scale=[2.0, 5.0], center=[100.0, -3.0], spread=[8.0, 5.0])
    assert task.head_outputs(2) == 4
    outputs = task.from_head(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]]))
    assert task.answer(outputs).tolist() == [[100, -3], [108, -8]]
    torch.testing.assert_close(outputs[:, 2:], torch.tensor([[4.0, 1.0], [4.0, 1.0]]).log())
    wild = task.from_head(torch.full((1, 4), 1e30))
    assert bool(torch.isfinite(task.loss(wild, torch.zeros(1, 2))).all())


def test_what_the_model_says_comes_through_bit_for_bit() -> None:
    answer = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 1e6
    for dtype in (torch.float32, torch.bfloat16):
        given = answer.to(dtype)
        back = Regression(scale=0.1, center=7.0).answer(TASK.from_model(given))
        assert back.dtype == dtype
        assert torch.equal(back, given)


def test_numbers_made_while_inferring_serve_training_too() -> None:
    task = Regression(scale=1.0)
    with torch.inference_mode():
        task.from_head(torch.zeros(1, 2))
    raw = torch.zeros(1, 2, requires_grad=True)
    task.loss(task.from_head(raw), torch.tensor([2.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    assert raw.grad.tolist() == [[-1, -1]]  # d|e|/b of the value; 1 - |e|/b of the logarithm


def test_a_task_from_labels() -> None:
    labels = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    task = Regression.of(labels, scale=[0.5, 1.0])
    assert task.options() == {
        "scale": [0.5, 1.0],
        "center": [2.0, 5.0],
        "spread": [pytest.approx(math.sqrt(2)), 1.0],
    }
    one = Regression.of([1, 3, 8])
    assert one.options()["scale"] == one.options()["spread"] == [pytest.approx(math.sqrt(13))]


def test_options_make_the_same_task_again() -> None:
    task = Regression(scale=[2.0, 5.0], center=1.0)
    again = make_task(task.name, **json.loads(json.dumps(task.options())))
    assert again.identity == task.identity
    assert again.identity != Regression(scale=[2.0, 5.0]).identity
    assert torch.equal(again.quality(OUTPUTS, LABELS), task.quality(OUTPUTS, LABELS))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2), r"expected shape \(2, 2\), a number for each output; got \(2,\)"),
        (torch.zeros(2, 4), r"expected shape \(2, 2\), a number for each output; got \(2, 4\)"),
        (torch.zeros(2, 2, dtype=torch.bool), "expected real numbers, got torch.bool"),
        (torch.zeros(2, 2, dtype=torch.complex64), "expected real numbers, got torch.complex64"),
        (torch.tensor([[0.0, math.inf], [0, 0]]), "expected finite numbers, got some that are not"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TASK.check_labels(labels, OUTPUTS)


def test_labels_that_fit() -> None:
    TASK.check_labels(LABELS.to(torch.float64), OUTPUTS)
    outputs = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    for labels in (torch.tensor([1, 4]), torch.tensor([[1], [4]])):
        TASK.check_labels(labels, outputs)
        assert TASK.quality(outputs, labels).tolist() == pytest.approx([1, 0.8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"'regression' needs a scale.*pass task=Regression\(scale=...\), or Regression.of\(labels\)"),
        ({"scale": 0.0}, "Regression.scale: expected a number or one per output, finite, above 0; got 0.0"),
        ({"scale": [1.0, -1.0]}, r"Regression.scale: .* got \[1.0, -1.0\]"),
        ({"scale": []}, r"Regression.scale: .* got \[\]"),
        ({"scale": "wide"}, "Regression.scale: .* got 'wide'"),
        ({"scale": 1.0, "spread": 0.0}, "Regression.spread: .*above 0; got 0.0"),
        ({"scale": 1.0, "center": math.nan}, "Regression.center: .*finite; got nan"),
        ({"scale": 1.0, "middle": 2.0}, "task 'regression': its options do not fit .*middle"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task("regression", **options)


def test_options_for_another_number_of_outputs() -> None:
    with pytest.raises(
        InputError, match=r"Regression.scale: expected one number, or 3 because the model has 3"
    ):
        Regression(scale=[1.0, 2.0]).head_outputs(3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(1), r"expected at least 2 finite labels \(N,\) or \(N, K\), got shape \(1, 1\)"),
        (torch.zeros(2, 2, 2), r"got shape \(2, 2, 2\)"),
        (torch.tensor([1.0, math.nan]), "pass those of the training split"),
        (torch.ones(5), "the labels of an output are all equal; pass scale="),
    ],
)
def test_labels_that_say_nothing(labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Regression.of(labels)


def test_a_task_is_given_by_name_or_as_it_is() -> None:
    assert as_task(TASK) is TASK
    assert as_task("multi-label").name == "multi-label"
    with pytest.raises(InputError, match=r"'regression' needs a scale"):
        as_task("regression")
    with pytest.raises(
        InputError, match=r"expected a name or a Task, got <class .*; for example task='class"
    ):
        as_task(Regression)  # type: ignore[arg-type]


def test_what_is_registered_must_be_a_task() -> None:
    @register_task("not-a-task")
    def nothing() -> Task:
        return object()  # type: ignore[return-value]

    with pytest.raises(InputError, match="task 'not-a-task': expected a subclass of Task registered there"):
        make_task("not-a-task")


def test_labels_keep_their_digits_in_half_precision():
    task = Regression(scale=4.0)
    outputs = task.from_model(torch.full((3, 1), 1000.0, dtype=torch.bfloat16))
    quality = task.quality(outputs, torch.full((3,), 1001.9))
    torch.testing.assert_close(quality.float(), torch.full((3,), 1 - 1.9 / 4))
    assert bool(
        (task.loss(outputs, torch.full((3,), 1001.9)) > task.loss(outputs, torch.full((3,), 1001.0))).all()
    )
