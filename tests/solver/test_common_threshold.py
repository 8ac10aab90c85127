"""One threshold for all exits: the one pass against trying every threshold on every sample."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from offramp.solver.common_threshold import curve, threshold_between

CONFIDENCES = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 0.5000001, 1.0, 3e38, np.nan, np.inf, -np.inf])


@st.composite
def exits(draw, ties=True):
    """Confidence (E, N), quality (E + 1, N) and cost (E + 1,), multiples of 1 / 8: sums are exact."""
    e, n = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    if ties:
        confidence = draw(st.lists(CONFIDENCES, min_size=e * n, max_size=e * n))
    else:
        confidence = np.random.default_rng(draw(st.integers(0, 10**6))).permutation(e * n) - e * n / 3
    quality = draw(st.lists(st.integers(0, 8), min_size=(e + 1) * n, max_size=(e + 1) * n))
    cost = draw(st.lists(st.integers(0, 40), min_size=e + 1, max_size=e + 1))
    return (
        np.array(confidence, np.float32).reshape(e, n),
        np.array(quality).reshape(e + 1, n) / 8,
        np.array(cost) / 8,
    )


def by_definition(confidence, quality, cost, threshold):
    """Mean quality and cost, one sample after the other."""
    reached = []
    for i in range(confidence.shape[1]):
        passed = [e for e, each in enumerate(confidence[:, i]) if np.isfinite(each) and each > threshold]
        left = passed[0] if passed else len(confidence)
        reached.append((quality[left, i], cost[left]))
    return np.mean(reached, axis=0)


@given(st.one_of(exits(), exits(ties=False)))
@settings(max_examples=150, deadline=None)
def test_every_threshold_gives_what_it_gives_sample_by_sample(drawn):
    """Between two values, at the lower one, and just below the upper one it is the same."""
    confidence, quality, cost = drawn
    values, reached, spent = curve(confidence, quality, cost)
    assert values.dtype == np.float32
    assert len(values) == len(reached) + 1 == len(spent) + 1
    assert values[0] == -np.inf
    assert (np.diff(values) > 0).all()
    finite = confidence[np.isfinite(confidence)]
    assert values[-1] == finite.max(initial=np.float32(-np.inf))  # nobody passes it
    for k, (low, high) in enumerate(pairwise(values.tolist())):
        tried = {
            low,
            float(np.nextafter(np.float32(high), np.float32(-np.inf))),
            threshold_between(np.float32(low), np.float32(high)),
        }
        for threshold in tried:
            wanted = by_definition(confidence, quality, cost, np.float32(threshold))
            assert (reached[k], spent[k]) == pytest.approx(wanted, abs=1e-12)


@given(exits())
@settings(max_examples=60, deadline=None)
def test_no_threshold_is_missing(drawn):
    """Whatever the threshold, its figures stand where it lies among the values."""
    confidence, quality, cost = drawn
    values, reached, spent = curve(confidence, quality, cost)
    finite = np.unique(confidence[np.isfinite(confidence)])
    for threshold in (-np.inf, *finite.tolist(), *(finite[:-1] / 2 + finite[1:] / 2).tolist()):
        single = np.float32(threshold)
        wanted = by_definition(confidence, quality, cost, single)
        at = int(np.searchsorted(values, single, side="right")) - 1
        if at == len(reached):  # nobody leaves: the full model
            assert wanted == pytest.approx((quality[-1].mean(), cost[-1]))
        else:
            assert (reached[at], spent[at]) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_without_a_finite_confidence_there_is_nothing_to_choose(value):
    values, quality, cost = curve(np.full((2, 3), value, np.float32), np.ones((3, 3)), np.arange(3.0))
    assert values.tolist() == [-np.inf]
    assert quality.size == cost.size == 0
