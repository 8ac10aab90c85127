"""Dials: configurations from the full model down, their safe end, and what lies between two of them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from instances import generated, make_records, random_case, synthetic
from offramp.core.config import ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.solver.candidates import CandidateSet
from offramp.solver.dial import (
    MOST_PARTS,
    SAFE_STEPS,
    between,
    blend,
    by_falling_cost,
    chords,
    dials,
    keep_most_confident,
    safe_end,
    strictly_cheaper,
)
from offramp.solver.kernels import OFF
from offramp.solver.problem import Problem
from offramp.solver.solve import SearchPlan

GRID = [0.5, 0.7, 0.85, 0.95, 0.99]
SHARES = st.integers(0, 20).map(lambda k: k / 20)


def plan_for(records, cap=99):
    return SearchPlan("exact", 2 / records.samples, cap, parsimonious=True)


def dials_of(records, costs, step=None, cap=99, common=True):
    problem = Problem.of(records, costs)
    return dials(problem, costs, plan_for(records, cap), GRID, common=common, step=step)


def some_configuration(problem, seed):
    """A head or none at each position, at a prefix that a threshold makes."""
    rng = np.random.default_rng(seed)
    head, prefix = np.full(len(problem.positions), OFF), np.zeros(len(problem.positions), np.int64)
    for p, position in problem.used:
        own = int(rng.integers(len(position.heads)))
        size = position.prefix_near(own, int(rng.integers(1, problem.samples + 1)))
        if size and rng.random() < 0.8:
            head[p], prefix[p] = own, size
    return head, prefix


def leavers(problem, head, prefix):
    """By position the samples that leave there, as a set each; those of the output last."""
    alive, found = set(range(problem.samples)), {}
    for p, position in problem.used:
        if head[p] != OFF:
            found[p] = {i for i in alive if position.rank[head[p], i] < prefix[p]}
            alive -= found[p]
    return found, alive


# --------------------------------------------------------------------------------------------------- dials


def cases():
    return {
        "synthetic": synthetic(n=120, p=5),
        "generated": generated(1, 120, positions=5, heads=2),
        "ties": random_case(1, 4, 2, 60, levels=5, gaps=0.1),
        "few": random_case(2, 3, 2, 4),
        "bare": random_case(0, 3, 2, 20, gaps=1.1),
    }


@pytest.mark.parametrize("step", [None, 0.05, 0.01])
@pytest.mark.parametrize("factor", [1, 5, 20])
@pytest.mark.parametrize("name", cases())
def test_a_dial_starts_with_the_full_model_and_gets_strictly_cheaper(name, factor, step):
    """Also where heads cost so much that a few leavers do not pay for them."""
    records, costs = cases()[name]
    costs = CostTable(costs.backbone, costs.heads * factor, costs.unit)
    found = dials_of(records, costs, step)
    assert len(found) == 2
    for dial in found:
        assert dial.exits(int(dial.rows[0])) == ()
        assert dial.cost[0] == 1.0
        assert (np.diff(dial.cost) < 0).all()
        assert dial.cost.tolist() == dial.candidates.cost[dial.rows].tolist()
        assert dial.picks.shape == (len(GRID),)
        for i in np.append(dial.rows, dial.picks).tolist():
            outcome = evaluate(records, costs, ExitConfig(dial.exits(i)))
            assert dial.candidates.cost[i] == pytest.approx(outcome.relative_cost)
            assert dial.candidates.cost[i] <= 1
        # each trade-off has its configuration on the dial, or one that costs no more and came before
        for i in dial.picks.tolist():
            assert dial.cost.min() <= dial.candidates.cost[i] + 1e-12
            assert i in dial.rows or (dial.cost <= dial.candidates.cost[i]).any()


def test_what_costs_no_less_than_the_full_model_is_not_picked():
    """Quality alone, heads that cost more than the model: the search picks them, a dial does not."""
    rng = np.random.default_rng(0)
    records, _ = make_records(rng.random((2, 1, 60)), np.ones((2, 1, 60)), rng.random(60) < 0.5)
    costs = CostTable(np.array([0, 1, 2.0]), np.array([[9.0], [9.0]]), "macs")
    plan = SearchPlan("exact", 0.0, 99)
    (dial,) = dials(Problem.of(records, costs), costs, plan, [0.999999], common=False)
    assert dial.picks.tolist() == [0]
    assert dial.rows.tolist() == [0]
    assert dial.candidates.quality.max() > 1.5  # it was found


@pytest.mark.parametrize("cap", [0, 1, 2])
@pytest.mark.parametrize("step", [None, 0.01])
@pytest.mark.parametrize("name", ["synthetic", "ties"])
def test_caps_are_kept_all_along_a_dial(name, step, cap):
    """Between two configurations with other exits there is one with both: not where that is too many."""
    records, costs = cases()[name]
    for dial in dials_of(records, costs, step, cap):
        exits = [len(dial.exits(i)) for i in np.append(dial.rows, dial.picks).tolist()]
        assert max(exits) <= cap
        assert (len(dial.rows) > 1) == (cap > 0)


def test_of_two_dials_the_common_one_has_one_threshold_wherever_a_trade_off_picks():
    records, costs = generated(1, 200, positions=5, heads=2)
    careful, common = dials_of(records, costs)
    thresholds = [{c.threshold for c in common.exits(i)} for i in common.picks.tolist()]
    assert all(len(each) <= 1 for each in thresholds)
    assert max(len(common.exits(i)) for i in common.picks.tolist()) > 1
    assert max(len({c.threshold for c in careful.exits(i)}) for i in careful.picks.tolist()) > 1
    assert len(dials_of(records, costs, common=False)) == 1


@pytest.mark.parametrize("step", [0.05, 0.01])
@pytest.mark.parametrize("make", [synthetic, generated])
def test_with_a_step_hardly_any_gap_is_much_wider(make, step):
    """Parts are of equal shares of leavers, not of cost: some gaps are up to twice as wide."""
    records, costs = make(n=300, p=5) if make is synthetic else make(1, 300, positions=5, heads=2)
    for dial, coarse in zip(dials_of(records, costs, step), dials_of(records, costs), strict=True):
        ratio = dial.cost[:-1] / dial.cost[1:]
        assert np.median(ratio) <= 1 + step
        assert np.mean(ratio <= 1 + 2 * step + 0.005) > 0.9
        assert len(dial.rows) > len(coarse.rows)
        assert dial.picks.size == coarse.picks.size
        for i, j in zip(dial.picks.tolist(), coarse.picks.tolist(), strict=True):
            assert dial.exits(i) == coarse.exits(j)


def test_progress_is_reported_three_times():
    records, costs = synthetic(n=60, p=3)
    for common in (False, True):
        seen = []
        dials(
            Problem.of(records, costs),
            costs,
            plan_for(records),
            GRID,
            common=common,
            report=lambda seen=seen: seen.append(1),
        )
        assert len(seen) == 3


# ------------------------------------------------------------------------------------------------ safe end


@given(st.integers(0, 10**6), SHARES, st.sampled_from([3, 10**6]))
@settings(max_examples=60, deadline=None)
def test_each_exit_keeps_the_most_confident_share_of_its_leavers(seed, share, levels):
    """By simulation: who is kept is more confident there than who is not; equal confidences stay together."""
    records, costs = random_case(seed, 4, 2, 12, levels=levels, gaps=0.1)
    problem = Problem.of(records, costs)
    head, prefix = some_configuration(problem, seed)
    before, _ = leavers(problem, head, prefix)
    heads, prefixes = keep_most_confident(problem, head, prefix, share)
    after, _ = leavers(problem, heads, prefixes)
    for p, left in before.items():
        confidence = problem.positions[p].confidence[head[p]]
        wanted = int(np.ceil(share * len(left)))
        kept = left & after.get(p, set())
        assert (heads[p] == OFF) == (wanted == 0)
        assert heads[p] in (OFF, head[p])
        values = np.sort(confidence[sorted(left)])[::-1]
        if wanted:  # those as confident as the last that is wanted, and no others
            assert kept == {i for i in left if confidence[i] >= values[wanted - 1]}
        else:
            assert not kept
    earlier = set()
    for p, left in after.items():  # whoever leaves there without having done so did leave before
        assert left - before[p] <= earlier
        earlier |= before[p] - left


@given(st.integers(0, 10**6), SHARES, SHARES)
@settings(max_examples=60, deadline=None)
def test_larger_shares_let_the_same_leave_and_more_of_them(seed, one, other):
    """Nested: with a larger share nobody leaves later."""
    records, costs = random_case(seed, 4, 2, 12, levels=5, gaps=0.1)
    problem = Problem.of(records, costs)
    head, prefix = some_configuration(problem, seed)
    places = []
    for share in sorted((one, other)):
        found, _ = leavers(problem, *keep_most_confident(problem, head, prefix, share))
        place = np.full(12, 4)
        for p, left in found.items():
            place[sorted(left)] = p
        places.append(place)
    assert (places[1] <= places[0]).all()


@pytest.mark.parametrize("seed", range(6))
def test_all_of_them_is_the_configuration_itself_and_none_is_the_full_model(seed):
    records, costs = random_case(seed, 4, 2, 12, levels=5, gaps=0.1)
    problem = Problem.of(records, costs)
    candidates = CandidateSet(problem)
    head, prefix = some_configuration(problem, seed)
    given_head, given_prefix = head.copy(), prefix.copy()
    (own,) = candidates.add(head[None], prefix[None])
    ends = [keep_most_confident(problem, head, prefix, share) for share in (0.0, 1.0)]
    none, every = (int(candidates.add(h[None], k[None])[0]) for h, k in ends)
    assert none == 0
    assert candidates.cost[every] == candidates.cost[own]
    assert candidates.quality[every] == candidates.quality[own]
    assert leavers(problem, *ends[1])[1] == leavers(problem, head, prefix)[1]
    assert head.tolist() == given_head.tolist()  # what was given is as it was
    assert prefix.tolist() == given_prefix.tolist()


@pytest.mark.parametrize(("step", "parts"), [(None, SAFE_STEPS), (0.2, SAFE_STEPS), (0.01, None)])
def test_the_safe_end_has_parts_for_the_saving_it_leads_to(step, parts):
    records, costs = synthetic(n=400, p=5)
    candidates = CandidateSet(Problem.of(records, costs))
    (start,) = candidates.add(np.array([[OFF, 1, 1, 1, 1]]), np.array([[0, 150, 200, 250, 300]])).tolist()
    saving = 1 - candidates.cost[start]
    found = safe_end(candidates, start, step)
    parts = parts or int(np.ceil(saving / step))
    assert parts >= SAFE_STEPS
    assert len(found) == parts - 1
    assert len(set(found)) == parts - 1
    assert (np.diff(candidates.cost[found]) < 0).all()
    own = candidates.problem, candidates.head[start], candidates.prefix[start]
    for i, k in zip(found, range(1, parts), strict=True):
        assert candidates.prefix[i].tolist() == keep_most_confident(*own, k / parts)[1].tolist()


def test_the_safe_end_leads_to_the_first_configuration_with_exits():
    """That of the largest trade-off: it stands on the dial right after the safe end."""
    records, costs = generated(2, 300, positions=5, heads=2)
    for dial in dials_of(records, costs):
        start = next(i for i in dial.picks[::-1].tolist() if i)
        at = dial.rows.tolist().index(start)
        assert at >= SAFE_STEPS - 1
        for row in dial.rows[1:at].tolist():
            assert {(c.position, c.head) for c in dial.exits(row)} <= {
                (c.position, c.head) for c in dial.exits(start)
            }
            left = [
                leavers(dial.candidates.problem, dial.candidates.head[i], dial.candidates.prefix[i])[1]
                for i in (row, start)
            ]
            assert left[0] >= left[1]  # more stay to the end


def test_the_safe_end_leads_past_what_costs_more_than_the_full_model():
    """The largest trade-off buys quality that the full model has not; the next has the exit that saves."""
    rng = np.random.default_rng(0)
    quality = np.stack([rng.random((1, 60)) < 0.6, np.ones((1, 60))])
    records, _ = make_records(rng.random((2, 1, 60)), quality, rng.random(60) < 0.5)
    costs = CostTable(np.array([0, 1, 2.0]), np.array([[0.01], [9.0]]), "macs")
    plan = SearchPlan("exact", 0.0, 99)
    (dial,) = dials(Problem.of(records, costs), costs, plan, [0.3, 0.9999], common=False)
    assert [len(dial.exits(i)) for i in dial.picks.tolist()] == [1, 0]
    start = int(dial.picks[0])
    wanted = strictly_cheaper(dial.candidates, np.array([0, *safe_end(dial.candidates, start), start]))
    assert dial.rows.tolist() == wanted.tolist()
    assert len(wanted) == SAFE_STEPS + 1


# ------------------------------------------------------------------------------------------------- between


def pair(seed, levels=10**6):
    """Two configurations of one problem, taken in."""
    records, costs = random_case(seed, 4, 2, 16, levels=levels, gaps=0.1)
    problem = Problem.of(records, costs)
    candidates = CandidateSet(problem)
    configurations = [some_configuration(problem, (seed, side)) for side in (1, 2)]
    return candidates, *candidates.add(*map(np.array, zip(*configurations, strict=True))).tolist()


@given(st.integers(0, 10**6), st.sampled_from([3, 10**6]))
@settings(max_examples=60, deadline=None)
def test_a_blend_of_none_or_all_of_the_way_is_either_end(seed, levels):
    candidates, one, other = pair(seed, levels)
    for share, end in ((0, one), (1, other)):
        head, prefix = blend(candidates, one, other, share)
        assert head.tolist() == candidates.head[end].tolist()
        assert prefix.tolist() == candidates.prefix[end].tolist()


@given(st.integers(0, 10**6), SHARES, st.sampled_from([3, 10**6]))
@settings(max_examples=60, deadline=None)
def test_a_blend_lies_between_position_by_position(seed, share, levels):
    candidates, one, other = pair(seed, levels)
    before = candidates.head.copy(), candidates.prefix.copy()
    head, prefix = blend(candidates, one, other, share)
    for p, position in enumerate(candidates.problem.positions):
        own, then = int(candidates.head[one, p]), int(candidates.head[other, p])
        sizes = int(candidates.prefix[one, p]), int(candidates.prefix[other, p])
        assert head[p] in (own, then, OFF)
        assert (head[p] == OFF) == (prefix[p] == 0)
        if own == then == OFF:
            assert head[p] == OFF
        elif own != then and OFF not in (own, then):  # two heads: the nearer one, as it is there
            assert (head[p], prefix[p]) == ((own, sizes[0]) if share < 0.5 else (then, sizes[1]))
        else:
            kept, exact = max(own, then), (1 - share) * sizes[0] + share * sizes[1]
            wanted = round(exact)
            assert prefix[p] == (position.prefix_near(kept, wanted) if wanted else 0)
            if levels > 3 and head[p] != OFF:
                assert abs(prefix[p] - exact) <= 0.5
            assert min(sizes) <= prefix[p] <= max(sizes)
    assert candidates.head.tolist() == before[0].tolist()
    assert candidates.prefix.tolist() == before[1].tolist()


@pytest.mark.parametrize("step", [0.01, 0.05, 0.3])
def test_between_two_neighbours_are_as_many_parts_as_steps_of_cost(step):
    records, costs = synthetic(n=400, p=5)
    candidates = CandidateSet(Problem.of(records, costs))
    head = np.array([[OFF, 1, 1, 1, 1]] * 2)
    rows = candidates.add(head, np.array([[0, 10, 20, 30, 40], [0, 200, 250, 300, 350]]))
    high, low = candidates.cost[rows]
    assert high > low
    found = between(candidates, rows, step, 4)
    assert len(found) == int(np.ceil(np.log(high / low) / np.log1p(step))) - 1
    line = candidates.cost[[rows[0], *found, rows[1]]]
    assert (np.diff(line) < 0).all()
    assert between(candidates, rows[:1], step, 4).size == 0
    assert between(candidates, np.array([rows[0], rows[0]]), step, 4).size == 0


def test_between_far_neighbours_the_parts_are_not_endless():
    """Nothing spent: no number of equal shares leads there."""
    confidence = np.linspace(0, 1, 1000).reshape(1, 1, -1)
    records, costs = make_records(
        confidence, np.ones((1, 1, 1000)), np.ones(1000), costs=(np.arange(2.0), np.zeros((1, 1)))
    )
    candidates = CandidateSet(Problem.of(records, costs))
    (free,) = candidates.add(np.array([[0]]), np.array([[1000]]))
    assert candidates.cost[free] == 0
    assert between(candidates, np.array([0, free]), 0.01, 1).size == MOST_PARTS - 1


def test_where_both_exits_are_too_many_the_cheaper_ones_are_kept_by_their_most_confident():
    records, costs = synthetic(n=400, p=5)
    candidates = CandidateSet(Problem.of(records, costs))
    head, prefix = np.array([[OFF, OFF, OFF, 1, 1], [OFF, 1, 1, OFF, OFF]]), np.zeros((2, 5), np.int64)
    prefix[0, 3:], prefix[1, 1:3] = (20, 30), (300, 350)
    rows = candidates.add(head, prefix)
    problem, (high, low) = candidates.problem, candidates.cost[rows]
    parts = int(np.ceil(np.log(high / low) / np.log1p(0.05)))
    every = {k: keep_most_confident(problem, head[1], prefix[1], k / parts) for k in range(1, parts)}
    wanted = candidates.add(*(np.array(each) for each in zip(*every.values(), strict=True)))
    wanted = [i for i in wanted.tolist() if low < candidates.cost[i] < high]
    assert between(candidates, rows, 0.05, 2).tolist() == wanted
    assert len(wanted) > 5
    blended = between(candidates, rows, 0.05, 4)
    assert np.count_nonzero(candidates.head[blended] != OFF, axis=1).max() == 4


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]), st.sampled_from([0.02, 0.2]))
@settings(max_examples=60, deadline=None)
def test_what_is_between_costs_less_than_the_one_and_more_than_the_other(seed, cap, step):
    candidates, *ends = pair(seed)
    ends = [i for i in ends if np.count_nonzero(candidates.head[i] != OFF) <= cap]
    rows = by_falling_cost(candidates, np.array(ends, np.int64))
    for find in (between, chords):
        found = find(candidates, rows, step, cap)
        cost, ends = candidates.cost[found], candidates.cost[rows]
        assert (np.count_nonzero(candidates.head[found] != OFF, axis=1) <= cap).all()
        if find is between:
            assert ((ends.min() < cost) & (cost < 1)).all()
            assert not set(cost.tolist()) & set(ends.tolist())
        else:  # a chord's lowest budget may be undercut by less than a step
            assert ((ends.min() / (1 + step) < cost) & (cost <= 1)).all()


@pytest.mark.parametrize("cap", [2, 99])
@pytest.mark.parametrize("make", [synthetic, generated])
def test_chords_are_near_the_line_between_neighbours_and_only_where_more_cost_is_better(make, cap):
    records, costs = make(n=300, p=5) if make is synthetic else make(1, 300, positions=5, heads=2)
    (dial,) = dials_of(records, costs, cap=cap, common=False)
    candidates, rows = dial.candidates, dial.rows
    found = chords(candidates, rows, 0.02, cap)
    assert found.size > 5
    assert (np.count_nonzero(candidates.head[found] != OFF, axis=1) <= cap).all()
    cost, quality = candidates.cost, candidates.quality
    for i in found.tolist():
        low = rows[cost[rows] <= cost[i]][0]
        high = rows[cost[rows] >= cost[i]][-1]
        assert quality[low] <= quality[i] <= quality[high]
        assert cost[high] > cost[low] * 1.02
        assert low != high
    backwards = rows[np.argsort(quality[rows], kind="stable")]  # as if better ones came later
    for high, low in pairwise(backwards.tolist()):
        if quality[low] >= quality[high]:
            assert chords(candidates, np.array([high, low]), 0.02, cap).size == 0
    assert chords(candidates, rows[:1], 0.02, cap).size == 0
    assert chords(candidates, rows, 10.0, cap).size == 0  # no gap is that wide


def test_chords_do_not_start_from_nothing_spent():
    confidence = np.linspace(0, 1, 50).reshape(1, 1, -1)
    records, costs = make_records(
        confidence, np.resize([1.0, 0.0], (1, 1, 50)), np.ones(50), costs=(np.arange(2.0), np.zeros((1, 1)))
    )
    candidates = CandidateSet(Problem.of(records, costs))
    (free,) = candidates.add(np.array([[0]]), np.array([[50]]))
    assert chords(candidates, np.array([0, free]), 0.1, 1).size == 0


def test_by_falling_cost_the_full_model_is_first_and_nothing_costs_more():
    candidates = CandidateSet(Problem.of(*synthetic(n=5, p=2)))
    candidates.cost = np.array([1.0, 1.25, 0.5, 0.75, 0.5, 1.0])
    assert by_falling_cost(candidates, np.array([4, 1, 3, 2, 5, 3])).tolist() == [0, 3, 2]
    assert by_falling_cost(candidates, np.zeros(0, np.int64)).tolist() == [0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_strictly_cheaper_by_definition(costs):
    candidates = CandidateSet(Problem.of(*synthetic(n=5, p=2)))
    candidates.cost = np.array(costs) / 5
    order = np.random.default_rng(len(costs)).permutation(len(costs))
    kept = strictly_cheaper(candidates, order).tolist()
    wanted = [i for k, i in enumerate(order.tolist()) if all(costs[j] > costs[i] for j in order[:k])]
    assert kept == wanted
    assert all(costs[i] > costs[j] for i, j in pairwise(kept))


def test_dials_of_records_without_some_heads_use_none_of_them():
    records, costs = synthetic(n=100, p=4)
    there = records.exists.copy()
    there[2] = False
    for dial in dials_of(replace(records, exists=there), costs, 0.02):
        assert not any(c.position == "p2" for i in dial.rows.tolist() for c in dial.exits(i))
