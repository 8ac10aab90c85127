"""The choice of a price: folds, what they are judged by, and when the usual price stands."""

import numpy as np
import pytest

from effort import set_effort
from instances import objective, random_case, synthetic
from offramp.core.config import ExitConfig
from offramp.solver.cross_validation import best_of, choose_price, folds, mean_objective, rounds
from offramp.solver.effort import EFFORT
from offramp.solver.pruning import PRICE_GRID, SELECTION_BIAS
from offramp.solver.search import search
from offramp.solver.solve import SearchPlan

PLAN = SearchPlan("exact", 0.0, 99)
LAMBDAS = [0.6, 0.8, 0.95]


@pytest.mark.parametrize("samples", [20, 21, 99, 666, 1000, 2001, 9000])
def test_every_deal_holds_out_every_sample_once(samples):
    masks = folds(samples, seed=3)
    assert len(masks) in (EFFORT.folds, 2 * EFFORT.folds, 3 * EFFORT.folds)
    for deal in zip(*[iter(masks)] * EFFORT.folds, strict=True):
        assert np.sum(deal, axis=0).tolist() == [1] * samples
        sizes = [mask.sum() for mask in deal]
        assert max(sizes) - min(sizes) <= 1
    assert (len(masks) == EFFORT.folds) == (samples > 1000)
    assert all((a == b).all() for a, b in zip(masks, folds(samples, seed=3), strict=True))
    assert any((a != b).any() for a, b in zip(masks, folds(samples, seed=4), strict=True))


@pytest.mark.parametrize("samples", [0, 1, 19])
def test_too_few_samples_make_no_folds(samples):
    assert folds(samples, seed=0) == []
    assert rounds(samples, seed=0) == 0


@pytest.mark.parametrize("samples", [19, 50, 1500])
def test_rounds_are_those_reported(samples):
    records, costs = synthetic(n=samples, p=3)
    seen = []
    choose_price(records, costs, LAMBDAS, PLAN, lambda: seen.append(None))
    assert len(seen) == rounds(samples, 0)


def test_many_samples_need_no_more_rounds():
    assert rounds(10 * EFFORT.coarse_samples, 0) == rounds(EFFORT.coarse_samples, 0) == EFFORT.folds


@pytest.mark.parametrize(
    ("means", "spread", "chosen"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.0, 1),  # nothing is better than the usual one
        ([0.9, 1.0, 1.0, 1.0], 0.0, 0),
        ([0.9, 1.0, 0.8, 1.0], 0.0, 2),
        ([0.9, 1.0, 1.1, 1.0], 1.0, 1),  # better, but not clearly
        ([1.0, 1.0, 1.0, 0.9], 0.15, 3),  # one standard error is enough for the last
        ([0.9, 1.0, 1.0, 1.0], 0.15, 1),  # but not for the others
        ([0.8, 1.0, 1.0, 0.9], 0.15, 0),  # of the clearly better ones the best
    ],
)
def test_best_of_asks_for_clear_differences(means, spread, chosen):
    noise = spread * np.array([-1.0, 1.0, -1.0, 1.0, 0.0])  # standard error of the mean: spread / sqrt(5)
    values = np.tile(means, (5, 1)) + noise[:, None] * np.array([1, 0, 1, 1])
    assert best_of(values, usual=1, doubt=np.array([2.0, 2.0, 2.0, 1.0])) == chosen


def test_mean_objective_is_the_mean_of_j():
    records, costs = random_case(4, 3, 2, 30, gaps=0)
    found = search(records, costs, tradeoffs=LAMBDAS, regularise=None).by_tradeoff
    answers = [found[lam].choices for lam in LAMBDAS]
    scale = records.final_quality.astype(float).mean()
    wanted = np.mean([objective(records, costs, found[lam], lam) for lam in LAMBDAS])
    assert mean_objective(records, costs, LAMBDAS, answers, scale) == pytest.approx(wanted)
    doubled = mean_objective(records, costs, [1.0], answers[:1], scale / 2)
    assert doubled == pytest.approx(2 * objective(records, costs, ExitConfig(answers[0]), 1.0))


def test_too_few_samples_take_the_highest_price():
    plan = choose_price(*synthetic(n=19), LAMBDAS, PLAN, lambda: None)
    assert (plan.method, plan.price, plan.parsimonious) == ("exact", PRICE_GRID[-1] / 19, True)


def test_a_price_is_one_of_the_rungs(monkeypatch):
    records, costs = synthetic(n=200)
    chosen = []
    monkeypatch.setattr("offramp.solver.cross_validation.best_of", lambda values, usual, doubt: chosen.pop())
    for k, price_step in enumerate(PRICE_GRID):
        chosen.append(k)
        plan = choose_price(records, costs, LAMBDAS, PLAN, lambda: None)
        assert (plan.method, plan.price, plan.parsimonious) == ("exact", price_step / 200, True)
    chosen.append(len(PRICE_GRID))
    plan = choose_price(records, costs, LAMBDAS, PLAN, lambda: None)
    assert (plan.method, plan.price) == ("same-threshold", 0.0)
    assert SELECTION_BIAS in PRICE_GRID


def test_many_samples_are_judged_by_some_of_them(monkeypatch):
    records, costs = synthetic(n=400, p=4)
    set_effort(monkeypatch, coarse_samples=100)
    monkeypatch.setattr(
        "offramp.solver.cross_validation.fewer", lambda records: records.subset(np.arange(0, 400, 4))
    )
    sizes = []
    original = mean_objective
    monkeypatch.setattr(
        "offramp.solver.cross_validation.mean_objective",
        lambda held, *rest: (sizes.append(held.samples), original(held, *rest))[1],
    )
    plan = choose_price(records, costs, LAMBDAS, PLAN, lambda: None)
    assert set(sizes) == {20}
    assert plan.price in {0.0, *(price_step / 400 for price_step in PRICE_GRID)}


def test_a_full_model_that_is_always_wrong():
    records, costs = random_case(4, 3, 2, 30, gaps=0)
    records.final_quality[:] = 0
    assert choose_price(records, costs, LAMBDAS, PLAN, lambda: None).price >= 0
