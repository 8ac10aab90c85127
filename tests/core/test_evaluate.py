"""Evaluation against a loop by definition, one sample at a time."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import check_match, evaluate, expected, full_quality, leaves, resolve
from offramp.core.frontier import Frontier
from offramp.core.records import ExitRecords
from offramp.errors import InputError

POSITIONS, HEADS = ("input", "a", "b"), ("small", "large")
LEVELS = (0.0, 0.25, 0.5, 1.0, np.nan, np.inf, -np.inf)


@st.composite
def cases(draw):
    """Records with ties, missing heads and infinities, costs, and a legal configuration."""
    n = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    exists = rng.random((3, 2)) < 0.8
    quality = rng.integers(0, 5, (3, 2, n)) / 4
    quality[~exists] = np.nan
    confidence = rng.choice(LEVELS, (3, 2, n))
    records = ExitRecords(confidence, quality, rng.integers(0, 5, n) / 4, exists, POSITIONS, HEADS)
    backbone = np.concatenate([[0], np.cumsum(rng.random(3))])
    costs = CostTable(backbone, rng.random((3, 2)), "seconds")
    thresholds = st.sampled_from([-np.inf, -1.0, 0.0, 0.1, 0.25, 0.5, 1.0, np.inf])
    choices = []
    for p in range(3):
        c = draw(st.sampled_from([None, *np.flatnonzero(exists[p]).tolist()]))
        if c is not None:
            choices.append(ExitChoice(POSITIONS[p], HEADS[c], draw(thresholds)))
    return records, costs, ExitConfig(tuple(choices))


def one_sample(records, costs, config, n):
    """Quality, cost, position of sample n."""
    passed = 0.0
    for choice in config.choices:
        p, c = POSITIONS.index(choice.position), HEADS.index(choice.head)
        passed += costs.heads[p, c]
        confidence = float(records.confidence[p, c, n])
        if np.isfinite(confidence) and confidence > choice.threshold:
            return float(records.quality[p, c, n]), costs.backbone[p] + passed, p
    return float(records.final_quality[n]), costs.backbone[-1] + passed, len(POSITIONS)


@given(cases())
def test_by_definition(case):
    records, costs, config = case
    outcome = evaluate(records, costs, config)
    quality, cost, position = np.array([one_sample(*case, n) for n in range(records.samples)]).T
    np.testing.assert_array_equal(outcome.position, position.astype(int))
    assert outcome.position.dtype == np.int64
    assert outcome.quality == pytest.approx(quality.mean(), abs=1e-12)
    assert outcome.cost == pytest.approx(cost.mean(), rel=1e-12)
    assert outcome.relative_cost == pytest.approx(cost.mean() / costs.backbone[-1], rel=1e-12)
    shares = [(position == p).mean() for p in range(4)]
    np.testing.assert_allclose(outcome.exit_shares, shares, atol=1e-15)
    full = records.final_quality.mean()
    if full > 0:
        assert outcome.relative_quality == pytest.approx(quality.mean() / full, rel=1e-6)


@given(cases())
def test_expected_is_what_evaluate_says(case):
    records, costs, config = case
    figures, outcome = expected(records, costs, config), evaluate(records, costs, config)
    assert (figures.quality, figures.cost) == (outcome.quality, outcome.cost)
    assert (figures.full_quality, figures.full_cost) == (full_quality(records), costs.full)
    assert figures.samples == records.samples
    assert figures.relative_cost == outcome.relative_cost


def small(n=3, confidence=0.5, final=1.0):
    shape = (3, 2, n)
    exists = np.array([[False, False], [True, True], [True, False]])
    records = ExitRecords(
        np.full(shape, confidence), np.full(shape, 0.25), np.full(n, final), exists, POSITIONS, HEADS
    )
    return records, CostTable(np.array([0, 1, 3, 10.0]), np.array([[0, 0], [0.5, 2], [0.25, 0]]), "macs")


def config_of(*choices):
    return ExitConfig(tuple(ExitChoice(*choice) for choice in choices))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threshold", [-np.inf, 0.0])
def test_confidence_that_is_not_finite_never_exits(value, threshold):
    records, costs = small(confidence=value)
    outcome = evaluate(records, costs, config_of(("a", "small", threshold)))
    np.testing.assert_array_equal(outcome.position, [3, 3, 3])
    assert outcome.cost == 10.5
    assert not leaves(np.full(2, value, np.float32), np.float32(threshold)).any()


def test_no_exits_is_exactly_the_full_model():
    records, costs = small()
    outcome = evaluate(records, costs, ExitConfig())
    assert (outcome.quality, outcome.relative_quality) == (1.0, 1.0)
    assert (outcome.cost, outcome.relative_cost) == (10.0, 1.0)
    np.testing.assert_array_equal(outcome.exit_shares, [0, 0, 0, 1])


def test_infinite_thresholds_answer_like_the_full_model_and_pay_the_heads():
    records, costs = small()
    outcome = evaluate(records, costs, config_of(("a", "large", np.inf), ("b", "small", np.inf)))
    np.testing.assert_array_equal(outcome.position, [3, 3, 3])
    assert outcome.quality == 1.0
    assert outcome.cost == 12.25
    free = CostTable(costs.backbone, np.zeros((3, 2)), "macs")
    assert evaluate(records, free, config_of(("a", "large", np.inf))).relative_cost == 1.0


def test_cost_includes_every_head_passed():
    records, costs = small()
    late = config_of(("a", "large", 0.5), ("b", "small", 0.4))  # 0.5 > 0.5 is false: strict
    outcome = evaluate(records, costs, late)
    assert outcome.cost == 3 + 2 + 0.25
    np.testing.assert_array_equal(outcome.exit_shares, [0, 0, 1, 0])
    assert evaluate(records, costs, config_of(("a", "large", 0.4), ("b", "small", 0.4))).cost == 3.0


def test_thresholds_are_compared_in_float32():
    records, costs = small(confidence=np.float32(0.1))
    assert float(np.float32(0.1)) > 0.1  # in double precision the confidence would be above 0.1
    assert evaluate(records, costs, config_of(("a", "small", 0.1))).exit_shares[-1] == 1


def test_relative_quality_where_the_full_model_is_always_wrong():
    records, costs = small(final=0.0)
    assert evaluate(records, costs, ExitConfig()).relative_quality == 1.0
    assert np.isnan(evaluate(records, costs, config_of(("a", "small", 0.0))).relative_quality)


def test_a_frontier_gives_one_outcome_each():
    records, costs = small()
    configs = [config_of(("a", "small", 0.0)), ExitConfig()]
    frontier = Frontier.of(ExitConfig(c.choices, expected=expected(records, costs, c)) for c in configs)
    outcomes = evaluate(records, costs, frontier)
    assert [o.cost for o in outcomes] == [1.5, 10.0]
    assert [o.quality for o in outcomes] == [0.25, 1.0]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([("c", "small", 0)], "unknown position 'c'; known: input, a, b"),
        ([("a", "huge", 0)], "unknown head 'huge'; known: small, large"),
        ([("b", "large", 0)], "no head 'large' at 'b'; it has: small"),
        ([("input", "small", 0)], "no head 'small' at 'input'; it has: none"),
        ([("b", "small", 0), ("a", "small", 0)], "in order of position; 'a' comes too late"),
    ],
)
def test_configurations_that_do_not_fit(choices, message):
    records, costs = small()
    with pytest.raises(InputError, match=message):
        evaluate(records, costs, config_of(*choices))
    with pytest.raises(InputError, match=message):
        resolve(records.positions, records.heads, records.exists, config_of(*choices))


def test_records_and_costs_that_do_not_fit():
    records, costs = small()
    other = CostTable(np.array([0, 1.0]), np.zeros((1, 2)), "macs")
    with pytest.raises(InputError, match=r"costs are for \(1, 2\).*records for \(3, 2\); measure and record"):
        evaluate(records, other, ExitConfig())
    with pytest.raises(InputError, match="at least one sample, got none"):
        check_match(records.subset(np.zeros(0, int)), costs)
    with pytest.raises(InputError, match="at least one sample"):
        evaluate(records.subset(np.zeros(0, int)), costs, ExitConfig())


def test_arguments_of_another_kind_are_named():
    records, costs = small()
    with pytest.raises(InputError, match=r"as the second argument \(costs\), got ExitRecords: swapped\?"):
        check_match(records, records)
    with pytest.raises(InputError, match="expected an ExitConfig or a Frontier, got a tuple"):
        evaluate(records, costs, ())
