"""P-values against enumeration and scipy: valid for every null law, and tight."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from scipy import stats

from offramp.guarantees.p_values import betting_p_value, binomial_p_value
from offramp.guarantees.trinomial import OUTSIDE, trinomial_p_value


def hoeffding_bentkus(mean, samples, bound):
    """For losses in [0, 1] (Bates et al., arXiv 2101.02703): the usual p-value, as a reference."""
    if mean >= bound:
        return 1.0
    kl = sum(a * math.log(a / b) for a, b in ((mean, bound), (1 - mean, 1 - bound)) if a > 0)
    return min(math.exp(-samples * kl), math.e * stats.binom.cdf(math.ceil(samples * mean), samples, bound))


def every_pair(samples):
    """(K, 2) all (losses, gains) of so many samples."""
    return np.array([(a, b) for a in range(samples + 1) for b in range(samples + 1 - a)])


def chances(pairs, samples, m, mean):
    """(K,) their probabilities where P(d != 0) = m and E[d] = mean."""
    law = [(m + mean) / 2, max((m - mean) / 2, 0), max(1 - m, 0)]
    rest = samples - pairs.sum(axis=1, keepdims=True)
    return stats.multinomial.pmf(np.concatenate([pairs, rest], axis=1), samples, np.array(law) / sum(law))


def worst_excess(p_values, probabilities):
    """The largest P(p <= a) / a over all a below 1."""
    order = np.argsort(p_values)
    ranked, total = p_values[order], np.cumsum(probabilities[order])
    last = np.append(ranked[1:] > ranked[:-1], True) & (ranked < 1)
    return float((total[last] / ranked[last]).max(initial=0))


# -------------------------------------------------------------------------------------------- binomial


def exact_tail(losses, samples, share):
    """P(X <= losses) for X binomial with chance share / 1024, in whole numbers (scipy is off at 1e-290)."""
    term = total = (1024 - share) ** samples
    for k in range(losses):
        term = term * (samples - k) * share // ((k + 1) * (1024 - share))  # without remainder
        total += term
    return Fraction(total, 1024**samples)


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(1, 1023))
@example(817, 0.015, 608)
def test_binomial_is_the_tail(samples, lost, share):
    losses = int(lost * samples)
    wanted = float(exact_tail(losses, samples, share))
    assert binomial_p_value(losses, samples, share / 1024) == pytest.approx(wanted, rel=1e-6, abs=1e-300)


def test_binomial_for_many_samples():
    assert binomial_p_value(9700, 10**6, 0.01) == pytest.approx(stats.binom.cdf(9700, 10**6, 0.01), rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "samples", "bound", "wanted"),
    [(0, 0, 0.5, 1), (3, 3, 0.5, 1), (0, 9, 0, 1), (2, 9, 1, 0), (9, 9, 1, 1)],
)
def test_binomial_at_the_ends(losses, samples, bound, wanted):
    assert binomial_p_value(losses, samples, bound) == wanted


# ------------------------------------------------------------------------------------------- trinomial


@pytest.mark.parametrize("bound", [0.0, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("samples", [1, 7, 30])
def test_trinomial_is_valid_under_every_null_law(samples, bound):
    pairs = every_pair(samples)
    p_values = np.array([trinomial_p_value(int(a), int(b), samples, bound) for a, b in pairs])
    for mean in (bound, 1.3 * bound + 0.01):
        for m in np.linspace(mean, 1, 41):
            assert worst_excess(p_values, chances(pairs, samples, m, mean)) <= 1


@pytest.mark.parametrize(
    ("losses", "gains", "samples", "bound"),
    [(0, 0, 60, 0.05), (1, 2, 60, 0.05), (0, 3, 80, 0.02), (5, 6, 80, 0.1), (2, 9, 80, 0.01)],
)
def test_trinomial_is_the_worst_plausible_tail(losses, gains, samples, bound):
    """Every sample at least as clear is enumerated, and the law varied in steps too fine to matter."""
    pairs = every_pair(samples)
    null = samples * bound

    def score(lost, gained):
        less, differing = null - (lost - gained), lost + gained
        variance = (differing + np.sqrt(differing**2 + 4 * null * np.maximum(less, 0))) / 2
        return less / np.sqrt(np.maximum(variance, 1e-9))

    clear = pairs[score(*pairs.T) >= score(losses, gains) - 1e-9]
    grid = np.linspace(bound, 0.9, 2000)[1:]
    share = (losses + gains) / samples
    divergence = stats.entropy([[share], [1 - share]], [grid, 1 - grid])
    tails = [chances(clear, samples, m, bound).sum() for m in grid[samples * divergence <= math.log(2e4)]]
    found = trinomial_p_value(losses, gains, samples, bound)
    assert max(tails) <= found - OUTSIDE
    assert found - OUTSIDE <= max(tails) * 1.02 + 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(50, 3000), st.floats(0.002, 0.1), st.floats(0, 0.1), st.floats(0, 0.1))
def test_trinomial_rises_with_losses_and_falls_with_the_bound(samples, bound, lost, gained):
    losses, gains = int(samples * lost), int(samples * gained)
    p_value = trinomial_p_value(losses, gains, samples, bound)
    assert OUTSIDE < p_value <= 1
    assert trinomial_p_value(losses + 1, gains, samples, bound) >= 0.98 * p_value
    assert trinomial_p_value(losses, gains, samples, 1.2 * bound) <= 1.02 * p_value + 2 * OUTSIDE


@pytest.mark.parametrize(
    ("losses", "gains", "samples", "bound", "wanted"),
    [
        (0, 0, 0, 0.1, 1),  # no samples
        (5, 0, 50, 0.1, 1),  # no better than the bound
        (0, 0, 50, 0, 1),  # not one answer differs: no proof of a gain
        (1, 0, 1, 0.5, 1),
        (0, 5, 9, 1 - 1e-9, 1),  # a bound of nearly 1 is none
        (3, 0, 50, 1, 0),
        (50, 0, 50, 1, 1),
    ],
)
def test_trinomial_at_the_ends(losses, gains, samples, bound, wanted):
    assert trinomial_p_value(losses, gains, samples, bound) == wanted


@pytest.mark.parametrize("bound", [0.0, 0.005, 0.1])
@pytest.mark.parametrize("samples", [1, 8, 25])
def test_trinomial_is_valid_where_nearly_all_differ(samples, bound):
    pairs = every_pair(samples)
    p_values = np.array([trinomial_p_value(int(a), int(b), samples, bound) for a, b in pairs])
    for m in (0.8, 0.9, 0.97, 0.999, 1 - 1e-6, 1 - 1e-9, 1):
        assert worst_excess(p_values, chances(pairs, samples, m, bound)) <= 1


@pytest.mark.parametrize(
    ("losses", "gains", "samples", "bound"),
    [(0, 48, 50, 0.1), (20, 40, 60, 0.0), (25, 34, 60, 0.01), (1, 9, 10, 0.0), (28, 30, 60, 0.1)],
)
def test_trinomial_is_tight_where_nearly_all_differ(losses, gains, samples, bound):
    """Not far from the sign test of those that differ, which is exact where all of them do."""
    found = trinomial_p_value(losses, gains, samples, bound)
    sign = stats.binom.cdf(losses, losses + gains, (1 + bound) / 2)
    assert OUTSIDE < found <= 2.5 * sign + 2 * OUTSIDE


def test_all_won_is_as_clear_as_it_gets():
    for samples in (40, 1000, 100_000):
        assert trinomial_p_value(0, samples, samples, 0.005) <= 1.1 * OUTSIDE
        assert trinomial_p_value(0, samples * 19 // 20, samples, 0.005) <= 1.1 * OUTSIDE
        assert trinomial_p_value(samples * 2 // 5, samples * 3 // 5, samples, 0.005) < 0.15
    assert trinomial_p_value(48_000, 52_000, 100_000, 0.0) <= 1.1 * OUTSIDE
    assert trinomial_p_value(0, 1, 1, 0.005) == pytest.approx(0.5025, abs=0.01)  # one sample shows nothing


def test_trinomial_without_differences_is_nearly_the_binomial():
    for samples in (100, 500, 5000):
        one_sided = binomial_p_value(0, samples, 0.01)
        assert one_sided <= trinomial_p_value(0, 0, samples, 0.01) <= one_sided * 1.45 + 2 * OUTSIDE


def test_very_many_samples():
    """In parts, and near the normal approximation to the score test."""
    approximate = stats.norm.sf((2000 - 1850) / math.sqrt((14_850 + math.sqrt(14_850**2 + 8000 * 150)) / 2))
    found = trinomial_p_value(8350, 6500, 400_000, 0.005)
    assert found == pytest.approx(approximate + OUTSIDE, rel=0.02)


@pytest.mark.parametrize(
    ("losses", "gains", "samples", "bound"),
    [(2, 4, 500, 0.01), (25, 20, 2000, 0.01), (70, 66, 10_000, 0.005), (320, 280, 10_000, 0.01)],
)
def test_how_tight_the_tests_are(losses, gains, samples, bound):
    """Near the normal approximation to the score test, which is not valid; far below what else is valid."""
    differences = np.repeat([1.0, -1.0, 0.0], [losses, gains, samples - losses - gains])
    found = trinomial_p_value(losses, gains, samples, bound)
    less, differing = samples * bound - (losses - gains), losses + gains
    variance = (differing + math.sqrt(differing**2 + 4 * samples * bound * less)) / 2
    approximate = stats.norm.sf(less / math.sqrt(variance))
    rng = np.random.default_rng(0)
    betting = np.median([betting_p_value(rng.permutation(differences), bound) for _ in range(21)])
    reference = hoeffding_bentkus((1 + differences.mean()) / 2, samples, (1 + bound) / 2)
    print(f"{samples} {losses} {gains} {bound}: {approximate:.5f} {found:.5f} {betting:.4f} {reference:.4f}")
    assert found < 1.2 * approximate + 2 * OUTSIDE
    assert found < betting
    assert betting < reference


# --------------------------------------------------------------------------------------------- betting


@pytest.mark.parametrize("bound", [0.0, 0.1])
@pytest.mark.parametrize("law", [(0.3, 0.1, 0.1, 0.1, 0.4), (0.05, 0.0, 0.8, 0.1, 0.05), (0, 0, 0.5, 0.5, 0)])
def test_betting_is_valid_on_every_sequence(law, bound):
    values, chance = np.array([-1, -0.5, 0, 0.5, 1]), np.array(law)
    mean = values @ chance
    if mean < bound:  # move the rest of the mass to the largest loss until the null holds
        chance = chance * (1 - bound) / (1 - mean)
        chance[-1] += 1 - chance.sum()
    picks = np.array(list(itertools.product(range(5), repeat=5)))
    p_values = np.array([betting_p_value(values[pick], bound) for pick in picks])
    assert worst_excess(p_values, chance[picks].prod(axis=1)) <= 1


def test_betting_beats_hoeffding_bentkus_where_differences_are_small():
    rng = np.random.default_rng(0)
    losses = np.where(rng.random(2000) < 0.3, rng.normal(0.002, 0.15, 2000).clip(-1, 1), 0)
    assert betting_p_value(losses, 0.01) < 0.05
    assert hoeffding_bentkus((1 + losses.mean()) / 2, 2000, 0.505) > 0.5


def test_betting_at_the_ends():
    assert betting_p_value([], 0.1) == 1
    assert betting_p_value([0.5, 1.0], 0.1) == 1
    assert betting_p_value([0.5, 0.4], 1) == 0
    assert betting_p_value([1.0, 1.0], 1) == 1
    assert betting_p_value(np.full(10_000, -1.0), 0.5) == pytest.approx(math.exp(-700), rel=1e-6)
