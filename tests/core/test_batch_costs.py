"""Costs of batches that shrink: against brute force and by their properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

import offramp
from offramp.core import batch_costs
from offramp.core.batch_costs import BatchCosts, best_parts, binomial, mean_cost, part_sizes
from offramp.core.costs import CostTable
from offramp.errors import ArtifactError, InputError


def table(batch: int = 4, fixed: float = 0.5) -> BatchCosts:
    """Two segments, one head: a fixed part and one per row."""
    sizes = np.array([1, 2, batch]) if batch > 2 else np.arange(1, batch + 1)
    segments = fixed + np.outer(sizes, [1.0, 2.0])
    backbone = np.concatenate([np.zeros((len(sizes), 1)), segments.cumsum(1)], 1)
    heads = np.zeros((len(sizes), 2, 1))
    heads[:, 1, 0] = 0.1 * sizes
    return BatchCosts(sizes, backbone, heads)


@given(st.integers(1, 40), st.floats(0, 1))
def test_binomial_is_a_distribution_with_its_mean(n: int, share: float) -> None:
    found = binomial(n, share)
    assert found.shape == (n + 1,)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    assert found @ np.arange(n + 1) == pytest.approx(n * share, abs=1e-9)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=9))
def test_parts_are_the_best_of_all_equal_splits(increments: list[float]) -> None:
    costs = np.concatenate([[0.0], np.cumsum(increments)])
    parts, best = best_parts(costs)
    for rows in range(1, len(costs)):
        every = [sum(costs[size] for size in part_sizes(rows, k)) for k in range(1, rows + 1)]
        assert best[rows] <= costs[rows]
        assert best[rows] == pytest.approx(every[parts[rows] - 1])
        if parts[rows] == 1:  # no split is worth it
            assert min(every) >= 0.97 * costs[rows] - 1e-12
        else:
            assert best[rows] == pytest.approx(min(every))


def every_split(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best of all numbers of parts, by trying each, as ``best_parts`` once did."""
    batch = len(costs) - 1
    parts, best = np.ones(batch + 1, np.int64), costs.copy()
    for rows in range(2, batch + 1):
        k = np.arange(1, rows + 1)
        large = rows % k
        split = large * costs[-(-rows // k)] + (k - large) * costs[rows // k]
        found = int(split.argmin())
        if split[found] < 0.97 * costs[rows]:
            parts[rows], best[rows] = k[found], split[found]
    return parts, best


measured = st.lists(st.tuples(st.integers(1, 200), st.floats(0, 100)), max_size=7, unique_by=lambda v: v[0])


@given(measured, st.integers(1, 200), st.floats(0, 100))
def test_parts_of_measured_sizes_are_the_best_of_all(
    points: list[tuple[int, float]], batch: int, fixed: float
) -> None:
    known = sorted(
        {1: fixed, **{size: fixed + cost for size, cost in points if size < batch}, batch: fixed + 50}.items()
    )
    sizes, values = (np.array(part, float) for part in zip(*known, strict=True))
    costs = np.interp(np.arange(batch + 1), sizes, np.maximum.accumulate(values))
    costs[0] = 0.0
    _, wanted = every_split(costs)
    parts, found = best_parts(costs)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    for rows in range(1, batch + 1):
        assert found[rows] == pytest.approx(sum(costs[size] for size in part_sizes(rows, int(parts[rows]))))


def test_a_frontier_at_a_large_batch_looks_at_each_span_once(monkeypatch) -> None:
    positions, batch = 12, 16384
    sizes = 2 ** np.arange(15)
    segments = 0.3 + np.outer(np.sqrt(sizes) + 1e-3 * sizes * np.log2(sizes + 1), np.ones(positions))
    backbone = np.concatenate([np.zeros((len(sizes), 1)), segments.cumsum(1)], 1)
    inner = BatchCosts(sizes, backbone, np.full((len(sizes), positions, 1), 0.01) * sizes[:, None, None])
    costs = CostTable(inner.backbone[-1] / batch, inner.heads[-1] / batch, "seconds", None, inner)
    rng = np.random.default_rng(0)
    names = ("input", *(f"b{i}" for i in range(1, positions)))
    records = offramp.ExitRecords(
        rng.random((positions, 1, 50)).astype(np.float32),
        np.ones((positions, 1, 50), np.float32),
        np.ones(50, np.float32),
        np.ones((positions, 1), bool),
        names,
        ("h",),
    )
    looked_at, find = [], batch_costs.best_parts
    monkeypatch.setattr(batch_costs, "best_parts", lambda costs: looked_at.append(costs) or find(costs))
    for _ in range(117):
        places = np.sort(rng.choice(positions, 4, replace=False))
        choices = [offramp.ExitChoice(names[p], "h", float(rng.random())) for p in places]
        assert offramp.evaluate(records, costs, offramp.ExitConfig(choices)).cost > 0
    assert len(looked_at) <= positions * (positions + 1) / 2
    assert max(len(batch_costs._knots(each)) for each in looked_at) == len(sizes)  # a pass over rows each


@given(st.integers(1, 50), st.data())
def test_part_sizes_are_equal_and_add_up(rows: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, rows))
    sizes = part_sizes(rows, parts)
    assert sum(sizes) == rows
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1


def test_the_mean_cost_is_that_of_every_possible_batch() -> None:
    costs, share, batch = table(), 0.3, 4
    total = 0.0
    for stays in itertools.product([False, True], repeat=batch):
        here = sum(stays)
        chance = np.prod([share if one else 1 - share for one in stays])
        first = costs.span(0, 1)[batch] + costs.head(1, 0)[batch]
        rest = costs.span(1, 2)[here] if here else 0.0
        total += chance * (first + rest)
    assert mean_cost(costs, [(1, 0)], [1.0, share]) == pytest.approx(total / batch)


def test_without_exits_it_is_the_full_model_in_one_piece() -> None:
    slow = BatchCosts(np.array([1, 2, 4]), np.array([[0, 1.0], [0, 2], [0, 40]]), np.zeros((3, 1, 1)))
    assert mean_cost(slow, [], [1.0]) == 10.0
    everyone = mean_cost(slow, [(0, 0)], [1.0, 1.0])  # with an exit that nobody takes it runs in parts
    assert everyone == 1.0


def test_costs_in_proportion_to_rows_are_those_per_sample() -> None:
    costs = table(fixed=0.0)
    assert mean_cost(costs, [(1, 0)], [1.0, 0.25]) == pytest.approx(1 + 0.1 + 2 * 0.25)


@pytest.mark.parametrize(
    ("sizes", "backbone", "heads", "message"),
    [
        ([2, 4], [[0, 1], [0, 2]], [[[0]], [[0]]], "sizes that rise from 1"),
        ([1, 1], [[0, 1], [0, 2]], [[[0]], [[0]]], "sizes that rise from 1"),
        ([], np.zeros((0, 2)), np.zeros((0, 1, 1)), "sizes that rise from 1"),
        ([1, 2], [[0, 1]], [[[0]], [[0]]], r"expected backbone \(2, P\+1\)"),
        ([1], [[0, np.inf]], [[[0]]], "finite values"),
        ([1], [[0, 1]], [[[-1]]], "finite values"),
        ([1], [[1, 2]], [[[0]]], "0 first, then rising"),
        ([1], [[0, 2, 1]], [[[0], [0]]], "0 first, then rising"),
    ],
    ids=["from-two", "no-rise", "empty", "rows", "infinite", "negative", "start", "falls"],
)
def test_wrong_tables_are_refused(sizes: object, backbone: object, heads: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchCosts(np.array(sizes), np.array(backbone, float), np.array(heads, float))


def full_table() -> CostTable:
    inner = table()
    return CostTable(inner.backbone[-1] / 4, inner.heads[-1] / 4, "seconds", {"threads": 1}, inner)


def test_a_table_by_batch_goes_through_json() -> None:
    costs = full_table()
    again = CostTable.from_json(costs.to_json())
    assert again.by_batch is not None
    for name in ("sizes", "backbone", "heads"):
        np.testing.assert_array_equal(getattr(again.by_batch, name), getattr(costs.by_batch, name))


@pytest.mark.parametrize("broken", ['"by_batch": 3', '"by_batch": {"sizes": [1]}', '"by_batch": {"a": 1}'])
def test_a_damaged_table_by_batch_is_refused(broken: str) -> None:
    text = CostTable([0, 1], [[0]], "seconds").to_json().strip().removesuffix("}") + f", {broken}}}"
    with pytest.raises(ArtifactError, match="costs: damaged"):
        CostTable.from_json(text)


def test_a_table_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"CostTable\.by_batch: expected rows of shapes"):
        CostTable([0, 1], [[0]], "seconds", None, table())


def test_evaluate_goes_by_the_batch() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random((2, 1, 400)).astype(np.float32)
    records = offramp.ExitRecords(
        confidence,
        np.ones((2, 1, 400), np.float32),
        np.ones(400, np.float32),
        np.array([[False], [True]]),
        ("input", "a"),
        ("h",),
    )
    config = offramp.ExitConfig((offramp.ExitChoice("a", "h", 0.25),))
    outcome = offramp.evaluate(records, full_table(), config)
    share = outcome.exit_shares[-1]
    assert outcome.cost == pytest.approx(mean_cost(table(), [(1, 0)], [1.0, share]))
    assert outcome.relative_cost == outcome.cost / full_table().full
    assert offramp.evaluate(records, full_table(), offramp.ExitConfig()).relative_cost == 1.0
