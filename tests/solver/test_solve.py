"""Many samples: some of them say which exits, all of them the thresholds. Here with few "many" samples."""

import numpy as np
import pytest

from effort import set_effort
from instances import make_records, objective, random_case, synthetic
from offramp.core.evaluate import evaluate
from offramp.core.frontier import Frontier
from offramp.solver.problem import Problem
from offramp.solver.search import search
from offramp.solver.solve import SearchPlan, fewer, solve

SOME = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@pytest.fixture(autouse=True)
def small_coarse(monkeypatch):
    """100 samples stand for all wherever there are more than 200."""
    set_effort(monkeypatch, coarse_samples=100)


@pytest.mark.parametrize(
    ("samples", "method", "levels"), [(200, "exact", 1), (201, "exact", 2), (201, "iterative", 1)]
)
def test_beyond_twice_as_many_samples_there_is_a_coarse_level(monkeypatch, samples, method, levels):
    seen = []

    def spy(records, *rest):
        part = fewer(records, *rest)
        seen.append(part.samples)
        return part

    monkeypatch.setattr("offramp.solver.solve.fewer", spy)
    records, costs = synthetic(n=samples)
    solve(Problem.of(records, costs), costs, SearchPlan(method, 0.0, 99), list(SOME))
    assert seen == [100] * (levels - 1)


@pytest.mark.parametrize("regularise", [None, 0.002, "auto"])
@pytest.mark.parametrize("ties", [False, True])
def test_figures_are_true(regularise, ties):
    records, costs = (
        random_case(1, 4, 2, 400, levels=9 if ties else 10**6, gaps=0.15) if ties else synthetic()
    )
    frontier = search(records, costs, tradeoffs=SOME, regularise=regularise)
    for config in (*frontier, *frontier.by_tradeoff.values()):
        outcome, figures = evaluate(records, costs, config), config.expected
        reached = figures.in_sample_quality if regularise == "auto" else figures.quality
        assert (reached, figures.cost) == (outcome.quality, outcome.cost)
        assert figures.in_sample == (regularise != "auto")
        assert all(outcome.exit_shares[records.positions.index(c.position)] > 0 for c in config.choices)
    assert Frontier.from_json(frontier.to_json()) == frontier


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cap", [None, 1, 2])
def test_never_worse_than_the_reference_methods(seed, cap):
    records, costs = (
        random_case(seed, 4, 2, 300, levels=9, gaps=0.1) if seed % 2 else synthetic(n=300, seed=seed)
    )
    arguments = {"tradeoffs": SOME, "regularise": None, "max_exits": cap}
    found = search(records, costs, **arguments).by_tradeoff
    for method in ("single-pass", "iterative"):
        rivals = search(records, costs, method=method, **arguments).by_tradeoff
        for lam in SOME:
            reached, rival = (objective(records, costs, each[lam], lam) for each in (found, rivals))
            assert reached <= rival + 1e-9
            assert reached <= 1 - lam + 1e-9
            assert len(found[lam].choices) <= (99 if cap is None else cap)


def test_beyond_the_budget_reference_methods_are_left_out_and_little_is_lost(monkeypatch):
    records, costs = synthetic(n=1000)
    lambdas = np.linspace(0.5, 1, 30).tolist()
    full = search(records, costs, tradeoffs=lambdas, regularise=None).by_tradeoff
    set_effort(monkeypatch, reference_cells=0)
    quick = search(records, costs, tradeoffs=lambdas, regularise=None).by_tradeoff
    set_effort(monkeypatch, coarse_samples=10_000)
    single = search(records, costs, tradeoffs=lambdas, regularise=None).by_tradeoff
    totals = [sum(objective(records, costs, f[lam], lam) for lam in lambdas) for f in (full, quick, single)]
    assert totals[0] <= totals[1] + 1e-9
    assert totals[1] <= totals[2] * 1.02


@pytest.mark.parametrize("cap", [0, 1, 2])
def test_auto_keeps_the_cap(cap):
    records, costs = synthetic(n=300)
    frontier = search(records, costs, tradeoffs=SOME, max_exits=cap)
    assert max(len(config.choices) for config in (*frontier, *frontier.by_tradeoff.values())) <= cap


@pytest.mark.parametrize("regularise", [None, "auto"])
def test_threads_change_nothing(monkeypatch, regularise):
    set_effort(monkeypatch, cells=2000)
    records, costs = synthetic(n=300)
    one, two = (search(records, costs, tradeoffs=SOME, regularise=regularise, workers=w) for w in (1, 2))
    assert one.to_json() == two.to_json()


def test_more_goals_than_are_polished_each(monkeypatch):
    set_effort(monkeypatch, full_objectives=3)
    set_effort(monkeypatch, coarse_objectives=4)
    records, costs = synthetic(n=300)
    lambdas = np.linspace(0.5, 1, 20).tolist()
    found = search(records, costs, tradeoffs=lambdas, regularise=None).by_tradeoff
    single = search(records, costs, tradeoffs=lambdas, method="single-pass").by_tradeoff
    for lam in lambdas:
        reached, rival = (objective(records, costs, each[lam], lam) for each in (found, single))
        assert reached <= rival + 1e-9


@pytest.mark.parametrize("regularise", [None, "auto"])
def test_without_heads_it_is_the_full_model(regularise):
    records, costs = random_case(0, 3, 2, 300, gaps=1.1)
    frontier = search(records, costs, tradeoffs=SOME, regularise=regularise)
    assert [config.choices for config in frontier] == [()]


@pytest.mark.parametrize("regularise", [None, "auto"])
def test_equal_confidences_leave_all_or_none(regularise):
    records, costs = make_records(np.full((2, 1, 300), 0.5), np.ones((2, 1, 300)), np.ones(300))
    frontier = search(records, costs, tradeoffs=[0.0, 0.5, 1.0], regularise=regularise)
    # in-sample the exit costs nothing; new samples are promised a little less, so the full model stays
    assert [len(config.choices) for config in frontier] == [1, 0][: 1 if regularise is None else 2]
    assert frontier[0].choices[0].threshold == -np.inf
