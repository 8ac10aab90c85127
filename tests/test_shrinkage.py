"""Conditional expectations against scikit-learn's isotonic regression, closed forms, and held-out data."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

import offramp
from offramp import shrinkage
from offramp.shrinkage import isotonic, shrunk


def records_of(confidence, quality, final, exists=None):
    """Records with one head at one position."""
    n = len(final)
    filler = np.zeros((1, 1, n), np.float32)
    return offramp.ExitRecords(
        confidence=np.concatenate([filler, np.reshape(confidence, (1, 1, n))]),
        quality=np.concatenate([filler, np.reshape(quality, (1, 1, n))]),
        final_quality=final,
        exists=[[False], [True]] if exists is None else exists,
        positions=("input", "a"),
        heads=("h",),
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.125, 8)), min_size=1, max_size=40))
def test_isotonic_equals_scikit_learn(cells):
    value, weight = np.array(cells).T
    wanted = IsotonicRegression().fit(np.arange(len(value)), value, sample_weight=weight)
    got, rests_on = isotonic(value * weight, weight)
    np.testing.assert_allclose(got, wanted.predict(np.arange(len(value))), atol=1e-9)
    assert (rests_on >= weight - 1e-9).all()


def test_cells_without_weight_do_not_disturb():
    fitted, rests_on = isotonic(np.array([0.0, 0.0, 1.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0, 0.0, 2.0]))
    assert fitted[[1, 2, 4]].tolist() == [0, 0.5, 1]
    assert rests_on[[1, 2, 4]].tolist() == [1, 2, 2]
    assert (np.diff(fitted) >= 0).all()
    assert [fit.tolist() for fit in isotonic(np.zeros(3), np.zeros(3))] == [[0, 0, 0], [0, 0, 0]]


def test_a_perfect_exit_is_believed_but_for_one_failure():
    n = 9
    got = shrunk(records_of(np.linspace(0.1, 0.9, n), np.ones(n), np.ones(n)))
    np.testing.assert_allclose(got.quality[1, 0], n / (n + 1), rtol=1e-6)


def test_two_lucky_answers_where_the_model_is_wrong_are_not_believed():
    got = shrunk(records_of([0.2, 0.4, 0.6, 0.8], [1, 1, 1, 1], [1, 0, 1, 0]))
    assert got.quality[1, 0].tolist() == pytest.approx([2 / 3, 0, 2 / 3, 0])


def test_many_answers_where_the_model_is_wrong_are_believed_with_doubt():
    n = 400
    got = shrunk(records_of(np.full(n, 0.5), np.arange(n) % 4 > 0, np.zeros(n))).quality[1, 0]
    estimate = 300 / 401  # with the imagined failure
    wanted = estimate - 3 * np.sqrt(estimate * (1 - estimate) / 402)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_exits_better_than_the_model_are_found():
    """With a poor full model, the best configurations leave early, and expect to be better."""
    rng = np.random.default_rng(3)
    n = 2000
    records = records_of(rng.random(n), rng.random(n) < 0.9, (rng.random(n) < 0.7).astype(float))
    costs = offramp.CostTable([0, 10, 40.0], [[0], [1.0]], "macs")
    best = offramp.search(records, costs)[-1]
    assert [choice.position for choice in best.choices] == ["a"]
    assert 0.8 < best.expected.quality <= 0.9 + 0.02
    assert best.expected.drop < -0.1


def test_low_confidence_is_worth_less():
    rng = np.random.default_rng(0)
    confidence = rng.random(4000)
    quality = (rng.random(4000) < confidence).astype(float)
    got = shrunk(records_of(confidence, quality, np.ones(4000))).quality[1, 0]
    assert (np.diff(got[np.argsort(confidence)]) >= 0).all()
    np.testing.assert_allclose(got, confidence, atol=0.12)


def test_many_samples_are_joined_and_ties_share_a_value(monkeypatch):
    rng = np.random.default_rng(1)
    confidence = rng.random(3000).round(2)
    records = records_of(confidence, rng.random(3000) < confidence, np.ones(3000))
    fine = shrunk(records).quality[1, 0]
    for value in np.unique(confidence):
        assert len(set(fine[confidence == value].tolist())) == 1
    monkeypatch.setattr(shrinkage, "_MOST_CELLS", 20)
    coarse = shrunk(records).quality[1, 0]
    assert len(set(coarse.tolist())) <= 20
    np.testing.assert_allclose(coarse, fine, atol=0.15)


def test_what_cannot_leave_and_what_is_not_there_stay_as_they_are():
    records = records_of([np.nan, 0.5, np.inf], [1, 1, 0], [1, 1, 1])
    assert shrunk(records).quality[1, 0].tolist() == [1, 0.5, 0]
    nowhere = records_of([np.nan] * 3, [1, 0, 1], [1, 1, 1])
    assert shrunk(nowhere).quality.tolist() == nowhere.quality.tolist()
    absent = replace(records, exists=np.zeros((2, 1), bool))
    assert shrunk(absent).quality.tolist() == absent.quality.tolist()


def test_search_with_it_is_better_on_unseen_samples(monkeypatch):
    """Two splits of one population, several times."""
    objective = {True: 0.0, False: 0.0}
    for seed in range(6):
        records, costs = population(1500, seed)
        search, report = records.split((0.3, 0.7), seed)
        for believe in (True, False):
            with monkeypatch.context() as patch:
                if not believe:
                    patch.setattr(sys.modules["offramp.search"], "shrunk", lambda records: records)
                frontier = offramp.search(search, costs, tradeoffs=(0.8, 0.9, 0.95, 0.98, 1.0))
            for tradeoff, config in frontier.by_tradeoff.items():
                outcome = offramp.evaluate(report, costs, config)
                value = tradeoff * (1 - outcome.relative_quality) + (1 - tradeoff) * outcome.relative_cost
                objective[believe] += value
    assert objective[True] < objective[False]


def population(n, seed):
    """Exits that get better with depth, each surer where it is right, on samples of varying difficulty."""
    rng = np.random.default_rng(seed)
    positions, difficulty = 7, rng.beta(0.8, 2.5, n)
    confidence, quality = np.zeros((2, positions, 1, n))
    for p in range(1, positions):
        chance = np.clip(1.02 - difficulty * (1.5 - 0.2 * p), 0.1, 0.995)
        quality[p, 0] = rng.random(n) < chance
        confidence[p, 0] = np.clip(chance + 0.12 * rng.normal(size=n), 0, 1)
    exists = np.ones((positions, 1), bool)
    exists[0] = False
    names = ("input", *(f"b{p}" for p in range(1, positions)))
    final = rng.random(n) < np.clip(1.0 - 0.25 * difficulty, 0, 1)
    records = offramp.ExitRecords(confidence, quality, final, exists, names, ("h",))
    return records, offramp.CostTable(np.arange(positions + 1.0) * 10, np.full((positions, 1), 0.2), "macs")
