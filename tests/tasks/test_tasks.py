from __future__ import annotations

import math
from collections import UserDict

import pytest
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.base import make_task, select_output

OUTPUTS = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 0.5]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, 1, dtype=torch.long), r"expected shape \(3,\), one class per sample; got \(3, 1\)"),
        (torch.zeros(2, dtype=torch.long), r"expected shape \(3,\), one class per sample; got \(2,\)"),
        (torch.zeros(3), "expected integers, got torch.float32; pass class indices"),
        (torch.zeros(3, dtype=torch.bool), "expected integers, got torch.bool"),
        (torch.zeros(3, dtype=torch.complex128), "expected integers, got torch.complex128"),
        (
            torch.tensor([0, 3, 1]),
            "expected 0 to 2 because the model has 3 outputs, got 0 to 3; map the labels",
        ),
        (torch.tensor([0, -1, 1]), "got -1 to 1"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task("classification").check_labels(labels, OUTPUTS)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.uint8])
def test_labels_that_fit(dtype: torch.dtype) -> None:
    task, labels = make_task("classification"), torch.tensor([0, 2, 1], dtype=dtype)
    task.check_labels(labels, OUTPUTS)
    task.check_labels(labels[:0], OUTPUTS[:0])
    assert task.quality(OUTPUTS, labels).tolist() == [1, 0, 0]
    wanted = torch.stack([OUTPUTS[i].logsumexp(0) - OUTPUTS[i, int(labels[i])] for i in range(3)])
    torch.testing.assert_close(task.loss(OUTPUTS, labels), wanted)


def test_agreement_is_with_the_largest_output_of_the_full_model() -> None:
    task = make_task("classification")
    assert task.agreement(OUTPUTS, OUTPUTS.flip(0)).tolist() == [0, 1, 0]


def test_distillation_is_the_divergence_by_definition() -> None:
    student, teacher = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    wanted = 4 * (p * (p.log() - q.log())).sum(1)
    torch.testing.assert_close(make_task("classification").distillation(student, teacher, 2.0), wanted)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_zero_for_equal_outputs_and_pulls_towards_the_teacher(temperature: float) -> None:
    task, teacher = make_task("classification"), torch.tensor([[1.0, -2.0, 0.5]])
    assert task.distillation(teacher, teacher + 7, temperature).item() == pytest.approx(0, abs=1e-6)
    student = torch.zeros(1, 3, requires_grad=True)
    before = task.distillation(student, teacher, temperature).sum()
    before.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    # the gradient is T (softmax(student / T) - softmax(teacher / T))
    torch.testing.assert_close(student.grad, temperature * (1 / 3 - (teacher / temperature).softmax(1)))
    after = task.distillation(student.detach() - 0.1 * student.grad, teacher, temperature).sum()
    assert after < before


def test_classes_that_the_teacher_rules_out_stay_finite() -> None:
    teacher = torch.tensor([[1.0, -math.inf, 0.0]])
    loss = make_task("classification").distillation(torch.zeros(1, 3), teacher, 1.0)
    p = 1 / (1 + math.exp(-1))
    assert loss.item() == pytest.approx(math.log(3) + p * math.log(p) + (1 - p) * math.log(1 - p), abs=1e-6)


class NotAnAnswer:
    pass


EXTRA = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (OUTPUTS, None),
        ({"logits": OUTPUTS, "hidden": EXTRA}, None),
        (UserDict({"logits": OUTPUTS, "loss": None}), None),
        ({"answer": OUTPUTS}, None),
        ((OUTPUTS,), None),
        ([EXTRA, OUTPUTS], 1),
        ({"a": EXTRA, "b": OUTPUTS}, "b"),
    ],
)
def test_the_answer_is_found(output: object, key: str | int | None) -> None:
    assert select_output(output, key) is OUTPUTS


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        (
            (OUTPUTS, EXTRA),
            None,
            r"expected one tensor, got .0: .B, 3., 1: .B, 5..; say which one is the answer: output=0",
        ),
        (
            {"a": EXTRA, "b": OUTPUTS},
            None,
            r"got .'a': .B, 5., 'b': .B, 3..; say which one is the answer: output='a'",
        ),
        ({"a": OUTPUTS}, "logits", r"no 'logits' in .'a': .B, 3..; pass output="),
        (OUTPUTS, "logits", r"no 'logits' in \(B, 3\)"),
        (NotAnAnswer(), None, "expected one tensor, got NotAnAnswer"),
        ((), None, "expected one tensor, got tuple"),
        ({"logits": None}, None, "expected one tensor, got NoneType"),
        (torch.zeros(3), None, r"got \(B\); pass output=<key or index>, or task='binary' or 'regression'"),
        (torch.zeros(3, 2, 2), None, r"got \(B, 2, 2\)"),
        (torch.zeros(3, 2, dtype=torch.long), None, "expected floating point scores, got torch.int64"),
    ],
)
def test_the_answer_is_not_found(output: object, key: str | int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_output(output, key)


def test_sizes_in_messages_are_those_of_the_answer() -> None:
    with pytest.raises(InputError, match=r"got \(B, 7, 100\)"):
        select_output(torch.zeros(2, 7, 100), None)
    with pytest.raises(InputError, match=r"got \(\)"):
        select_output(torch.zeros(()), None)


def test_an_unknown_task() -> None:
    with pytest.raises(InputError, match="unknown task 'clasification'; did you mean 'classification'"):
        make_task("clasification")


@pytest.mark.parametrize(
    ("labels", "fix"),
    [
        (torch.eye(3, dtype=torch.long), r"labels.argmax\(-1\)"),
        (torch.zeros(3, 1).long(), r"labels.squeeze\(-1\)"),
    ],
)
def test_labels_of_another_shape_say_what_to_pass(labels: Tensor, fix: str) -> None:
    with pytest.raises(InputError, match=rf"expected shape \(3,\), one class per sample; got .*; pass {fix}"):
        make_task("classification").check_labels(labels, torch.zeros(3, 3))
