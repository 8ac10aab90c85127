"""AUROC against counting pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from offramp.core.ranking import auroc, rankings
from offramp.core.records import ExitRecords


def counted(confidence, quality):
    """Over all ordered pairs of two samples, the first good by its quality and the second bad by the rest."""
    wins = total = 0.0
    for i, (a, good) in enumerate(zip(confidence, quality, strict=True)):
        for j, (b, other) in enumerate(zip(confidence, quality, strict=True)):
            if i != j:
                total += good * (1 - other)
                wins += good * (1 - other) * (1.0 if a > b else 0.5 if a == b else 0.0)
    return wins / total if total else math.nan


@pytest.mark.parametrize("levels", [2, 7, 1000])
@pytest.mark.parametrize("fractions", [False, True])
def test_it_counts_pairs(levels, fractions):
    random = np.random.default_rng(levels)
    confidence = random.integers(levels, size=60) / levels
    quality = random.random(60) if fractions else random.integers(2, size=60)
    assert auroc(confidence, quality) == pytest.approx(counted(confidence, quality), abs=1e-12)


def test_ends():
    assert auroc([1, 2, 3], [0, 0, 1]) == 1
    assert auroc([1, 2, 3], [1, 0, 0]) == 0
    assert auroc([5, 5, 5], [1, 0, 0]) == 0.5
    assert auroc([math.nan, math.inf, 0.1], [0, 0, 1]) == 1  # such confidences never leave
    for quality in ([1, 1], [0, 0], []):
        assert math.isnan(auroc(np.arange(len(quality)), quality))


def test_of_records():
    exists = np.array([[False], [True]])
    confidence = np.array([[[0.0, 0, 0]], [[0.2, 0.9, 0.1]]])
    quality = np.array([[[0, 0, 0]], [[0.0, 1, 0]]])
    records = ExitRecords(confidence, quality, np.ones(3), exists, ("input", "a"), ("linear",))
    np.testing.assert_array_equal(rankings(records), [[np.nan], [1.0]])
