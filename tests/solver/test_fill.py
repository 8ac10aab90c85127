"""The fine dial: curves against simulating every cut, and what is between against what it is between."""

from itertools import pairwise

import numpy as np
import pytest

from instances import generated, make_records, random_case, synthetic
from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.fill import _best_end, _curves, _Segment, fill, undominated
from offramp.solver.kernels import OFF
from offramp.solver.line_search import simulate
from offramp.solver.problem import Problem
from offramp.solver.search import search
from offramp.solver.solve import METHODS


def filled(records, costs, picks=8, step=0.02):
    objectives = Objectives(np.linspace(0.5, 0.99, picks), np.zeros(picks), 99)
    candidates = CandidateSet(Problem.of(records, costs))
    for move in METHODS["exact"]:
        chosen = move(objectives, candidates)
    hull = undominated(candidates, chosen)
    return candidates, hull, fill(candidates, chosen, step, 99)


@pytest.mark.parametrize("seed", range(10))
def test_curves_equal_simulating_every_cut(seed):
    records, costs = random_case(seed, 4, 2, 9, gaps=0.2)
    problem, rng = Problem.of(records, costs), np.random.default_rng(seed)
    head, prefix = np.full(4, OFF), np.zeros(4, np.int64)
    for p, position in problem.used:
        own = int(rng.integers(len(position.heads)))
        size = position.prefix_near(own, int(rng.integers(1, 10)))
        head[p], prefix[p] = (own, size) if size else (OFF, 0)
    simulate(problem, head[None], prefix[None])
    seen = []
    for p, quality, cost in _curves(problem, head, prefix):
        seen.append(p)
        fits = [problem.positions[p].prefix_near(int(head[p]), k + 1) == k + 1 for k in range(9)]
        assert np.isfinite(cost).tolist() == fits
        for k in np.flatnonzero(fits).tolist():
            changed = prefix.copy()
            changed[p] = k + 1
            expected = by_definition(problem, head, changed)
            assert (quality[k], cost[k]) == pytest.approx(expected, abs=1e-12)
    assert sorted(seen) == np.flatnonzero(head != OFF).tolist()


def by_definition(problem, head, prefix):
    """Mean quality and cost, heads of exits that nobody takes included."""
    quality, cost = problem.final, np.ones(problem.samples)
    for p, position in reversed(problem.used):
        if head[p] != OFF:
            leaves = position.rank[head[p]] < prefix[p]
            quality = np.where(leaves, position.quality[head[p]], quality)
            cost = np.where(leaves, position.backbone, cost) + position.cost[head[p]]
    return quality.mean(), cost.mean()


def test_undominated_by_definition():
    rng = np.random.default_rng(0)
    candidates = CandidateSet(Problem.of(*synthetic(n=20, p=3)))
    candidates.quality, candidates.cost = rng.integers(0, 6, 40) / 6, rng.integers(0, 9, 40) / 9
    kept = undominated(candidates, np.array([*range(5, 40), 7, 7]))
    points = set(zip(candidates.cost[5:40].tolist(), candidates.quality[5:40].tolist(), strict=True))
    wanted = [
        (c, q)
        for c, q in sorted(points)
        if not any(d <= c and r >= q and (d, r) != (c, q) for d, r in points)
    ]
    assert list(zip(candidates.cost[kept].tolist(), candidates.quality[kept].tolist(), strict=True)) == wanted
    assert kept.min() >= 5


@pytest.mark.parametrize("make", [synthetic, generated])
def test_what_is_between_is_not_dominated_and_lies_between(make):
    records, costs = make(n=300, seed=1) if make is synthetic else make(1, 300, positions=6, heads=2)
    candidates, hull, (found, level) = filled(records, costs)
    assert (np.diff(candidates.cost[found]) > 0).all()
    assert (np.diff(candidates.quality[found]) > 0).all()
    assert len(found) > 2 * len(hull)
    assert set(hull.tolist()) <= set(found.tolist())  # luck between two of them displaces neither
    assert candidates.cost[found[0]] == candidates.cost[hull[0]]
    assert candidates.quality[found[-1]] == candidates.quality[hull[-1]]
    below = np.searchsorted(candidates.cost[found], candidates.cost[level]) - 1
    assert (candidates.quality[level] == candidates.quality[found[below]]).all()
    assert (candidates.cost[level] < candidates.cost[found[-1]]).all()


def test_gaps_wider_than_a_step_are_few_samples_high():
    """With finer quality than right or wrong there are hardly any; here a step up is at least one sample."""
    records, costs = synthetic(n=500, seed=1)
    candidates, _, (found, _) = filled(records, costs, step=0.02)
    wide = [
        round((candidates.quality[high] - candidates.quality[low]) * records.final_quality.sum())
        for low, high in pairwise(found.tolist())
        if candidates.cost[high] > candidates.cost[low] * 1.02
    ]
    assert np.median([*wide, 1]) <= 2


@pytest.mark.parametrize("make", [synthetic, generated])
def test_with_fine_quality_steps_are_as_small_as_asked(make):
    """Quality as a probability: no gap of one sample's size stands in the way."""
    records, costs = make(n=400, seed=1) if make is synthetic else make(1, 400, positions=6, heads=2)
    rng = np.random.default_rng(0)
    quality = 0.5 * records.quality + 0.5 * rng.random(records.quality.shape)
    soft, _ = make_records(records.confidence, quality, 0.6 * records.final_quality + 0.4, records.exists)
    candidates, _, (found, _) = filled(soft, costs, step=0.02)
    gaps = candidates.cost[found[1:]] / candidates.cost[found[:-1]]
    assert np.mean(gaps <= 1.02 + 1e-9) >= 0.9


@pytest.mark.parametrize(
    ("quality", "cost", "budget", "picked"),
    [
        ([0.79, 0.60, 0.70], [0.498, 0.499, 0.4995], 0.5, 2),  # far above the chord is luck, far below is bad
        ([0.69, 0.70], [0.499, 0.499], 0.5, 1),  # below it the best
        ([0.70, 0.72], [0.499, 0.501], 0.5, 0),  # never above the budget
        ([0.70, 0.68], [0.30, 0.4960], 0.5, 1),  # none just below: the nearest, not the best
        ([0.70], [0.45], 0.5, None),  # too far to be worth it
        ([], [], 0.5, None),
    ],
)
def test_of_the_ends_below_a_budget_the_one_nearest_to_the_chord_from_below(quality, cost, budget, picked):
    segment = _Segment((0.2, 0.6), (0.8, 0.8))  # 0.7 at a cost of 0.5
    assert _best_end(np.array(quality), np.array(cost), budget, segment, 0.005) == picked


def test_no_way_between_where_exits_take_all_or_none():
    """Equal confidences: one threshold fits, and there is nothing between an exit and the full model."""
    quality = np.tile([1.0, 0.0], (2, 1, 10))
    records, costs = make_records(np.full((2, 1, 20), 0.5), quality, np.ones(20))
    frontier = search(records, costs, tradeoffs=[0.1, 0.99], regularise=None)
    assert [len(config.choices) for config in frontier] == [1, 0]


def test_from_nothing_spent_there_is_no_geometric_way():
    rng = np.random.default_rng(0)
    records, costs = make_records(
        rng.random((2, 1, 30)),
        rng.random((2, 1, 30)) < 0.5,
        np.ones(30),
        costs=(np.arange(3.0), np.zeros((2, 1))),
    )
    frontier = search(records, costs, tradeoffs=[0.0, 1.0], regularise=None)
    assert frontier[0].expected.cost == 0
    assert frontier[-1].expected.quality == 1
