from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import Tensor

from offramp.data.inputs import InputSpec
from offramp.errors import InputError

X, M = torch.ones(4, 3, 2), torch.zeros(4, dtype=torch.long)
ONE, PAIR, NAMED = InputSpec.of(X), InputSpec.of((X, M)), InputSpec.of({"x": X, "m": M})


def test_structures() -> None:
    assert (ONE.names, ONE.shapes, ONE.dtypes, ONE.keyword) == (("0",), ((3, 2),), (torch.float32,), False)
    assert (PAIR.names, PAIR.shapes) == (("0", "1"), ((3, 2), ()))
    assert (NAMED.names, NAMED.keyword, NAMED.device) == (("x", "m"), True, torch.device("cpu"))
    assert NAMED.call([X, M]) == ((), {"x": X, "m": M})
    assert PAIR.call([X, M]) == ((X, M), {})


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((), "expected a tensor, or a tuple or dict of tensors; got none"),
        ({}, "got none"),
        ((X, None), r"example_inputs\['1'\]: expected a tensor, got NoneType; pass a batch of inputs"),
        ([[X]], r"example_inputs\['0'\]: expected a tensor, got list"),
        ("x", "expected a tensor, got str"),
        (torch.tensor(1.0), "expected a batch dimension first, got a scalar"),
        ((X, M[:2]), r"got sizes \[2, 4\] on \['cpu'\]"),
        (X[:0], r"one batch size of at least 1 and one device, got sizes \[0\]"),
        ((X, M.to("meta")), r"on \['cpu', 'meta'\]"),
    ],
)
def test_examples_that_are_no_batch(example: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        InputSpec.of(example)


def test_flatten_takes_any_batch_size_and_ignores_further_keys() -> None:
    assert ONE.flatten(X[:0])[0].shape == (0, 3, 2)
    assert ONE.flatten([X])[0] is X
    found = NAMED.flatten(UserDict({"m": M, "labels": 3, "x": X}))
    assert found[0] is X
    assert found[1] is M


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        (ONE, {"x": X}, "expected a tensor or a tuple, as in example_inputs; got dict"),
        (NAMED, (X, M), "expected a dict with keys x, m, as in example_inputs; got tuple"),
        (NAMED, {"x": X}, r"\['m'\] missing; got \('x',\)"),
        (PAIR, X, "expected 2 tensors, got 1"),
        (PAIR, (X, 3), "input '1': expected a tensor, got int"),
        (ONE, torch.ones(4, 3, 3), r"input '0': expected shape \(B, 3, 2\), got \(4, 3, 3\)"),
        (PAIR, (X, M[:, None]), r"input '1': expected shape \(B\), got \(4, 1\)"),
        (PAIR, (X, torch.tensor(1)), r"input '1': expected shape \(B\), got \(\)"),
        (ONE, X.double(), "expected torch.float32, got torch.float64; convert the batch"),
        (ONE, X.to("meta"), "expected it on cpu, got meta; move the batch"),
        (PAIR, (X, M[:3]), "input '1': expected batch size 4 like '0', got 3"),
    ],
)
def test_inputs_that_do_not_fit(spec: InputSpec, inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec.flatten(inputs)


LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("spec", "batch", "labelled"),
    [
        (ONE, X, False),
        (ONE, [X], False),
        (ONE, [X, LABELS], True),
        (ONE, (X, [0, 1, 2, 3]), True),
        (ONE, ([X], LABELS), True),
        (ONE, ([X], None), False),
        (PAIR, (X, M), False),
        (PAIR, (X, M, LABELS), True),
        (PAIR, ((X, M), LABELS), True),
        (NAMED, {"x": X, "m": M}, False),
        (NAMED, {"x": X, "m": M, "target": LABELS}, True),
        (NAMED, ({"x": X, "m": M}, LABELS), True),
    ],
)
def test_a_loaders_batches(spec: InputSpec, batch: object, labelled: bool) -> None:
    values, labels, _ = spec.read_batch(batch)
    assert values[0] is X
    assert len(values) == len(spec.names)
    assert labels is None if not labelled else isinstance(labels, Tensor) and labels.tolist() == [0, 1, 2, 3]


def test_an_input_called_label_is_an_input() -> None:
    spec = InputSpec.of({"x": X, "label": M})
    values, labels, _ = spec.read_batch({"x": X, "label": M})
    assert values[1] is M
    assert labels is None


@pytest.mark.parametrize(
    ("spec", "batch", "message"),
    [
        (
            ONE,
            (X, LABELS, LABELS, M),
            r"expected batches of 1 inputs with or without labels, \(inputs, labels\) or "
            r"\(inputs, labels, weights\); got 4 items",
        ),
        (NAMED, (X, M), "expected batches of 2 inputs"),
        (ONE, (X, ["cat", "dog"]), r"expected labels as a tensor or as numbers, got \['cat', 'dog'\]"),
        (ONE, ("x", LABELS), "expected a tensor, got str"),
    ],
)
def test_other_batches(spec: InputSpec, batch: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec.read_batch(batch)
