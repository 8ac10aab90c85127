"""Figures and lambdas that no search gives are refused, in memory and in files."""

from __future__ import annotations

import json
import math

import pytest

from offramp.core.certificate import Expected
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.frontier import Frontier
from offramp.errors import ArtifactError, InputError

GOOD = {"quality": 0.5, "cost": 1.0, "full_quality": 0.75, "full_cost": 2.0, "samples": 10}


def config(tradeoff=0.5, **changes):
    return ExitConfig((ExitChoice("a", "linear", 0.5),), tradeoff, Expected(**{**GOOD, **changes}))


@pytest.mark.parametrize("name", ["quality", "cost", "full_quality", "full_cost"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_are_finite(name, value):
    with pytest.raises(InputError, match=r"Expected: expected finite figures and costs above 0, got quality"):
        config(**{name: value})


@pytest.mark.parametrize("changes", [{"full_cost": 0}, {"full_cost": -1}, {"cost": -1}])
def test_costs_are_not_negative(changes):
    with pytest.raises(InputError, match=r"Expected: expected finite figures and costs above 0"):
        config(**changes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_lambdas_are_finite(value):
    with pytest.raises(InputError, match=r"ExitConfig.tradeoff: expected a finite number, got"):
        config(tradeoff=value)
    with pytest.raises(InputError, match=r"Frontier.by_tradeoff: expected finite lambdas, got"):
        Frontier([config()], {0.5: config(), value: config()})


@pytest.mark.parametrize("changes", [{"samples": 11}, {"full_cost": 3.0}, {"full_quality": 0.8}])
def test_figures_are_of_one_set_of_samples(changes):
    other = config(quality=0.7, cost=1.5, **changes)
    with pytest.raises(InputError, match=r"expected figures from one set of samples and costs, got several"):
        Frontier([config(), other])


@pytest.mark.parametrize("meta", [{"a": math.nan}, {"a": ...}, {"a": {1, 2}}], ids=str)
def test_meta_that_is_not_json_is_refused(meta):
    with pytest.raises(InputError, match=r"meta: expected plain JSON values, got one that is not"):
        Frontier([config()], meta=meta).to_json()


def damaged(path, value):
    document = json.loads(Frontier([config()], {0.5: config()}, {"a": 1}).to_json())
    *parents, last = path
    place = document
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("meta",), {"a": math.nan}),
        (("meta",), "text"),
        (("by_tradeoff", 0, 0), math.nan),
        (("by_tradeoff", 0, 0), "half"),
        (("by_tradeoff", 0), [0.5]),
        (("by_tradeoff",), 3),
        (("configs",), []),
        (("configs", 0), "text"),
        (("configs", 0, "expected"), None),
        (("configs", 0, "expected", "cost"), 10**400),
        (("configs", 0, "expected", "quality"), math.nan),
        (("configs", 0, "expected", "full_cost"), 0),
        (("configs", 0, "expected", "samples"), True),
        (("configs", 0, "tradeoff"), 10**400),
        (("configs", 0, "choices"), 3),
        (("configs", 0, "choices", 0, "threshold"), 10**400),
        (("configs", 0, "choices", 0, "threshold"), math.inf),
        (("configs", 0, "choices", 0, "position"), ["a"]),
    ],
)
def test_damaged_frontiers_are_refused(path, value):
    with pytest.raises(ArtifactError, match=r"damaged, .*; write it again"):
        Frontier.from_json(damaged(path, value))


def test_absurdly_long_numbers_are_refused():
    text = Frontier([config()]).to_json().replace("0.75", "1" * 5000)
    with pytest.raises(ArtifactError, match=r"not JSON"):
        Frontier.from_json(text)
