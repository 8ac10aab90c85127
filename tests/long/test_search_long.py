"""Are configurations frugal, is the dial fine? Prints counts; a minute."""

from __future__ import annotations

import numpy as np
import pytest

from instances import generated, objective_of_each, synthetic
from offramp.core.config import ExitConfig
from offramp.core.evaluate import evaluate
from offramp.solver.search import DEFAULT_TRADEOFFS, search

pytestmark = pytest.mark.long


def make(kind, samples, seed):
    return (
        generated(seed, samples, positions=8, heads=2)
        if kind == "generated"
        else synthetic(samples, 8, 2, seed)
    )


def standard_errors(difference):
    error = difference.std() / np.sqrt(difference.size)
    return difference.mean() / error if error else np.inf * np.sign(difference.mean() or -1)


@pytest.mark.parametrize("kind", ["generated", "synthetic"])
@pytest.mark.parametrize("samples", [500, 1000, 3000])
def test_without_any_exit_j_is_worse_than_the_best_by_more_than_a_standard_error(kind, samples):
    tried, needless = 0, 0
    for seed in range(4):
        records, costs = make(kind, samples, seed)
        frugal = search(records, costs, step=None)
        best = search(records, costs, regularise=None, step=None)
        for lam in DEFAULT_TRADEOFFS[::5]:
            config = frugal.by_tradeoff[lam]
            reference = objective_of_each(records, costs, best.by_tradeoff[lam], lam)
            for i in range(len(config.choices)):
                without = ExitConfig(config.choices[:i] + config.choices[i + 1 :])
                worse = objective_of_each(records, costs, without, lam) - reference
                tried, needless = tried + 1, needless + (standard_errors(worse) <= 1)
    print(f"{kind} N {samples}: {needless} of {tried} exits are not needed")
    assert needless == 0


@pytest.mark.parametrize("regularise", [None, "auto"])
@pytest.mark.parametrize("kind", ["generated", "synthetic"])
@pytest.mark.parametrize("samples", [1000, 5000, 20_000])
def test_budgets_are_kept_and_nearly_spent(kind, regularise, samples):
    """N answers that are right or wrong know N + 1 qualities: of 1,000 some budgets have nothing near."""
    records, costs = make(kind, samples, 1)
    frontier = search(records, costs, regularise=regularise)
    low, high = (frontier[i].expected.relative_cost for i in (0, -1))
    near = 0
    for budget in np.random.default_rng(0).uniform(low, high, 50):
        spent = evaluate(records, costs, frontier.at(max_cost=budget)).relative_cost
        assert spent <= budget
        near += spent >= 0.99 * budget
    print(f"{kind} N {samples} {regularise}: {near} of 50 within 1 %")
    assert near >= (45 if samples > 1000 else 35)
