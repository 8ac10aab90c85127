"""What holds for every task, whatever the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from offramp.tasks.base import Task, make_task, token_mean
from offramp.tasks.classification import IGNORED
from offramp.tasks.confidence import get_confidence
from offramp.tasks.regression import Regression

TASKS: dict[str, Task] = {
    **{
        name: make_task(name)
        for name in (
            "classification",
            "multi-label",
            "multi-label-exact",
            "multi-label-f1",
            "binary",
            "token-classification",
        )
    },
    "regression": Regression(scale=[0.7], center=0.3, spread=2.0),
}
TOKENS = 5


@dataclass
class Drawn:
    """Outputs of a head and of the model for a few samples, labels, and the mask of real tokens."""

    task: Task
    outputs: Tensor
    teacher: Tensor
    labels: Tensor
    mask: Tensor | None

    def per_sample(self) -> dict[str, Tensor]:
        task, outputs = self.task, self.outputs
        return {
            "quality": task.quality(outputs, self.labels),
            "agreement": task.agreement(outputs, self.teacher, self.mask),
            "loss": task.loss(outputs, self.labels),
            "distillation": task.distillation(outputs, self.teacher, 2.0, self.mask),
        }

    def of(self, rows: Tensor) -> Drawn:
        mask = None if self.mask is None else self.mask[rows]
        return Drawn(self.task, self.outputs[rows], self.teacher[rows], self.labels[rows], mask)


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    name = draw(st.sampled_from(sorted(TASKS)))
    batch, k, seed = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 10**6))
    k = 1 if name == "binary" else max(k, 2) if "classification" in name else k
    task, random = TASKS[name], torch.Generator().manual_seed(seed)
    size = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    shape = (batch, TOKENS, k) if task.per_token else (batch, k)
    raw = size * torch.randn(*shape[:-1], task.head_outputs(k), generator=random)
    teacher = task.from_model(size * torch.randn(*shape, generator=random))
    mask = None
    if name == "regression":
        labels = size * torch.randn(shape, generator=random)
    elif name.startswith(("multi-label", "binary")):
        labels = torch.randint(0, 2, shape, generator=random)
    else:
        labels = torch.randint(0, k, shape[:-1], generator=random)
    if task.per_token:
        mask = torch.arange(TOKENS) < torch.randint(0, TOKENS + 1, (batch, 1), generator=random)
        labels = task.real_labels(labels, mask)
    return Drawn(task, task.from_head(raw), teacher, labels, mask)


@given(drawn())
def test_quality_and_agreement_are_fractions_one_per_sample(case: Drawn) -> None:
    case.task.check_labels(case.labels, case.outputs)
    for name, values in case.per_sample().items():
        assert values.shape == (len(case.outputs),), name
        assert bool(torch.isfinite(values).all()), name
        if name in ("quality", "agreement"):
            assert 0 <= float(values.min()) <= float(values.max()) <= 1, name


@given(drawn())
def test_the_full_model_agrees_with_itself(case: Drawn) -> None:
    assert bool((case.task.agreement(case.teacher, case.teacher, case.mask) == 1).all())


@given(drawn(), st.integers(0, 10**6))
def test_a_sample_does_not_depend_on_the_others(case: Drawn, seed: int) -> None:
    rows = torch.randperm(len(case.outputs), generator=torch.Generator().manual_seed(seed))
    whole = case.per_sample()
    for name, values in case.of(rows).per_sample().items():
        torch.testing.assert_close(values, whole[name][rows], msg=name)
    alone = case.of(rows[:1]).per_sample()
    for name, values in alone.items():
        torch.testing.assert_close(values, whole[name][rows[:1]], msg=name)


@given(drawn())
def test_distilling_from_itself_pulls_nowhere(case: Drawn) -> None:
    """Where the values are the full model's, they are not moved (regression: a corner, so zero counts)."""
    outputs = case.outputs.clone().requires_grad_()
    teacher = case.task.from_model(case.task.answer(case.outputs))
    case.task.distillation(outputs, teacher, 1.5, case.mask).sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert float(case.task.answer(outputs.grad).abs().max()) < 1e-5


@given(drawn())
def test_default_confidences_are_fractions(case: Drawn) -> None:
    confidence = get_confidence(case.task.confidence)(case.outputs.flatten(0, -2))
    assert confidence.dtype == torch.float32
    assert confidence.ndim == 1
    assert 0 <= float(confidence.min()) <= float(confidence.max()) <= 1


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.0, -7.0, 1e30]))
def test_padding_does_not_count(seed: int, more: int, filler: float) -> None:
    """A sentence in a longer frame, whatever stands in the frame's rest, gets the same numbers."""
    task, random = TASKS["token-classification"], torch.Generator().manual_seed(seed)
    outputs, teacher = torch.randn(2, 3, TOKENS, 4, generator=random)
    labels = torch.randint(0, 4, (3, TOKENS), generator=random)
    short = Drawn(task, outputs, teacher, labels, None)

    def framed(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, x.new_full((3, more, *x.shape[2:]), value)], 1)

    mask = torch.arange(TOKENS + more).expand(3, -1) < TOKENS
    padded = task.real_labels(framed(labels, 0), mask)
    long = Drawn(task, framed(outputs, filler), framed(teacher, -filler), padded, mask)
    wanted = short.per_sample()
    for name, values in long.per_sample().items():
        torch.testing.assert_close(values, wanted[name], msg=name)
    confidence = get_confidence(task.confidence)
    each = confidence(long.outputs.flatten(0, 1)).view(3, -1)
    bare = confidence(outputs.flatten(0, 1)).view(3, -1)
    torch.testing.assert_close(token_mean(each, mask), token_mean(bare, None))
    assert int((padded == IGNORED).sum()) == 3 * more


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_can_be_made_again_from_its_options(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert make_task(task.name, **task.options()).identity == task.identity
