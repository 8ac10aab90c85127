"""Constructive starts: which heads share one threshold. What each start reaches: ``test_local_search``."""

from dataclasses import replace

import numpy as np
import pytest

from instances import make_records, random_case, synthetic
from offramp.core.costs import CostTable
from offramp.solver.constructive import _common_heads
from offramp.solver.kernels import OFF
from offramp.solver.problem import Problem


@pytest.mark.parametrize("seed", range(8))
def test_each_kind_wherever_it_is_and_the_best_head_of_each_position(seed):
    records, costs = random_case(seed, 4, 3, 7, gaps=0.4)
    problem = Problem.of(records, costs)
    sets = _common_heads(problem)
    kinds = np.flatnonzero(records.exists.any(axis=0))
    assert sets.shape == (len(kinds) + 1, 4)
    for row, kind in zip(sets, kinds, strict=False):
        for p, own in enumerate(row):
            assert (own != OFF) == records.exists[p, kind]
            assert own == OFF or problem.positions[p].heads[own] == kind
    for p, position in enumerate(problem.positions):
        worth = [float(records.quality[p, kind].astype(float).sum()) for kind in position.heads]
        wanted = sorted(range(len(worth)), key=lambda c: (-worth[c], position.cost[c]))
        assert sets[-1, p] == (wanted[0] if wanted else OFF)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_of_equally_good_heads_the_cheapest_is_taken_however_samples_came(order):
    """Their means differ by rounding, and by which order of samples: 0.1 is not a sum of powers of 2."""
    rng = np.random.default_rng(0)
    quality = rng.permuted(np.tile(np.arange(30) / 29, (2, 3, 1)), axis=2)
    prices = np.array([0.3, 0.1, 0.2])[order]
    records, costs = make_records(
        rng.random((2, 3, 30)), quality, np.full(30, 0.9), costs=(np.arange(3.0), np.tile(prices, (2, 1)))
    )
    for _ in range(5):
        found = _common_heads(Problem.of(records, costs))[-1]
        assert found.tolist() == [order.index(1)] * 2
        records = records.subset(rng.permutation(30))


def test_a_better_head_is_taken_at_any_cost():
    records, costs = synthetic(n=100, p=3, c=2)
    worse = replace(records, quality=records.quality * np.array([[[1.0], [0.5]]]))
    dear = CostTable(costs.backbone, costs.heads * np.array([[50.0, 1.0]]), "macs")
    assert _common_heads(Problem.of(worse, dear))[-1].tolist() == [OFF, 0, 0]
