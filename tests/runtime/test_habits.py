"""Engines called as people call models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import offramp
import small
from offramp.errors import InputError

X = small.inputs(small.Picture, 5)


@pytest.fixture(scope="module")
def engine() -> offramp.Engine:
    net = small.network()
    exit_ = offramp.ExitChoice(net.positions[1], net.head_names[0], 0.5)
    return offramp.Engine(net, offramp.ExitConfig((exit_,)))


@pytest.fixture(scope="module")
def named() -> offramp.Engine:
    return offramp.Engine(small.network(small.Tokens, heads=("linear",), output="logits"))


def test_an_answer_comes_apart(engine: offramp.Engine) -> None:
    out = engine(X)
    outputs, position, confidence = engine(X)
    assert torch.equal(outputs, out.outputs)
    assert torch.equal(position, out.position)
    assert torch.equal(confidence, out.confidence)
    assert out.logits is out.outputs


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_numpy_in_numpy_out(engine: offramp.Engine, rows: int) -> None:
    wanted, got = engine(X[:rows]), engine(X[:rows].numpy())
    for array, tensor in zip(got, wanted, strict=True):
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, tensor.numpy())
    assert "NumPy" in repr(got)


def test_numpy_by_name_and_in_tuples(engine: offramp.Engine, named: offramp.Engine) -> None:
    inputs = small.inputs(small.Tokens, 4)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    np.testing.assert_array_equal(named(arrays).outputs, named(inputs).outputs)
    np.testing.assert_array_equal(named(**arrays).outputs, named(inputs).outputs)
    np.testing.assert_array_equal(engine((X.numpy(),)).outputs, engine(X).outputs)
    backwards = np.flip(X.numpy(), 0)  # strides below zero
    np.testing.assert_array_equal(engine(backwards).outputs, engine(X.flip(0)).outputs)


def test_arrays_of_another_type_are_refused_like_tensors(engine: offramp.Engine) -> None:
    with pytest.raises(InputError, match=r"expected torch\.float32, got torch\.float64; convert the batch"):
        engine(X.numpy().astype(np.float64))


def test_tensors_by_name(named: offramp.Engine) -> None:
    inputs: dict[str, Any] = small.inputs(small.Tokens, 4)
    wanted = named(inputs).outputs
    assert torch.equal(named(**inputs).outputs, wanted)
    assert torch.equal(named(**inputs, labels=torch.zeros(4)).outputs, wanted)
    with pytest.raises(InputError, match="expected inputs or tensors by name, got both"):
        named(inputs, **inputs)
    with pytest.raises(InputError, match=r"got none; call engine\(inputs\) or engine\(\*\*batch\)"):
        named()


NESTED = torch.nested.as_nested_tensor([X[0, 0], X[1, 0]], layout=torch.jagged)


@pytest.mark.parametrize("inputs", [X.to_sparse(), X[:, 0].to_sparse(), NESTED])
def test_sparse_and_nested_tensors_are_refused(engine: offramp.Engine, inputs: Any) -> None:
    message = r"expected a dense tensor, got a sparse or nested one; call \.to_dense\(\) or pad it"
    for given in (inputs, (inputs,)):
        with pytest.raises(InputError, match=message):
            engine(given)
    with pytest.raises(InputError, match=message):
        offramp.attach_exits(small.model(), inputs)
    with pytest.raises(InputError, match=message):
        offramp.record_outputs(engine.net, [inputs], quality="agreement")


def test_answers_take_part_in_gradients_as_copies(engine: offramp.Engine) -> None:
    out = engine(X).outputs
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        (out * weight).sum().backward()
    (out.clone() * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
