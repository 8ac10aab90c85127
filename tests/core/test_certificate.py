"""Expected figures: promised, with what was seen beside, or those of the search samples themselves."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from offramp.core.certificate import Expected, figures_in_words
from offramp.core.config import ExitChoice, ExitConfig
from offramp.errors import ArtifactError, InputError

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
INTERVALS = st.tuples(NUMBERS, NUMBERS).map(lambda ends: (min(ends), max(ends)))


def figures(**changes):
    return Expected(
        **{"quality": 0.75, "cost": 1.0, "full_quality": 0.875, "full_cost": 4.0, "samples": 10, **changes}
    )


def test_promised_figures_have_what_was_seen_beside_them():
    promised = figures(in_sample_quality=0.8125, drop_interval=(0.0, 0.25))
    assert not promised.in_sample
    assert (promised.drop, promised.in_sample_drop) == (0.125, 0.0625)
    assert promised.quality_interval == (0.625, 0.875)
    assert figures_in_words(promised) == "cost 25.0%, quality 0.7500 promised"


def test_in_sample_figures_are_their_own():
    seen = figures()
    assert seen.in_sample
    assert (seen.drop, seen.in_sample_drop) == (0.125, 0.125)
    assert seen.quality_interval is None
    assert figures_in_words(seen) == "cost 25.0%, quality 0.7500 in-sample"
    assert figures(drop_interval=(0, 1)).in_sample  # an interval alone does not make a promise


@pytest.mark.parametrize(
    "ends", [[-0.5, 0.25], np.array([-0.5, 0.25]), (-0.5, 0.25)], ids=["list", "array", "tuple"]
)
def test_an_interval_is_a_tuple_whatever_it_was_given_as(ends):
    assert figures(drop_interval=ends) == figures(drop_interval=(-0.5, 0.25))
    assert isinstance(figures(drop_interval=ends).drop_interval, tuple)
    assert hash(figures(drop_interval=ends)) == hash(figures(drop_interval=(-0.5, 0.25)))


@pytest.mark.parametrize("ends", [(0.25, 0.25), (-1.0, -0.5), (0, 1)])
def test_intervals_of_any_width_and_side(ends):
    assert figures(drop_interval=ends).drop_interval == ends


@pytest.mark.parametrize(
    "ends",
    [
        (0.5, 0.25),
        (0.5,),
        (),
        (0.1, 0.2, 0.3),
        (math.nan, 0.5),
        (0.1, math.inf),
        (True, False),
        ("0.1", "0.2"),
        "ab",
        (None, None),
        0.5,
        False,
    ],
    ids=str,
)
def test_an_interval_is_two_numbers_the_lower_one_first(ends):
    with pytest.raises(
        InputError, match="drop_interval: expected two numbers, the lower one first, or None, got"
    ):
        figures(drop_interval=ends)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0.5", (0.5,)], ids=str)
def test_in_sample_quality_is_a_number(value):
    with pytest.raises(InputError, match="in_sample_quality: expected a finite number or None, got"):
        figures(in_sample_quality=value)


@given(NUMBERS, st.none() | INTERVALS, st.none() | NUMBERS)
def test_both_ways_through_json(quality, interval, seen):
    own = figures(quality=quality, drop_interval=interval, in_sample_quality=seen)
    config = ExitConfig((ExitChoice("a", "linear", 0.5),), 0.5, own)
    again = ExitConfig.from_json(config.to_json())
    assert again == config
    assert again.expected.drop_interval == interval
    assert again.to_json() == config.to_json()


def test_files_of_before_are_read_and_written_as_they_were():
    """They have neither key; in-sample figures still have none."""
    own = {"quality": 0.75, "cost": 1.0, "full_quality": 0.875, "full_cost": 4.0, "samples": 10}
    text = json.dumps(
        {
            "format": "offramp.config",
            "version": 1,
            "choices": [{"position": "a", "head": "linear", "threshold": 0.5}],
            "tradeoff": 0.9,
            "expected": own,
        },
        indent=1,
    )
    config = ExitConfig.from_json(text)
    assert config.expected == figures()
    assert config.expected.in_sample
    assert config.to_json() == text + "\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"drop_interval": 3},
        {"drop_interval": [1]},
        {"drop_interval": [1, 0]},
        {"drop_interval": [True, True]},
        {"drop_interval": ["0", "1"]},
        {"drop_interval": [0, 10**400]},
        {"drop_interval": {"0": 0}},
        {"in_sample_quality": "much"},
        {"in_sample_quality": True},
        {"in_sample_quality": 10**400},
    ],
    ids=str,
)
def test_damaged_figures_are_refused(changes):
    document = json.loads(ExitConfig((), None, figures()).to_json())
    document["expected"].update(changes)
    with pytest.raises(ArtifactError, match=r"configuration: damaged, .*; write it again"):
        ExitConfig.from_json(json.dumps(document))


@pytest.mark.parametrize("key", ["drop_interval", "in_sample_quality"])
def test_a_key_of_none_is_as_good_as_no_key(key):
    document = json.loads(ExitConfig((), None, figures()).to_json())
    document["expected"][key] = None
    config = ExitConfig.from_json(json.dumps(document))
    assert config.expected == figures()
    assert key not in config.to_json()
