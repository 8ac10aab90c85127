from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.base import make_task, select_output, token_mean
from offramp.tasks.classification import IGNORED

TASK = make_task("token-classification")
OUTPUTS = torch.tensor([[[2.0, 0], [0, 1], [3, 0]], [[0, 1], [1, 0], [0, 1]]])  # says 0 1 0 and 1 0 1
LABELS = torch.tensor([[0, 0, IGNORED], [1, 1, 1]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_quality_is_the_share_of_right_tokens_that_count() -> None:
    assert TASK.quality(OUTPUTS, LABELS).tolist() == pytest.approx([1 / 2, 2 / 3])


def test_loss_is_the_mean_over_tokens_that_count() -> None:
    wanted = []
    for outputs, labels in zip(OUTPUTS, LABELS, strict=True):
        each = [o.logsumexp(0) - o[y] for o, y in zip(outputs, labels.tolist(), strict=True) if y != IGNORED]
        wanted.append(torch.stack(each).mean())
    torch.testing.assert_close(TASK.loss(OUTPUTS, LABELS), torch.stack(wanted))


def test_agreement_and_distillation_are_means_over_real_tokens() -> None:
    teacher = OUTPUTS.flip(0)  # says 1 0 1 and 0 1 0: nothing agrees
    teacher[0, 1] = torch.tensor([0.0, 5.0])
    assert TASK.agreement(OUTPUTS, teacher, MASK).tolist() == pytest.approx([1 / 2, 0])
    assert TASK.agreement(OUTPUTS, teacher).tolist() == pytest.approx([1 / 3, 0])
    each = make_task("classification").distillation(OUTPUTS.flatten(0, 1), teacher.flatten(0, 1), 2.0)
    each = each.view(2, 3)
    wanted = torch.stack([each[0, :2].mean(), each[1].mean()])
    torch.testing.assert_close(TASK.distillation(OUTPUTS, teacher, 2.0, MASK), wanted)
    torch.testing.assert_close(TASK.distillation(OUTPUTS, teacher, 2.0), each.mean(1))


def test_a_sample_without_tokens_that_count() -> None:
    labels, mask = torch.full((2, 3), IGNORED), torch.zeros(2, 3, dtype=torch.bool)
    TASK.check_labels(labels, OUTPUTS)
    outputs = OUTPUTS.clone().requires_grad_()
    assert TASK.quality(outputs, labels).tolist() == [1, 1]
    assert TASK.agreement(outputs, OUTPUTS.flip(0), mask).tolist() == [1, 1]
    losses = TASK.loss(outputs, labels) + TASK.distillation(outputs, OUTPUTS.flip(0), 1.0, mask)
    assert losses.tolist() == [0, 0]
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert bool((outputs.grad == 0).all())


def test_padding_becomes_ignored() -> None:
    given = torch.tensor([[0, 1, 1], [1, 0, IGNORED]], dtype=torch.int16)
    assert TASK.real_labels(given, MASK).tolist() == [[0, 1, IGNORED], [1, 0, IGNORED]]
    assert TASK.real_labels(given.clamp(min=0).to(torch.uint8), MASK).tolist()[0] == [0, 1, IGNORED]
    assert TASK.real_labels(given, None) is given
    assert make_task("classification").real_labels(given, MASK) is given


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, dtype=torch.long), r"expected shape \(2, 3\), one class per token; got \(2,\)"),
        (torch.zeros(2, 4, dtype=torch.long), r"expected shape \(2, 3\), one class per token; got \(2, 4\)"),
        (torch.zeros(2, 3), "expected integers, got torch.float32; pass class indices"),
        (torch.zeros(2, 3, dtype=torch.bool), "expected integers, got torch.bool"),
        (
            torch.tensor([[0, 1, 2], [0, 0, IGNORED]]),
            r"expected 0 to 1 \(or -100 for a token that does not count\) because the model has 2 outputs, "
            "got 0 to 2",
        ),
        (torch.tensor([[0, 1, -1], [0, 0, IGNORED]]), "got -1 to 1"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TASK.check_labels(TASK.real_labels(labels, None), OUTPUTS)
    if labels.shape != MASK.shape or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        with pytest.raises(InputError, match=message):  # a mask does not hide what is wrong
            TASK.check_labels(TASK.real_labels(labels, MASK), OUTPUTS)


def test_the_mean_over_tokens() -> None:
    values = torch.tensor([[1.0, 3.0, math.inf], [2.0, 2.0, 5.0], [math.nan, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    assert token_mean(values, mask, empty=7.0).tolist() == [2, 3, 7]
    assert token_mean(values[1:2], None).tolist() == [3]


def test_the_answer_of_every_token_is_found() -> None:
    assert select_output({"logits": OUTPUTS}, None, per_token=True) is OUTPUTS
    with pytest.raises(InputError, match=r"expected a tensor \(batch, tokens, outputs\), got \(B, 2\)"):
        select_output(OUTPUTS[:, 0], None, per_token=True)
    with pytest.raises(InputError, match="or task='token-classification' if each token has an answer"):
        select_output(OUTPUTS, None)
