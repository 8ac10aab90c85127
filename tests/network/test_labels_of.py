"""One task's labels out of batches with the labels of several."""

from __future__ import annotations

import pytest
import torch

from offramp.errors import InputError
from offramp.network.multitask import labels_of

X, A, B = torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([5, 6])


@pytest.mark.parametrize(
    ("batch", "task", "inputs"),
    [
        ((X, {"a": A, "b": B}), "b", 1),
        ((X, A, B), 1, 1),
        ((X, (A, B)), 1, 1),
        ([X, [A, B]], 1, 1),
        ((X, X, {"b": B}), "b", 2),
        (({"ids": X}, {"b": B}), "b", 1),
    ],
)
def test_labels_of_a_task_in_tuples(batch, task, inputs):
    loader = labels_of([batch, batch], task, inputs=inputs)
    assert len(loader) == 2
    for _ in range(2):
        for got in loader:
            assert got[-1] is B
            assert len(got) == inputs + 1
            assert all(mine is theirs for mine, theirs in zip(got[:-1], batch, strict=False))


@pytest.mark.parametrize("batch", [{"ids": X, "labels": {"a": A, "b": B}}, {"ids": X, "a": A, "b": B}])
def test_labels_of_a_task_in_dicts(batch):
    (got,) = labels_of([batch], "b")
    assert got["labels"] is B
    assert got["ids"] is X


@pytest.mark.parametrize(
    ("batch", "task", "message"),
    [
        ((X, {"a": A}), "b", "the batch has no labels 'b'; it has 'a'"),
        ((X, A), 1, "the batch has no labels 1; it has '0'"),
        ({"ids": X, "labels": {"a": A}}, "b", "the batch has no labels 'b'; it has 'a'"),
        ((X,), 0, "expected batches of 1 inputs and then labels, got 1 items"),
        (X, 0, "expected batches of 1 inputs and then labels, got Tensor"),
    ],
)
def test_labels_that_are_not_there(batch, task, message):
    with pytest.raises(InputError, match=message):
        list(labels_of([batch], task))


def test_an_input_that_is_called_like_labels_stays():
    batch = {"x": torch.zeros(2), "target": torch.ones(2), "labels": {"a": torch.tensor([0, 1])}}
    (found,) = labels_of([batch], "a")
    assert set(found) == {"x", "target", "labels"}
    assert found["labels"].tolist() == [0, 1]
