"""Records prepared for lines: order, ranks, cuts, scale, threads."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from effort import set_effort
from instances import make_records, random_case, synthetic
from offramp.core.costs import CostTable
from offramp.solver.problem import NEVER, Problem, bits, hashed, most_confident_first

SINGLE = st.floats(width=32, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 0.5, np.inf, -np.inf, 1.401298464324817e-45, -1.401298464324817e-45, 1.1754943508222875e-38]
)


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=SINGLE))
def test_surest_first_is_a_stable_sort_by_falling_value(confidence):
    order = most_confident_first(confidence)
    falling = np.take_along_axis(confidence, order, axis=1)
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(order.shape[1]), (len(order), 1)))
    assert np.array_equal(falling, -np.sort(-confidence, axis=1))
    for row, places in zip(confidence, order, strict=True):
        if not (np.signbit(row[row == 0]).any() and (~np.signbit(row[row == 0])).any()):
            assert places.tolist() == np.argsort(-row, kind="stable").tolist()


def test_the_two_zeros_are_ties_of_one_threshold():
    """A radix sort may part them; a threshold must not."""
    confidence = np.array([0.0, -0.0, 0.0, -0.0, 1.0], np.float32).reshape(1, 1, 5)
    records, costs = make_records(confidence, np.ones((1, 1, 5)), np.ones(5))
    position = Problem.of(records, costs).positions[0]
    assert position.ends.tolist() == [[0, NEVER, NEVER, NEVER, 0]]
    assert position.prefix_at(0, -0.5) == 5
    assert position.prefix_at(0, 0.0) == position.prefix_at(0, -0.0) == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_is_allowed_exactly_where_a_threshold_makes_it(seed):
    records, costs = random_case(seed, 3, 2, 9)
    problem = Problem.of(records, costs)
    for p, position in problem.used:
        assert position.heads == tuple(np.flatnonzero(records.exists[p]))
        for own, c in enumerate(position.heads):
            known = records.confidence[p, c]
            finite = known[np.isfinite(known)]
            possible = {int(np.count_nonzero(finite >= value)) for value in finite}
            near = {position.prefix_near(own, prefix) for prefix in range(10)} - {0}
            assert near == possible
            for prefix in range(1, 10):
                later = [size for size in sorted(possible) if size >= prefix]
                assert position.prefix_near(own, prefix) == (later[0] if later else 0)
            for prefix in possible:
                leaves = position.rank[own] < prefix
                assert finite.size
                assert (
                    position.prefix_at(own, np.nextafter(known[leaves].min(), np.float32(-np.inf))) == prefix
                )


def test_without_ties_every_cut_is_allowed():
    records, costs = synthetic(n=50)
    position = Problem.of(records, costs).positions[1]
    assert position.ends is None
    assert [position.prefix_near(0, prefix) for prefix in (1, 7, 50)] == [1, 7, 50]
    assert position.ordered(1).tolist() == np.argsort(-records.confidence[1, 1], kind="stable").tolist()


def test_scaled_by_the_full_model():
    records, costs = random_case(3, 2, 2, 6, gaps=0)
    problem = Problem.of(records, costs)
    mean = records.final_quality.astype(float).mean()
    assert problem.full == 1.0
    assert problem.final.mean() == pytest.approx(1.0)
    assert problem.samples == 6
    assert problem.cells == 2 * 2 * 6
    for p, position in problem.used:
        assert position.quality == pytest.approx(records.quality[p].astype(float) / mean)
        assert position.cost == pytest.approx(costs.heads[p] / costs.full)
        assert position.backbone == pytest.approx(costs.backbone[p] / costs.full)


def test_a_full_model_of_quality_0_leaves_qualities_alone():
    records, costs = make_records(np.ones((1, 1, 4)), np.full((1, 1, 4), 0.5), np.zeros(4))
    problem = Problem.of(records, costs)
    assert problem.full == 0.0
    assert problem.positions[0].quality.tolist() == [[0.5] * 4]


def test_no_head_anywhere():
    records, costs = random_case(0, 3, 2, 30, gaps=1.1)
    problem = Problem.of(records, costs)
    assert [position.heads for position in problem.positions] == [(), (), ()]
    assert problem.used == []
    assert problem.cells == 0
    assert problem.batch >= 1


@pytest.mark.parametrize("seed", range(5))
def test_sums_of_gains_fit_into_64_bits(seed):
    """The largest sum there can be stays below the value that forbids a cut, and far from overflow."""
    records, costs = random_case(seed, 4, 2, 50, gaps=0)
    costs.heads[:] *= 1000
    problem = Problem.of(records, costs)
    most = max(position.quality.max() for _, position in problem.used) + problem.final.max()
    most += 2 + sum(position.cost.max() for _, position in problem.used)
    assert problem.samples * most * problem.unit < -NEVER
    assert np.log2(problem.unit) == int(np.log2(problem.unit))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("rows", [0, 1, 10])
def test_batches_cover_all_rows_in_order(monkeypatch, workers, rows):
    set_effort(monkeypatch, cells=3 * 2 * 50)
    records, costs = synthetic(n=50)
    problem = Problem.of(records, costs, workers)
    assert problem.batch == 3
    parts = problem.by_batch(rows, lambda part: list(range(rows))[part])
    assert [row for part in parts for row in part] == list(range(rows))
    assert all(len(part) <= 3 for part in parts)


def test_an_error_in_a_thread_is_not_lost(monkeypatch):
    set_effort(monkeypatch, cells=1)
    problem = Problem.of(*synthetic(n=50), workers=2)
    with pytest.raises(ZeroDivisionError):
        problem.by_batch(4, lambda part: 1 // (part.start - 2))


def test_canonical_is_by_mean_rank():
    records, costs = synthetic(n=40)
    problem = Problem.of(records, costs)
    order = problem.canonical()
    assert sorted(order.tolist()) == list(range(40))
    ranks = np.argsort(np.argsort(-records.confidence[1:], axis=2), axis=2).sum(axis=(0, 1))
    assert (np.diff(ranks[order]) >= 0).all()


def test_canonical_does_not_depend_on_the_order_given():
    rng = np.random.default_rng(0)
    records, costs = synthetic(n=60, p=3)
    tied = replace(records, confidence=np.round(records.confidence, 1))
    given = rng.permutation(60)
    first, again = (Problem.of(r, costs) for r in (tied, tied.subset(given)))
    one, two = first.canonical(), given[again.canonical()]
    for column in (tied.confidence[tied.exists], tied.quality[tied.exists], tied.final_quality):
        np.testing.assert_array_equal(column[..., one], column[..., two])


def canonical_samples(records, costs, order=None):
    """All that is known of the samples, in their canonical order: (columns, N)."""
    known = np.where(np.isfinite(records.confidence), records.confidence, -9)[records.exists]
    columns = np.concatenate([known, records.quality[records.exists], records.final_quality[None]])
    found = Problem.of(records, costs).canonical()
    assert sorted(found.tolist()) == list(range(records.samples))
    return columns[:, found]


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 25), st.sampled_from([2, 3, 10**6]))
@settings(max_examples=60, deadline=None)
def test_canonical_does_not_depend_on_the_order_of_any_samples(seed, p, n, levels):
    """Ties in mean rank, even of samples that are not alike or differ by two heads in each other's place."""
    records, costs = random_case(seed, p, 2, n, levels=levels)
    drawn = np.random.default_rng(seed).permutation(n)
    first, again = (canonical_samples(each, costs) for each in (records, records.subset(drawn)))
    np.testing.assert_array_equal(first, again)


def test_canonical_of_two_heads_in_each_others_place():
    confidence = np.array([[[0.9, 0.1], [0.1, 0.9]]], np.float32)
    records, costs = make_records(confidence, np.ones((1, 2, 2)), np.ones(2))
    first, again = (canonical_samples(each, costs) for each in (records, records.subset([1, 0])))
    np.testing.assert_array_equal(first, again)


@given(st.integers(0, 10**6), st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_canonical_does_not_depend_on_the_order_of_heads_or_on_values(seed, n):
    """At three positions: at one, two samples may well differ by two heads in each other's place."""
    records, costs = random_case(seed, 3, 2, n, levels=10**6, gaps=0)
    back = slice(None, None, -1)
    flipped = {name: getattr(records, name)[:, back] for name in ("confidence", "quality", "exists")}
    other_costs = CostTable(costs.backbone, 3 * costs.heads[:, back], "macs")
    first = Problem.of(records, costs).canonical().tolist()
    assert Problem.of(replace(records, **flipped), other_costs).canonical().tolist() == first
    bent = replace(records, confidence=2 * records.confidence - 7)
    assert Problem.of(bent, costs).canonical().tolist() == first


def test_canonical_tells_samples_apart_that_share_ranks():
    """Position by position the ranks are swapped, and so are the sums; what differs must still decide."""
    confidence = np.array([[[0.9, 0.1]], [[0.1, 0.9]]], np.float32)
    records, costs = make_records(confidence, np.ones((2, 1, 2)), np.ones(2))
    one = Problem.of(records, costs).canonical().tolist()
    other = Problem.of(records.subset([1, 0]), costs).canonical().tolist()
    assert one == [1 - i for i in other]


@pytest.mark.parametrize("where", ["quality", "final_quality"])
def test_canonical_tells_samples_apart_by_their_quality(where):
    records, costs = make_records(np.full((1, 1, 2), 0.5), np.ones((1, 1, 2)), np.ones(2))
    wrong = np.array([1.0, 0.5], np.float32)
    records = replace(records, **{where: wrong.reshape(getattr(records, where).shape)})
    one = Problem.of(records, costs).canonical().tolist()
    other = Problem.of(records.subset([1, 0]), costs).canonical().tolist()
    assert one == [1 - i for i in other]


def test_hashes_do_not_collide_and_zeros_are_one():
    values = hashed(np.arange(-50_000, 50_000))
    assert np.unique(values).size == values.size
    assert abs(np.mean(values >> np.uint64(63)) - 0.5) < 0.01  # half of them in the upper half
    assert np.unique(np.diff(np.sort(values % np.uint64(1024)))).tolist() == [0, 1]
    zeros = bits(np.array([0.0, -0.0, 1.0], np.float32))
    assert zeros.tolist() == [0, 0, 0x3F800000]
