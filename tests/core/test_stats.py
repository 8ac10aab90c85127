"""Costs in statistics are exact where they are whole numbers, and fractions where they are not."""

from __future__ import annotations

import math

import numpy as np

from offramp.core.stats import RunStats, exact_cost


def test_whole_numbers_are_integers_and_fractions_stay() -> None:
    stats = RunStats(samples=2, exits=(1, 1), macs=3.0, full_macs=np.float64(7.5))
    assert (str(stats.macs), str(stats.full_macs)) == ("3", "7.5")
    assert type(stats.macs) is int
    assert type(stats.full_macs) is float
    assert stats.share == 0.4
    large = 2**60 + 1
    assert exact_cost(large) == large


def test_the_share_of_nothing_is_not_a_number() -> None:
    assert math.isnan(RunStats(samples=0, exits=(0,), macs=0, full_macs=0).share)
