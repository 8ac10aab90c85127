"""Exact lines and the sweeps made of them, against trying every threshold."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from instances import (
    LAMBDAS,
    every_choice,
    objective,
    objective_of_each,
    random_case,
    random_exits,
    synthetic,
)
from offramp.core.config import ExitConfig
from offramp.core.evaluate import evaluate
from offramp.solver.candidates import CandidateSet
from offramp.solver.kernels import NO_NUMBA, OFF, SAME
from offramp.solver.line_search import ConfigBatch, best_line, own_line, per_sample, simulate, without
from offramp.solver.problem import Problem
from offramp.solver.solve import exits_of


def some_rows(problem, count, seed, price=0.0, cap=99):
    """Random configurations whose cuts a threshold makes."""
    rng = np.random.default_rng(seed)
    head, prefix = random_exits(problem, count, rng)
    tradeoff = rng.choice(LAMBDAS, count)
    return ConfigBatch(
        problem=problem,
        head=head,
        prefix=prefix,
        tradeoff=tradeoff,
        price=np.full(count, price),
        cap=np.full(count, cap),
    )


def value(problem, head, prefix, lam, price=0.0):
    """(B,) J by definition: every enabled exit counts, whether samples leave there or not."""
    shape = len(head), problem.samples
    quality, cost = np.broadcast_to(problem.final, shape), np.ones(shape)
    for p, position in reversed(problem.used):
        on = (head[:, p] != OFF)[:, None]
        leaves = on & (position.rank[head[:, p]] < prefix[:, p, None])
        quality = np.where(leaves, position.quality[head[:, p]], quality)
        cost = np.where(leaves, position.backbone, cost) + on * position.cost[head[:, p]][:, None]
    total = lam * (problem.full - quality.mean(axis=1)) + (1 - lam) * cost.mean(axis=1)
    return total + price * np.count_nonzero(head != OFF, axis=1)


def with_line(problem, rows, p):
    """Each row with every head and every cut at p, and off: (rows, heads, cuts)."""
    position = problem.positions[p]
    options = [(OFF, 0)] + [
        (h, k) for h in range(len(position.heads)) for k in range(1, problem.samples + 1)
        if position.prefix_near(h, k) == k
    ]  # fmt: skip
    head, prefix = np.repeat(rows.head, len(options), axis=0), np.repeat(rows.prefix, len(options), axis=0)
    head[:, p], prefix[:, p] = np.tile(options, (len(rows), 1)).T
    return head.reshape(len(rows), len(options), -1), prefix.reshape(len(rows), len(options), -1)


@given(st.integers(0, 10**6), st.sampled_from(LAMBDAS))
@settings(max_examples=60, deadline=None)
def test_line_finds_the_best_of_all_thresholds(seed, lam):
    records, costs = random_case(seed, 2, 2, 8)
    problem = Problem.of(records, costs)
    for p, position in problem.used:
        off = np.full((1, 2), OFF)
        rows = ConfigBatch(
            problem=problem,
            head=off,
            prefix=np.zeros_like(off),
            tradeoff=np.array([lam]),
            price=np.zeros(1),
            cap=np.array([2]),
        )
        line = best_line(rows, p, np.ones((1, 8), bool), rows.finals())
        full = objective(records, costs, ExitConfig(), lam)
        options = [ExitConfig((choice,)) for choice in every_choice(records, p) if choice]
        least = min([full, *(objective(records, costs, config, lam) for config in options)])
        assert full - line.improvement[0] == pytest.approx(least, abs=1e-9)
        if line.head[0] != OFF:
            falling = np.sort(position.confidence[line.head[0]])[::-1]
            prefix = line.prefix[0]
            assert np.isfinite(falling[prefix - 1])
            assert prefix == 8 or falling[prefix - 1] > falling[prefix]


@pytest.mark.parametrize("find", [best_line, own_line])
@pytest.mark.parametrize("price", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(6))
def test_lines_in_a_sweep_equal_trying_everything(find, price, seed):
    """``own_line``: the same, among the thresholds of the head in place; what is off stays off."""
    records, costs = random_case(seed, 3, 2, 8, gaps=0.2)
    problem = Problem.of(records, costs)
    rows = some_rows(problem, 20, seed, price)
    now = value(problem, rows.head, rows.prefix, rows.tradeoff, price)
    seen = []

    def look(p, line):
        head, prefix = with_line(problem, rows, p)
        for i in range(len(rows)):
            allowed = np.full(len(head[i]), find is best_line)
            allowed |= (head[i][:, p] == rows.head[i, p]) | (head[i][:, p] == OFF)
            if find is own_line and rows.head[i, p] == OFF:
                allowed = head[i][:, p] == OFF
            tried = value(problem, head[i], prefix[i], rows.tradeoff[i], price)[allowed]
            assert now[i] - line.improvement[i] == pytest.approx(tried.min(), abs=1e-9)
            assert line.improvement[i] >= -SAME
            changed = rows.take(np.array([i]))
            changed.head[0, p], changed.prefix[0, p] = line.head[i], line.prefix[i]
            reached = value(problem, changed.head, changed.prefix, rows.tradeoff[i], price)
            assert reached[0] == pytest.approx(tried.min(), abs=1e-9)
        seen.append(p)

    continue_cost = rows.backward(rows.stages(), look, find)
    rows.forward(continue_cost, look, find)
    places = [p for p, _ in problem.used if find is best_line or rows.enabled(p)]
    assert seen == places[::-1] + places


@pytest.mark.parametrize("seed", range(6))
def test_a_cap_leaves_no_room_for_another_exit(seed):
    records, costs = random_case(seed, 4, 2, 8, gaps=0.1)
    problem = Problem.of(records, costs)
    rows = some_rows(problem, 30, seed)
    rows.cap = np.maximum(np.count_nonzero(rows.head != OFF, axis=1), 1)
    before = rows.cap.copy()
    rows.descend()
    assert (np.count_nonzero(rows.head != OFF, axis=1) <= before).all()


@pytest.mark.parametrize("find", [best_line, own_line])
@pytest.mark.parametrize("sweeps", [1, 2, 100])
def test_descent_never_rises(find, sweeps):
    records, costs = synthetic(n=80, p=5)
    problem = Problem.of(records, costs)
    rows = some_rows(problem, 40, 1, price=0.002)
    start = rows.take(slice(None))
    rows.descend(find, sweeps)
    before, after = (value(problem, r.head, r.prefix, r.tradeoff, 0.002) for r in (start, rows))
    assert (after <= before + SAME).all()
    assert after.sum() < before.sum()
    if find is own_line:
        kept = rows.head != OFF
        assert (rows.head[kept] == start.head[kept]).all()


def test_descent_ends_where_no_line_helps():
    records, costs = synthetic(n=60, p=4)
    problem = Problem.of(records, costs)
    rows = some_rows(problem, 20, 3)
    rows.descend()
    reached = value(problem, rows.head, rows.prefix, rows.tradeoff)
    assert not rows.commit_best().any()
    for p, _ in problem.used:
        head, prefix = with_line(problem, rows, p)
        for i in range(len(rows)):
            assert value(problem, head[i], prefix[i], rows.tradeoff[i]).min() >= reached[i] - 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_figures_equal_those_of_evaluate_sample_by_sample(seed):
    records, costs = random_case(seed, 4, 2, 9, gaps=0.2)
    problem = Problem.of(records, costs)
    rows = some_rows(problem, 12, seed)
    candidates = CandidateSet(problem)
    at = candidates.add(rows.head, rows.prefix)
    full = records.final_quality.astype(float).mean() or 1
    for i in at.tolist():
        config = ExitConfig(exits_of(candidates, i))
        outcome = evaluate(records, costs, config)
        assert candidates.quality[i] == pytest.approx(outcome.quality / full)
        assert candidates.cost[i] == pytest.approx(outcome.relative_cost)
        found = per_sample(problem, candidates.head[i], candidates.prefix[i])
        for lam in LAMBDAS:
            each = lam * (problem.full - found.quality) + (1 - lam) * found.cost
            assert each == pytest.approx(found.objective(lam) + lam * problem.full, abs=1e-12)
            assert each == pytest.approx(objective_of_each(records, costs, config, lam), abs=1e-12)
            assert each.mean() == pytest.approx(objective(records, costs, config, lam), abs=1e-12)
    quality, cost, leavers = simulate(problem, rows.head, rows.prefix)
    assert (candidates.quality[at] == quality).all()
    assert (candidates.cost[at] == cost).all()
    assert ((leavers > 0) == (rows.head != OFF)).all()


@pytest.mark.parametrize("numba", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_lost_and_spared_without_an_exit_equals_switching_it_off(monkeypatch, seed, numba):
    monkeypatch.setenv(NO_NUMBA, "" if numba else "1")
    records, costs = random_case(seed, 5, 2, 9, gaps=0.2)
    problem = Problem.of(records, costs)
    rows = some_rows(problem, 10, seed)  # some exits are never reached
    for head, prefix in zip(rows.head, rows.prefix, strict=True):
        found = per_sample(problem, head, prefix)
        assert found.places.tolist() == np.flatnonzero(head != OFF).tolist()
        assert found.lost.shape == found.spared.shape == (len(found.places), 9)
        for p, lost, spared in zip(found.places.tolist(), found.lost, found.spared, strict=True):
            other = per_sample(problem, *without(head, prefix, p))
            assert found.quality + lost == pytest.approx(other.quality, abs=1e-12)
            assert found.cost + spared == pytest.approx(other.cost, abs=1e-12)


def test_stages_are_where_samples_leave():
    records, costs = random_case(5, 4, 2, 9, gaps=0.1)
    problem = Problem.of(records, costs)
    rows = some_rows(problem, 10, 5)
    stage = rows.stages()
    candidates = CandidateSet(problem)
    for row, i in zip(stage, candidates.add(rows.head, rows.prefix).tolist(), strict=True):
        assert row.tolist() == evaluate(records, costs, ExitConfig(exits_of(candidates, i))).position.tolist()
