"""A small network, its inputs, and a configuration under which samples leave everywhere."""

from __future__ import annotations

import pytest
from torch import Tensor

import offramp
import small
from offramp import ExitConfig
from streams import confidences, config_at


@pytest.fixture(scope="module")
def net() -> offramp.ExitNetwork:
    return small.network(heads=("linear",))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return small.inputs()


@pytest.fixture(scope="module")
def half(net: offramp.ExitNetwork, x: Tensor) -> ExitConfig:
    """Half of the samples leave at each of the two exits."""
    return config_at(net, confidences(net, x), [(1, 0), (2, 0)], 0.5)
