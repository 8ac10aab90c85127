"""The pool of candidates, and the way between cuts and thresholds."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from instances import make_records, random_case, synthetic
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.evaluate import evaluate
from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.common_threshold import threshold_between
from offramp.solver.kernels import OFF
from offramp.solver.local_search import _moves
from offramp.solver.problem import Problem
from offramp.solver.solve import exits_of, fewer, place, spread


def goals_of(tradeoffs, price=0.0, cap=99):
    return Objectives(np.array(tradeoffs), np.full(len(tradeoffs), price), cap)


def test_starts_with_the_full_model():
    candidates = CandidateSet(Problem.of(*synthetic(n=20)))
    assert (candidates.head == OFF).all()
    assert candidates.quality == pytest.approx([1.0])
    assert candidates.cost.tolist() == [1.0]


def test_add_knows_what_it_has_met():
    records, costs = synthetic(n=20, p=3)
    candidates = CandidateSet(Problem.of(records, costs))
    head = np.array([[OFF, 0, OFF], [OFF, 1, 0], [OFF, 0, OFF], [OFF, OFF, OFF]])
    prefix = np.array([[0, 5, 0], [0, 3, 9], [0, 5, 0], [0, 0, 0]])
    assert candidates.add(head, prefix).tolist() == [1, 2, 1, 0]
    assert candidates.add(head[::-1], prefix[::-1]).tolist() == [0, 1, 2, 1]
    assert (
        len(candidates.head)
        == len(candidates.prefix)
        == len(candidates.quality)
        == len(candidates.cost)
        == len(candidates.common)
        == 3
    )
    assert candidates.add(head[:0], prefix[:0]).tolist() == []
    assert candidates.head[[1, 2]].tolist() == head[:2].tolist()


def test_exits_that_nobody_takes_are_the_same_as_none():
    """All samples leave at p1: whatever sits behind it, it is one configuration."""
    records, costs = synthetic(n=20, p=4)
    candidates = CandidateSet(Problem.of(records, costs))
    head = np.array([[OFF, 0, 0, OFF], [OFF, 0, OFF, 1], [OFF, 0, OFF, OFF]])
    prefix = np.array([[0, 20, 4, 0], [0, 20, 0, 9], [0, 20, 0, 0]])
    before = head.copy(), prefix.copy()
    assert candidates.add(head, prefix).tolist() == [1, 1, 1]
    assert candidates.head[1].tolist() == [OFF, 0, OFF, OFF]
    assert candidates.prefix[1].tolist() == [0, 20, 0, 0]
    assert (head == before[0]).all()
    assert (prefix == before[1]).all()
    assert candidates.add(head[:1], prefix[:1]).tolist() == [1]


def test_best_is_the_least_of_all_and_of_equals_the_one_with_the_fewest_exits():
    confidence = np.tile(np.linspace(0, 1, 10), (3, 1, 1))
    records, costs = make_records(
        confidence, np.ones((3, 1, 10)), np.ones(10), costs=(np.arange(4.0), np.zeros((3, 1)))
    )
    candidates = CandidateSet(Problem.of(records, costs))
    head = np.array([[0, 0, OFF], [0, OFF, OFF], [OFF, 0, OFF]])
    prefix = np.array([[4, 10, 0], [4, 0, 0], [0, 10, 0]])
    both, first, second = candidates.add(head, prefix).tolist()
    pick, value = candidates.best(goals_of([0.0, 0.5, 1.0]))
    assert pick.tolist() == [both, both, 0]  # at lambda 1 all are equal: the full model has no exit
    assert value.tolist() == pytest.approx([0.6 / 3, 0.3 / 3, 0])
    pick, value = candidates.best(goals_of([0.0, 0.0], cap=1))
    assert pick.tolist() == [second, second]
    assert candidates.best(goals_of([0.0], price=0.2))[0].tolist() == [second]
    assert candidates.best(goals_of([0.0], cap=0))[0].tolist() == [0]
    assert candidates.cost[first] > candidates.cost[second]


@pytest.mark.parametrize("seed", range(8))
def test_names_and_cuts_lead_to_each_other(seed):
    records, costs = random_case(seed, 4, 2, 9, gaps=0.2)
    problem = Problem.of(records, costs)
    candidates, rng = CandidateSet(problem), np.random.default_rng(seed)
    head, prefix = np.full((30, 4), OFF), np.zeros((30, 4), np.int64)
    for p, position in problem.used:
        for row in range(30):
            own = int(rng.integers(-1, len(position.heads)))
            size = position.prefix_near(own, int(rng.integers(1, 10))) if own != OFF else 0
            head[row, p], prefix[row, p] = (own, size) if size else (OFF, 0)
    first = candidates.add(head, prefix)
    again = candidates.add(*place(problem, [exits_of(candidates, i) for i in first.tolist()]))
    for i, j in zip(first.tolist(), again.tolist(), strict=True):  # cuts may count samples gone before
        left = [evaluate(records, costs, ExitConfig(exits_of(candidates, k))).position for k in (i, j)]
        assert left[0].tolist() == left[1].tolist()
        assert (candidates.quality[i], candidates.cost[i]) == (candidates.quality[j], candidates.cost[j])
        assert (candidates.head[i] == candidates.head[j]).all()


def test_thresholds_of_other_records_find_their_place():
    """More samples, the same names; a threshold that nobody passes is off."""
    records, costs = synthetic(n=60, p=3)
    problem = Problem.of(records, costs)
    exits = (ExitChoice("p1", "h1", 0.7), ExitChoice("p2", "h0", 2.0))
    head, prefix = place(problem, [exits, ()])
    assert head.tolist() == [[OFF, 1, OFF], [OFF, OFF, OFF]]
    assert prefix[0, 1] == np.count_nonzero(records.confidence[1, 1] > np.float32(0.7))


def test_a_common_threshold_is_kept():
    records, costs = synthetic(n=30, p=3)
    candidates = CandidateSet(Problem.of(records, costs))
    head, prefix = place(candidates.problem, [[ExitChoice(p, "h0", 0.7) for p in ("p1", "p2")]])
    (at,) = candidates.add(head, prefix, np.array([0.7]))
    assert {choice.threshold for choice in exits_of(candidates, int(at))} == {0.7}


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (101, 9), (2, 1), (64, 64), (1000, 64)])
def test_spread_has_the_ends_and_no_more_than_asked(count, most):
    picks = spread(count, most)
    assert len(picks) == min(count, most)
    assert picks[0] == 0
    assert most == 1 or picks[-1] == count - 1
    assert np.ptp(np.diff(picks)) <= 1 if len(picks) > 1 else True


def test_fewer_samples_stand_for_all():
    records, _ = synthetic(n=1000)
    part = fewer(records, 100)
    assert part.samples == 100
    assert np.unique(part.confidence[1, 0]).size == 100  # no sample twice
    assert part.final_quality.mean() == pytest.approx(records.final_quality.mean(), abs=0.05)
    means = [each.confidence[1:].mean(axis=(0, 1)) for each in (records, part)]
    for q in (0.05, 0.3, 0.5, 0.8, 0.95):  # far closer than 100 drawn at random
        assert np.quantile(means[0], q) == pytest.approx(np.quantile(means[1], q), abs=0.005)


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_threshold_parts_two_neighbours(a, b):
    lower, upper = np.float32(min(a, b)), np.float32(max(a, b))
    if lower < upper:
        threshold = threshold_between(lower, upper)
        assert threshold == np.float32(threshold)
        assert upper > np.float32(threshold)
        assert not lower > np.float32(threshold)
    assert threshold_between(np.float32(-np.inf), upper) == -np.inf


def test_threshold_is_the_midpoint_where_there_is_one():
    assert threshold_between(np.float32(0.25), np.float32(0.75)) == 0.5
    one = np.float32(1)
    below = np.nextafter(one, np.float32(0))
    assert threshold_between(below, one) == float(below)


def test_moves_out_of_a_local_optimum():
    """Of three exits at four places: each off, what is before or after it off, each at the free place."""
    records, costs = synthetic(n=40, p=5)
    problem = Problem.of(records, costs)  # no head at the input: places 1 to 4
    head, prefix = np.array([OFF, 0, 1, OFF, 0]), np.array([0, 5, 7, 0, 9])
    moves = [(tuple(h), tuple(c)) for h, c in _moves(problem, head, prefix)]
    assert set(moves) == {
        ((OFF, OFF, 1, OFF, 0), (0, 0, 7, 0, 9)),
        ((OFF, 0, OFF, OFF, 0), (0, 5, 0, 0, 9)),
        ((OFF, 0, 1, OFF, OFF), (0, 5, 7, 0, 0)),
        ((OFF, 0, OFF, OFF, OFF), (0, 5, 0, 0, 0)),  # after the first
        ((OFF, OFF, OFF, OFF, 0), (0, 0, 0, 0, 9)),  # before the last
        ((OFF, 0, OFF, 1, 0), (0, 5, 0, 7, 9)),  # the second, one place on
        ((OFF, 0, 1, 0, OFF), (0, 5, 7, 9, 0)),  # the third, one place back
    }
    assert len(moves) == len(set(moves))
    assert head.tolist() == [OFF, 0, 1, OFF, 0]
