from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.confidence import get_confidence

NAMES = ("max-probability", "margin", "entropy")


def two(p: float) -> Tensor:
    """Logits of two outputs with probabilities p and 1 - p."""
    return torch.tensor([[math.log(p / (1 - p)), 0.0]])


@pytest.mark.parametrize("p", [0.5, 0.7, 0.99])
def test_closed_forms_for_two_outputs(p: float) -> None:
    entropy = 1 + (p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    found = [get_confidence(name)(two(p)).item() for name in NAMES]
    assert found == pytest.approx([p, 2 * p - 1, entropy], abs=1e-6)


@pytest.mark.parametrize("outputs", [2, 3, 1000])
def test_equal_outputs_are_the_least_confidence(outputs: int) -> None:
    logits = torch.full((2, outputs), 3.0)
    found = [get_confidence(name)(logits)[0].item() for name in NAMES]
    assert found == pytest.approx([1 / outputs, 0, 0], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs", [1, 2, 10])
@pytest.mark.parametrize("name", NAMES)
def test_in_zero_to_one_as_float32(name: str, outputs: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(500, outputs, generator=random) * torch.logspace(-4, 3, 500)[:, None]
    found = get_confidence(name)(logits.to(dtype))
    assert found.shape == (500,)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_one_output_is_always_sure(name: str) -> None:
    assert get_confidence(name)(torch.tensor([[-3.0], [8.0]])).tolist() == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_surer_outputs_come_higher(name: str) -> None:
    found = get_confidence(name)(torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]]))
    assert (found.diff() > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(name: str, bad: float) -> None:
    found = get_confidence(name)(torch.tensor([[bad, 0.0], [1.0, 0.0]]))
    assert found.isfinite().tolist() == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_masked_classes_and_empty_batches(name: str) -> None:
    assert get_confidence(name)(torch.tensor([[5.0, -math.inf]])).tolist() == [1]
    assert get_confidence(name)(torch.empty(0, 3)).shape == (0,)


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match="unknown confidence 'margins'; did you mean 'margin'"):
        get_confidence("margins")
