"""What counts as a number and as a count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from offramp.core.fields import is_count, is_number


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1)])
def test_numbers_of_python_and_numpy(value):
    assert is_number(value, 0, 1)


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -1, 1.5, "1", None, 1j, np.zeros(1)])
def test_what_is_no_number_within_limits(value):
    assert not is_number(value, 0, 1)


@pytest.mark.parametrize(("value", "least", "counts"), [
    (0, 0, True), (0, 1, False), (np.int64(3), 1, True), (2.0, 1, False), (True, 0, False), ("1", 0, False),
])  # fmt: skip
def test_counts_are_whole_numbers_of_at_least_so_many(value, least, counts):
    assert is_count(value, least) is counts
