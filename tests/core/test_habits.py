"""What people do with data of the library: copy it, pickle it, hand it over in another order, in per cent."""

from __future__ import annotations

import copy
from types import MappingProxyType

import numpy as np
import pytest

import offramp
from copies import WAYS
from instances import synthetic
from offramp.core.fields import check_arguments
from offramp.errors import InputError
from offramp.solver import lower_bound

ALL_WAYS = {"copy": copy.copy, **WAYS}


@pytest.fixture(scope="module")
def given():
    """(records, costs, frontier) with everything that they can carry."""
    records, costs = synthetic()
    frontier = offramp.search(records, costs, progress=False, step=None)
    config = offramp.certify(frontier, records, costs, max_drop=0.2)
    return records, costs, frontier.with_certificate(config)


@pytest.mark.parametrize("way", ALL_WAYS.values(), ids=ALL_WAYS)
def test_data_survives(given, way):
    records, costs, frontier = given
    again = way(frontier)
    assert again == frontier
    assert again.to_json() == frontier.to_json()
    assert isinstance(again.by_tradeoff, MappingProxyType)
    assert again.at(max_drop=0.1) == frontier.at(max_drop=0.1)
    for config in (frontier[0], offramp.ExitConfig(), frontier.full_model):
        assert way(config) == config
    certified = next(config for config in frontier if config.certificate)
    assert way(certified.certificate) == certified.certificate
    assert way(costs).to_json() == costs.to_json()
    for name in ("confidence", "quality", "final_quality", "exists"):
        np.testing.assert_array_equal(getattr(way(records), name), getattr(records, name))
    assert way(records).positions == records.positions
    outcome = offramp.evaluate(records, costs, frontier[0])
    assert way(outcome).cost == outcome.cost
    joint = offramp.evaluate_together({"a": records}, {"a": costs}, {"a": frontier[0]})
    assert way(joint).tasks["a"].quality == joint.tasks["a"].quality
    assert isinstance(way(joint).tasks, MappingProxyType)


@pytest.mark.parametrize(
    ("criterion", "value", "told"),
    [
        ("max_drop", 5, "give 0.05 for 5 per cent"),
        ("max_drop", 1.5, "give 0.015 for 1.5 per cent"),
        ("max_cost", 40, "give 0.4 for 40 per cent"),
        ("max_cost", np.float32(50), "give 0.5 for 50.0 per cent"),
        ("min_quality", 95, "give 0.95 for 95 per cent"),
    ],
)
def test_per_cent_are_no_fractions(given, criterion, value, told):
    with pytest.raises(InputError, match=rf"at\({criterion}=.*\): expected a fraction, not per cent; {told}"):
        given[2].at(**{criterion: value})


def test_the_largest_fractions_are_some(given):
    frontier = given[2]
    assert frontier.at(max_drop=1) == frontier[0]
    assert frontier.at(max_cost=float("inf")) == frontier.at(max_cost=1.0) == frontier.at(max_cost=5)


@pytest.mark.parametrize("value", ["0.5", [0.5], True, float("nan"), -0.1])
def test_a_cost_that_is_none_is_refused(given, value):
    with pytest.raises(InputError, match=r"at\(max_cost=.*\): (expected a number|costs run from)"):
        given[2].at(max_cost=value)


def test_swapped_arguments_are_named(given):
    records, costs, frontier = given
    first = r"expected ExitRecords as the first argument \(records\), got CostTable: swapped\?; the order is"
    for verb, call in {
        "search": lambda: offramp.search(costs, records),
        "lower_bound": lambda: lower_bound(costs, records, [0.9]),
        "evaluate": lambda: offramp.evaluate(costs, records, frontier[0]),
    }.items():
        with pytest.raises(InputError, match=rf"{verb}\(\): {first} records, costs"):
            call()
    with pytest.raises(InputError, match=r"evaluate\(\): expected ExitRecords as the first .*: swapped\?"):
        offramp.evaluate(frontier, records, costs)
    with pytest.raises(InputError, match=r"expected ExitConfig or Frontier as the third argument \(config\)"):
        offramp.evaluate(records, costs, costs)
    with pytest.raises(InputError, match=r"certify\(\): expected Frontier as the first .*: swapped\?; the"):
        offramp.certify(records, costs, frontier, max_drop=0.1)
    with pytest.raises(InputError, match=r"certify\(\): expected a Frontier, got a NoneType"):
        offramp.certify(None, records, costs, max_drop=0.1)


def test_something_else_is_not_called_swapped():
    with pytest.raises(InputError, match=r"^f\(\): expected int as the second argument \(b\), got str; the"):
        check_arguments("f", {"a": (1, int), "b": ("x", int)})
