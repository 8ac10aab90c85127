"""The optimum against brute force, and each method against its definition."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from effort import set_effort
from instances import (
    LAMBDAS,
    REFERENCES,
    brute_force,
    every_choice,
    lowest,
    make_records,
    objective,
    odd_case,
    random_case,
    synthetic,
)
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.evaluate import evaluate
from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.kernels import OFF
from offramp.solver.problem import Problem
from offramp.solver.search import DEFAULT_TRADEOFFS, search
from offramp.solver.solve import METHODS


@pytest.mark.parametrize("seed", range(12))
def test_exact_equals_brute_force(seed):
    shape = [(1, 3, 6), (2, 2, 6), (3, 2, 3), (4, 1, 3), (3, 1, 5), (2, 2, 1)][seed % 6]
    records, costs = random_case(seed, *shape, binary=seed % 2 == 0)
    frontier = search(records, costs, tradeoffs=LAMBDAS, regularise=None)
    for lam, least in brute_force(records, costs, LAMBDAS).items():
        assert objective(records, costs, frontier.by_tradeoff[lam], lam) == pytest.approx(least, abs=1e-9)


def test_the_fast_brute_force_equals_the_plain_one():
    for seed in range(40):
        records, costs = odd_case(seed)
        if records.samples <= 4:
            assert lowest(records, costs, LAMBDAS) == pytest.approx(brute_force(records, costs, LAMBDAS))


@pytest.mark.parametrize("part", range(4))
def test_exact_equals_brute_force_on_every_odd_case(part):
    """2,000 of them, five trade-offs each."""
    for seed in range(500 * part, 500 * part + 500):
        records, costs = odd_case(seed)
        found = search(records, costs, tradeoffs=LAMBDAS, regularise=None, step=None).by_tradeoff
        reached = {lam: objective(records, costs, found[lam], lam) for lam in LAMBDAS}
        assert reached == pytest.approx(lowest(records, costs, LAMBDAS), abs=1e-9), seed


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cap", [0, 1, 2])
def test_exact_with_a_cap_equals_brute_force(seed, cap):
    records, costs = random_case(seed, 3, 2, 3, gaps=0.1)
    frontier = search(records, costs, tradeoffs=LAMBDAS, regularise=None, max_exits=cap)
    for lam, least in brute_force(records, costs, LAMBDAS, cap).items():
        config = frontier.by_tradeoff[lam]
        assert len(config.choices) <= cap
        assert objective(records, costs, config, lam) == pytest.approx(least, abs=1e-9)


def test_descent_alone_comes_close_to_brute_force(monkeypatch):
    """Without enumeration: escapes and a cap must find nearly the optimum; within 2 % of J in all."""
    set_effort(monkeypatch, enumerated=0)
    missed = total = 0.0
    for seed in range(8):
        records, costs = random_case(seed, 3, 2, 4, gaps=0.1)
        for cap in (1, 2, 3):
            frontier = search(records, costs, tradeoffs=LAMBDAS, regularise=None, max_exits=cap)
            for lam, least in brute_force(records, costs, LAMBDAS, cap).items():
                reached = objective(records, costs, frontier.by_tradeoff[lam], lam)
                assert reached >= least - 1e-9
                assert len(frontier.by_tradeoff[lam].choices) <= cap
                missed, total = missed + reached - least, total + abs(least)
    assert missed <= 0.02 * total


def test_descent_alone_misses_few_odd_cases(monkeypatch):
    set_effort(monkeypatch, enumerated=0)
    missed = 0
    for seed in range(150):
        records, costs = odd_case(seed)
        found = search(records, costs, tradeoffs=LAMBDAS, regularise=None, step=None).by_tradeoff
        for lam, least in lowest(records, costs, LAMBDAS).items():
            missed += objective(records, costs, found[lam], lam) > least + 1e-9
    assert missed <= 0.02 * 150 * len(LAMBDAS)


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 1, 2]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_exact_is_never_worse_and_figures_are_true(seed, ties, cap):
    records, costs = random_case(seed, 5, 2, 60, levels=6 if ties else 10**6, gaps=0.15)
    lambdas = np.linspace(0, 1, 51).tolist()
    frontiers = {
        method: search(records, costs, tradeoffs=lambdas, method=method, regularise=None, max_exits=cap)
        for method in METHODS
    }
    for lam in lambdas:
        reached = {}
        for method, frontier in frontiers.items():
            config = frontier.by_tradeoff[lam]
            outcome = evaluate(records, costs, config)
            assert (config.expected.quality, config.expected.cost) == (outcome.quality, outcome.cost)
            assert config.tradeoff == lam
            taken = [outcome.exit_shares[records.positions.index(c.position)] for c in config.choices]
            assert all(share > 0 for share in taken)
            assert len(config.choices) <= (cap or 99)
            reached[method] = objective(records, costs, config, lam)
        assert reached["exact"] <= min(reached.values()) + 1e-9
        assert reached["exact"] <= (1 - lam) + 1e-9  # the full model


@pytest.mark.parametrize("price", [0.0, 0.004])
@pytest.mark.parametrize("method", METHODS)
def test_the_search_believes_what_evaluate_says(method, price):
    """Its own J, summed in integers and scaled, against J from evaluate plus prices."""
    records, costs = synthetic()
    problem, tradeoff = Problem.of(records, costs), np.array(DEFAULT_TRADEOFFS)
    objectives, candidates = Objectives(tradeoff, np.full(101, price), 99), CandidateSet(problem)
    for step in METHODS[method]:
        answer = step(objectives, candidates)
    exits = np.count_nonzero(candidates.head[answer] != OFF, axis=1)
    value = (
        tradeoff * (1 - candidates.quality[answer]) + (1 - tradeoff) * candidates.cost[answer] + price * exits
    )
    frontier = search(records, costs, method=method, regularise=price)
    for lam, believed in zip(DEFAULT_TRADEOFFS, value, strict=True):
        config = frontier.by_tradeoff[lam]
        reached = objective(records, costs, config, lam) + price * len(config.choices)
        assert reached == pytest.approx(believed, abs=1e-9)


def test_same_threshold_has_one_threshold_and_beats_a_coarse_grid():
    records, costs = synthetic(n=60)
    frontier = search(records, costs, tradeoffs=[0.7, 0.9], method="same-threshold")
    for lam in (0.7, 0.9):
        config = frontier.by_tradeoff[lam]
        assert len({choice.threshold for choice in config.choices}) == 1
        for threshold in np.linspace(0.3, 1, 30):
            exits = tuple(ExitChoice(name, "h1", threshold) for name in records.positions[1:])
            rival = objective(records, costs, ExitConfig(exits), lam)
            assert objective(records, costs, config, lam) <= rival + 5e-3


def test_single_pass_is_greedy_from_the_front():
    """By definition: at each position the best choice with all later ones off."""
    records, costs = synthetic(n=60, p=4)
    for lam in (0.6, 0.85):
        chosen = ()
        for p in range(4):
            options = [chosen + ((choice,) if choice else ()) for choice in every_choice(records, p)]
            chosen = min(options, key=lambda o: objective(records, costs, ExitConfig(o), lam))
        config = search(records, costs, tradeoffs=[lam], method="single-pass").by_tradeoff[lam]
        assert objective(records, costs, config, lam) == pytest.approx(
            objective(records, costs, ExitConfig(chosen), lam), abs=1e-9
        )


@pytest.mark.parametrize("method", REFERENCES)
def test_reference_methods_answer_each_tradeoff_alone(method):
    """As published: what one lambda finds does not help another (only the exact method shares)."""
    records, costs = synthetic(n=200)
    swept = search(records, costs, method=method)
    for lam in (0.5, 0.75, 0.9, 0.99):
        near = min(DEFAULT_TRADEOFFS, key=lambda known: abs(known - lam))
        alone = search(records, costs, method=method, tradeoffs=[near])
        assert alone.by_tradeoff[near] == swept.by_tradeoff[near]


def test_iterative_ends_where_no_single_change_helps():
    records, costs = synthetic(n=60, p=4)
    config = search(records, costs, tradeoffs=[0.85], method="iterative").by_tradeoff[0.85]
    reached = objective(records, costs, config, 0.85)
    for p, name in enumerate(records.positions):
        others = [c for c in config.choices if c.position != name]
        for choice in every_choice(records, p):
            exits = sorted(
                [*others, *([choice] if choice else [])], key=lambda c: records.positions.index(c.position)
            )
            assert objective(records, costs, ExitConfig(tuple(exits)), 0.85) >= reached - 1e-9


@pytest.mark.parametrize("lam", [0.6, 0.9])
def test_back_to_front_ends_where_no_threshold_or_head_alone_helps(lam):
    records, costs = synthetic(n=60, p=4)
    problem = Problem.of(records, costs)
    objectives, candidates = Objectives(np.array([lam]), np.zeros(1), 99), CandidateSet(problem)
    (found,) = METHODS["exact"][1](objectives, candidates)
    reached = lam * (1 - candidates.quality[found]) + (1 - lam) * candidates.cost[found]
    for p, position in problem.used:
        for head in range(len(position.heads)):
            heads, prefixes = (
                np.tile(candidates.head[found], (61, 1)),
                np.tile(candidates.prefix[found], (61, 1)),
            )
            heads[:, p], prefixes[:, p] = head, np.arange(61)
            heads[0, p] = OFF
            at = candidates.add(heads, prefixes)
            value = lam * (1 - candidates.quality[at]) + (1 - lam) * candidates.cost[at]
            assert value.min() >= reached - 1e-9


def test_capped_exact_is_as_good_as_the_best_subset_of_positions():
    """Each subset of the places searched on its own, exactly as far as that goes; within 0.1 % of J."""
    records, costs = synthetic(n=80, p=5, c=1)
    lambdas = [0.6, 0.8, 0.95]
    capped = search(records, costs, tradeoffs=lambdas, regularise=None, max_exits=2).by_tradeoff
    for lam in lambdas:
        least = np.inf
        for places in combinations(range(1, 5), 2):
            exists = np.zeros_like(records.exists)
            exists[list(places)] = True
            part = make_records(records.confidence, records.quality, records.final_quality, exists)[0]
            config = search(part, costs, tradeoffs=[lam], regularise=None).by_tradeoff[lam]
            least = min(least, objective(records, costs, config, lam))
        assert objective(records, costs, capped[lam], lam) <= least * 1.001


def test_escapes_stay_within_their_budget(monkeypatch):
    records, costs = synthetic()
    free = search(records, costs, regularise=None)
    for cells in (0, 60 * 5 * 2 * 400):
        set_effort(monkeypatch, escape_cells=cells)
        tight = search(records, costs, regularise=None)
        total = [
            sum(objective(records, costs, f.by_tradeoff[lam], lam) for lam in DEFAULT_TRADEOFFS)
            for f in (free, tight)
        ]
        assert total[0] <= total[1] + 1e-9


def test_a_bound_on_rounds_only_ends_early(monkeypatch):
    records, costs = synthetic(n=100)
    free = search(records, costs, tradeoffs=[0.7, 0.9], regularise=None)
    set_effort(monkeypatch, rounds=1)
    early = search(records, costs, tradeoffs=[0.7, 0.9], regularise=None)
    for lam in (0.7, 0.9):
        reached = [objective(records, costs, f.by_tradeoff[lam], lam) for f in (free, early)]
        assert reached[0] <= reached[1] + 1e-9 <= 1 - lam
