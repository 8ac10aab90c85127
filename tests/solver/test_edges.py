"""Search and certify where there is hardly anything to go by: each edge has an answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

import offramp
from offramp.errors import InputError

MODES = ({}, {"regularise": None}, {"regularise": 0.01}, {"method": "iterative", "regularise": None})


def records(quality, confidence, final=None):
    """One head at every position but the input; quality and confidence (P, N), final (N,)."""
    quality, confidence = (np.asarray(part, np.float32)[:, None] for part in (quality, confidence))
    positions, _, samples = quality.shape
    exists = np.ones((positions, 1), bool)
    exists[0] = False
    return offramp.ExitRecords(
        confidence=confidence,
        quality=quality,
        final_quality=np.ones(samples) if final is None else final,
        exists=exists,
        positions=("input", *(f"b{i}" for i in range(1, positions))),
        heads=("h",),
    )


def costs(positions, head=0.1):
    return offramp.CostTable(np.arange(positions + 1.0), np.full((positions, 1), head), "macs")


def random_records(positions, samples, seed=0):
    rng = np.random.default_rng(seed)
    depth, hard = np.linspace(0, 1, positions)[:, None], rng.random(samples)
    noise = 0.1 * rng.standard_normal((positions, samples))
    return records(depth + noise > hard, depth - hard + noise)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_all_answers_won(options):
    """Every early answer is right and the full model's is wrong: the first exit for all."""
    found = records(np.ones((3, 400)), np.tile(np.linspace(0.5, 0.6, 400), (3, 1)), np.zeros(400))
    table = costs(3)
    frontier = offramp.search(found, table, progress=False, **options)
    best = frontier[-1] if options.get("regularise", "auto") is not None else frontier[0]
    cheapest = offramp.evaluate(found, table, frontier[0])
    assert cheapest.relative_cost <= 0.4
    assert math.isnan(cheapest.relative_quality)
    assert best.expected is not None
    certified = offramp.certify(frontier, found, table, max_drop=0.005)
    assert certified is not None
    assert certified.certificate.p_value < 2e-4


@pytest.mark.parametrize("options", MODES, ids=str)
def test_one_sample(options):
    found, table = records(np.ones((3, 1)), np.full((3, 1), 0.7)), costs(3)
    frontier = offramp.search(found, table, progress=False, **options)
    assert len(frontier) >= 1
    if not options:  # one sample promises nothing: only the full model loses nothing for certain
        assert frontier.at(max_drop=0.0).choices == ()
    assert offramp.certify(frontier, found, table, max_drop=0.01) is None


@pytest.mark.parametrize("options", MODES, ids=str)
def test_constant_confidence(options):
    """No threshold parts the samples: an exit takes all of them or none."""
    found, table = records(np.ones((4, 50)), np.full((4, 50), 0.5)), costs(4)
    frontier = offramp.search(found, table, progress=False, **options)
    for config in frontier:
        shares = offramp.evaluate(found, table, config).exit_shares
        assert sorted(shares)[-1] == 1.0


@pytest.mark.parametrize("confidence", [math.nan, math.inf, -math.inf])
def test_confidences_that_are_not_finite_never_exit(confidence):
    found, table = records(np.ones((3, 20)), np.full((3, 20), confidence)), costs(3)
    for options in MODES:
        assert [config.choices for config in offramp.search(found, table, progress=False, **options)] == [()]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_costs_of_zero(options):
    """Heads and early segments that cost nothing: all that is spent is the last segment."""
    found = random_records(4, 200)
    table = offramp.CostTable(np.array([0.0, 0, 0, 0, 1]), np.zeros((4, 1)), "macs")
    frontier = offramp.search(found, table, progress=False, **options)
    assert all(0 <= config.expected.relative_cost <= 1 for config in frontier)
    assert frontier[0].expected.relative_cost < 1
    free = offramp.CostTable(np.array([0.0, 1, 2, 3, 3]), np.zeros((4, 1)), "macs")
    assert len(offramp.search(found, free, progress=False, **options)) >= 1


@pytest.mark.parametrize(
    ("backbone", "heads"), [([0, 1, -2], [[0], [0]]), ([0, 1, 2], [[0], [-1]]), ([0, 0, 0], [[0], [0]])]
)
def test_negative_costs_and_none_at_all_are_refused(backbone, heads):
    with pytest.raises(InputError, match=r"expected finite values of at least 0|then rising costs"):
        offramp.CostTable(np.array(backbone, float), np.array(heads, float), "macs")


@pytest.mark.parametrize("compiled", [True, False])
def test_two_hundred_positions(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr("offramp.solver.kernels.available", lambda: False)
    found, table = random_records(200, 60 if not compiled else 300), costs(200)
    frontier = offramp.search(found, table, progress=False)
    assert frontier[0].expected.relative_cost < 0.9
    assert offramp.certify(frontier, found, table, max_drop=0.2) is not None


def test_one_position_and_none():
    alone = records(np.ones((1, 9)), np.ones((1, 9)))
    assert [config.choices for config in offramp.search(alone, costs(1), progress=False)] == [()]
    with pytest.raises(InputError, match="at least one sample, got none"):
        offramp.search(records(np.ones((2, 0)), np.ones((2, 0))), costs(2))


@pytest.mark.parametrize("seed", ["0", -1, 1.5, None, True], ids=str)
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InputError, match=r"search\(seed=.*\): expected a whole number of at least 0"):
        offramp.search(random_records(3, 20), costs(3), seed=seed)


@pytest.mark.parametrize("method", [["exact"], 3, None, "Exact"], ids=str)
def test_a_method_that_is_none_is_refused(method):
    with pytest.raises(InputError, match=r"search\(method=.*\): unknown; choose one of exact, "):
        offramp.search(random_records(3, 20), costs(3), method=method)
