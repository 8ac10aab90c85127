"""Does a certificate hold as often as it says, and what does caution cost? Prints a table; some minutes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

import offramp
import populations
from offramp.guarantees.certify import answers_under

RESAMPLES = 2000
CELLS = tuple(itertools.product((0.005, 0.01, 0.02), (0.05, 0.1)))

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def table():
    return populations.costs()


@pytest.fixture(scope="module")
def frontier(table):
    """100 trade-offs, searched on 5,000 samples of the same distribution."""
    tradeoffs = 1 - 0.5 * (1 - np.linspace(0, 1, 100)) ** 2
    draw = populations.draw(5000, seed=2)
    return offramp.search(draw, table, tradeoffs=tradeoffs, regularise=5e-4, step=None)


@pytest.fixture(scope="module")
def population():
    return populations.draw(200_000, seed=1)


@pytest.mark.parametrize("samples", [500, 2000, 10_000])
def test_certificates_hold_and_do_not_cost_much(population, frontier, table, samples):
    found = populations.trial(population, frontier, table, samples, CELLS, RESAMPLES, seed=samples)
    for (limit, delta), (violations, ratio) in found.items():
        print(f"N {samples:6} max_drop {limit:.3f} delta {delta:.2f} {violations:4}/{RESAMPLES} {ratio:.4f}")
    for (limit, delta), (violations, ratio) in found.items():
        assert binomtest(violations, RESAMPLES, delta, alternative="greater").pvalue >= 0.01, (limit, delta)
        assert samples < 10_000 or ratio <= 1.1, (limit, delta)


def test_several_risks_hold_jointly(population, frontier, table):
    """Bounds near what the frontier's middle does, so that each of them decides at times."""
    marked = np.random.default_rng(3).random(population.samples) < population.final_quality * 0.1 + 0.05
    limits = {"drop": 0.02, "missed": 0.08, "early": 0.04}
    full = float(population.final_quality.mean(dtype=float))
    truth = {}
    for config in frontier:
        answers = answers_under(population, table, config)
        truth[config.choices] = (
            full - answers.quality.mean() > limits["drop"]
            or 1 - answers.quality[marked].mean() > limits["missed"]
            or 1 - answers.quality[answers.early].mean() > limits["early"]
        )
    rng = np.random.default_rng(4)
    violations = answered = 0
    for _ in range(RESAMPLES):
        index = rng.integers(population.samples, size=2000)
        risks = [
            offramp.missed_detection(marked[index], limits["missed"]),
            offramp.early_leaver_error(limits["early"]),
        ]
        answer = offramp.certify(
            frontier, population.subset(index), table, max_drop=limits["drop"], risks=risks
        )
        answered += answer is not None
        violations += answer is not None and truth[answer.choices]
    print(f"joint: {violations} violations, {answered} answers in {RESAMPLES}")
    assert answered > RESAMPLES / 2
    assert binomtest(violations, RESAMPLES, 0.05, alternative="greater").pvalue >= 0.01
