"""The cost table as data: what it refuses, and its JSON both ways."""

from __future__ import annotations

import json

import numpy as np
import pytest

from offramp.core.costs import CostTable
from offramp.errors import ArtifactError, InputError


def table(**changes):
    arguments = {
        "backbone": [0, 10.5, 10.5, 30],
        "heads": [[0, 0], [1, 2], [1 / 3, 0]],
        "unit": "macs",
        "meta": {"device": "cpu"},
    }
    return CostTable(**{**arguments, **changes})


def test_a_table_knows_its_full_cost_and_holds_doubles():
    costs = table(backbone=np.array([0, 1, 1, 30], np.int32))
    assert costs.full == 30.0
    assert isinstance(costs.full, float)
    assert costs.backbone.dtype == costs.heads.dtype == np.float64


def test_a_table_is_frozen():
    with pytest.raises(AttributeError):
        table().unit = "seconds"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone": [[0, 1]]},
            r"expected backbone \(P\+1,\) and heads \(P, C\), got \(1, 2\) and \(3, 2\)",
        ),
        ({"backbone": [0]}, r"got \(1,\) and"),
        ({"heads": [1, 2, 3]}, r"and \(3,\)"),
        ({"heads": [[1, 2]]}, r"heads: expected 3 rows, got 1"),
        ({"backbone": [0, 1, 2, np.inf]}, r"backbone: expected finite values of at least 0"),
        ({"backbone": [0, 1, np.nan, 3]}, r"backbone: expected finite values of at least 0"),
        ({"heads": [[0, 0], [1, -2], [0, 0]]}, r"heads: expected finite values of at least 0, got (?s:.*)-2"),
        ({"backbone": [1, 2, 3, 4]}, r"backbone: expected 0 first, then rising costs"),
        ({"backbone": [0, 3, 2, 4]}, r"backbone: expected 0 first, then rising costs"),
        ({"backbone": [0, 0, 0, 0]}, r"backbone: expected 0 first, then rising costs"),
    ],
)
def test_impossible_costs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        table(**changes)


@pytest.mark.parametrize("changes", [{}, {"meta": None}, {"unit": "fairy dust"}, {"heads": np.zeros((3, 0))}])
def test_json_round_trip_is_exact(changes):
    costs = table(**changes)
    again = CostTable.from_json(costs.to_json())
    np.testing.assert_array_equal(again.backbone, costs.backbone)
    np.testing.assert_array_equal(again.heads, costs.heads)
    assert again.heads.shape == costs.heads.shape
    assert (again.unit, again.meta) == (costs.unit, costs.meta)
    assert again.to_json() == costs.to_json()


def changed(**fields):
    document = json.loads(table().to_json())
    for name, value in fields.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected an offramp.costs document, got text that is not JSON"),
        (table().to_json()[:-10], r"not JSON"),
        ("[1, 2]", r"got format None"),
        (changed(format="offramp.config"), r"got format 'offramp.config'"),
        (changed(version=2), r"version 2 is newer than this release reads \(1\); upgrade"),
        (changed(version="1"), r"expected a version number, got '1'"),
        (changed(version=None), r"expected a version number, got None"),
        (changed(unit=None), r"costs: damaged \('unit'\); measure them again"),
        (changed(backbone=None), r"damaged \('backbone'\)"),
        (changed(meta=None), r"damaged \('meta'\)"),
        (changed(backbone=[0, 5, 1, 9]), r"damaged \(CostTable.backbone: expected 0 first"),
        (changed(backbone=[0, "much", 1, 9]), r"damaged \(could not convert string"),
        (changed(heads=[[1], [1, 2], [3]]), r"damaged"),
        (changed(heads={"a": 1}), r"damaged"),
        (changed(heads="none"), r"damaged"),
    ],
)
def test_damaged_json_is_refused_by_name(text, message):
    with pytest.raises(ArtifactError, match=message):
        CostTable.from_json(text)


@pytest.mark.parametrize("meta", [{"a": ...}, {"a": float("nan")}, {"a": np.int64(1)}, {"a": {1}}], ids=str)
def test_meta_that_is_not_json_is_refused(meta):
    with pytest.raises(InputError, match=r"meta: expected plain JSON values, got one that is not"):
        table(meta=meta).to_json()


def test_meta_that_contains_itself_is_refused():
    meta = {}
    meta["self"] = meta
    with pytest.raises(InputError, match=r"meta: expected plain JSON values"):
        table(meta=meta).to_json()


@pytest.mark.parametrize("meta", [3, "text", [1], True])
def test_meta_of_a_wrong_type_is_damage(meta):
    with pytest.raises(ArtifactError, match=r"costs: damaged \(meta is .*\); measure them again"):
        CostTable.from_json(changed(meta=meta))


@pytest.mark.parametrize("digits", [400, 5000])
def test_absurd_numbers_are_damage(digits):
    text = table().to_json().replace("10.5", "1" + "0" * digits)
    with pytest.raises(ArtifactError):
        CostTable.from_json(text)
