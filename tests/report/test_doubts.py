"""Exits that beat the full model: asked about where it is more than noise, and only then."""

import numpy as np
import pytest

from offramp.core import ExitRecords
from offramp.report.doubts import doubt_about, sign_test


def records(exit_right, full_right, samples, groups=None, exits=2):
    """Exits are right for the first ``exit_right`` samples, the model for the last ``full_right``."""
    quality = np.zeros((exits + 1, 1, samples), np.float32)
    quality[1:, 0, :exit_right] = 1
    full = np.arange(samples) >= samples - full_right
    exists = np.ones((exits + 1, 1), bool)
    exists[0] = False
    positions = ("input", *(f"block[/{i}]" for i in range(exits)))
    return ExitRecords(
        np.full_like(quality, 0.5),
        quality,
        full.astype(np.float32),
        exists,
        positions,
        ("linear",),
        groups=groups,
    )


def disjoint(exits):
    """The exits are right for 63 of 100 samples, the model for the 37 others."""
    return records(63, 37, 100, exits=exits)


def test_swapped_classes_are_asked_about():
    doubt = doubt_about(records(90, 12, 100))
    assert doubt.better == 2
    assert doubt.p_value < 1e-9
    assert "is better than the full model (90.0% against 12.0%, p < 0.001)" in str(doubt)
    assert ", and 1 other exit too: do the preprocessing and the order of the classes fit the model?" in str(
        doubt
    )


@pytest.mark.parametrize(
    ("exit_right", "full_right", "samples"), [(50, 48, 100), (12, 90, 100), (5, 4, 5), (0, 0, 3)]
)
def test_noise_is_not(exit_right, full_right, samples):
    assert doubt_about(records(exit_right, full_right, samples)) is None


def test_exits_that_agree_are_never_better():
    assert doubt_about(records(100, 100, 100)) is None


def test_samples_that_belong_together_count_once():
    assert doubt_about(records(90, 12, 100, groups=np.arange(100) // 25)) is None
    assert doubt_about(records(90, 12, 100, groups=np.arange(100))) is not None


def test_many_exits_are_allowed_for():
    one = sign_test(np.r_[np.ones(63), -np.ones(37)])
    assert 0.001 < one < 0.01
    assert doubt_about(disjoint(1)).p_value == pytest.approx(one)
    assert doubt_about(disjoint(60)) is None


def test_the_sign_test_is_the_binomial_one():
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((0, 0), (3, 0), (7, 9), (60, 40), (5000, 4700), (100_000, 101_000)):
        differences = np.r_[np.ones(wins), -np.ones(losses), np.zeros(5)]
        wanted = stats.binom.sf(wins - 1, wins + losses, 0.5)
        assert sign_test(differences) == pytest.approx(wanted, rel=1e-6)
