"""The lower bound against brute force, against the search, and where it must be exact."""

import numpy as np
import pytest

from offramp.core.config import ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.core.records import ExitRecords
from offramp.errors import InputError
from offramp.solver.search import lower_bound, search

LAMBDAS = (0.0, 0.3, 0.7, 0.9, 1.0)


def problem(seed, p=4, c=2, n=60):
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    skill = np.linspace(0.3, 0.9, p)[:, None, None] + 0.05 * np.arange(c)[:, None]
    quality = (rng.random((p, c, n)) < skill * (1.2 - 0.5 * hard)).astype(np.float32)
    confidence = np.round(0.4 * quality + 0.6 * rng.random((p, c, n)), 1)
    names = ("input", *(f"p{i}" for i in range(1, p)))
    records = ExitRecords(
        confidence, quality, rng.random(n) < 0.9, np.ones((p, c), bool), names, ("a", "b")[:c]
    )
    return records, CostTable(np.arange(p + 1.0), np.full((p, c), 0.1), "macs")


def objective(records, costs, config, lam):
    outcome = evaluate(records, costs, config)
    return lam * (1 - outcome.relative_quality) + (1 - lam) * outcome.relative_cost


@pytest.mark.parametrize("seed", range(8))
def test_no_configuration_found_is_below_the_bound(seed):
    records, costs = problem(seed)
    full = records.final_quality.mean()
    bound = lower_bound(records, costs, LAMBDAS)
    found = search(records, costs, tradeoffs=LAMBDAS, regularise=None, step=None).by_tradeoff
    for lam in LAMBDAS:
        best = objective(records, costs, found[lam], lam)
        assert bound[lam] <= best + 1e-9
        assert bound[lam] <= objective(records, costs, ExitConfig(), lam) + 1e-9
    oracle = np.minimum(
        (0.1 * (np.arange(4)[:, None, None] / 4 + 0.025) - 0.9 * records.quality / full).min(axis=(0, 1)),
        0.1 - 0.9 * records.final_quality / full,
    )
    assert bound[0.9] > 0.9 + oracle.mean() + 1e-3  # a free choice of exit for each sample promises more


@pytest.mark.parametrize("seed", range(8))
def test_with_one_position_the_bound_is_the_optimum(seed):
    records, costs = problem(seed, p=1)
    bound = lower_bound(records, costs, LAMBDAS)
    found = search(records, costs, tradeoffs=LAMBDAS, regularise=None, step=None).by_tradeoff
    for lam in LAMBDAS:
        assert bound[lam] == pytest.approx(objective(records, costs, found[lam], lam), abs=1e-9)


def test_without_heads_the_bound_is_the_full_model():
    records, costs = problem(0)
    bare = ExitRecords(
        records.confidence,
        records.quality,
        records.final_quality,
        np.zeros((4, 2), bool),
        records.positions,
        records.heads,
    )
    assert lower_bound(bare, costs, [0.7])[0.7] == pytest.approx(0.3)


def test_records_and_costs_must_match():
    records, _ = problem(0)
    with pytest.raises(InputError, match="measure and record the same network"):
        lower_bound(records, CostTable(np.arange(3.0), np.zeros((2, 2)), "macs"), [0.5])


@pytest.mark.parametrize("wrong", [[], [1.5], [float("nan")], 0.5, ["high"]])
def test_trade_offs_are_numbers_from_0_to_1(wrong):
    with pytest.raises(InputError, match=r"lower_bound\(tradeoffs=...\): expected"):
        lower_bound(*problem(0), wrong)
