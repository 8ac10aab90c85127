"""Configurations and frontiers: checks, JSON both ways, picking, and files that are damaged or hostile."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from offramp.core.certificate import Expected
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.frontier import Frontier
from offramp.errors import ArtifactError, InputError
from offramp.storage.documents import parse_document

numbers = st.floats(allow_nan=False, allow_infinity=False)
spent = st.floats(0, allow_infinity=False)
names = st.text(min_size=1, max_size=8)
figures = st.builds(Expected, numbers, spent, numbers, spent.filter(bool), st.integers(1, 10**9))
choice_lists = st.lists(
    st.builds(ExitChoice, names, names, st.floats(allow_nan=False)),
    max_size=4,
    unique_by=lambda c: c.position,
)
configs = st.builds(ExitConfig, choice_lists.map(tuple), st.none() | numbers, st.none() | figures)


def point(cost, quality, *, exits=1, full=(10.0, 1.0)):
    choices = tuple(ExitChoice(f"p{i}", "linear", 0.5) for i in range(exits))
    return ExitConfig(choices, expected=Expected(quality, cost, full[1], full[0], 100))


@pytest.fixture
def frontier():
    points = [point(2, 0.7), point(5, 0.9), point(8, 0.99)]
    return Frontier(points, {0.6: points[0], 0.9: points[2]}, {"method": "exact"})


# ---------------------------------------------------------------------------------------------- JSON


@given(configs)
def test_config_round_trip(config):
    assert ExitConfig.from_json(config.to_json()) == config


@given(
    st.lists(st.tuples(spent, numbers, choice_lists), min_size=1, max_size=5), st.lists(numbers, max_size=3)
)
def test_frontier_round_trip(points, lambdas):
    made = [ExitConfig(tuple(c), 0.5, Expected(q, cost, 1.0, 2.0, 3)) for cost, q, c in points]
    frontier = Frontier.of(made, dict.fromkeys(lambdas, made[0]), {"method": "exact", "samples": 3})
    again = Frontier.from_json(frontier.to_json())
    assert again == frontier
    assert hash(again) == hash(frontier)
    assert again.to_json() == frontier.to_json()


@pytest.mark.parametrize("threshold", [math.inf, -math.inf])
def test_infinite_thresholds_are_words_in_json(threshold):
    config = ExitConfig((ExitChoice("a", "linear", threshold),))
    assert json.loads(config.to_json())["choices"][0]["threshold"] == str(threshold)
    assert ExitConfig.from_json(config.to_json()).choices[0].threshold == threshold


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"format": "offramp.config", "ver', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "got format None"),
        ('"offramp.config"', "got format None"),
        ('{"format": "offramp.frontier", "version": 1}', "got format 'offramp.frontier'"),
        ('{"format": "offramp.config"}', "expected a version number, got None"),
        ('{"format": "offramp.config", "version": true}', "expected a version number, got True"),
        ('{"format": "offramp.config", "version": 0}', "expected a version number, got 0"),
        (
            '{"format": "offramp.config", "version": 2}',
            r"version 2 is newer than this release reads \(1\); upgrade",
        ),
        ('{"format": "offramp.config", "version": 1}', "damaged, KeyError: 'choices'; write it again"),
    ],
)
def test_documents_that_are_not_configurations(text, message):
    with pytest.raises(ArtifactError, match=message):
        ExitConfig.from_json(text)


def choice(**changes):
    return {"position": "a", "head": "linear", "threshold": 0.5, **changes}


def expected_item(**changes):
    return {"quality": 0.9, "cost": 1, "full_quality": 1, "full_cost": 2, "samples": 5, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": None},
        {"choices": 3},
        {"choices": [3]},
        {"choices": [{}]},
        {"choices": ["position"]},
        {"choices": [choice(position=3)]},
        {"choices": [choice(position="")]},
        {"choices": [choice(head=None)]},
        {"choices": [choice(threshold="0.5")]},
        {"choices": [choice(threshold="nan")]},
        {"choices": [choice(threshold=True)]},
        {"choices": [choice(threshold=None)]},
        {"choices": [choice(threshold=[])]},
        {"choices": [choice(), choice()]},
        {"tradeoff": "much"},
        {"tradeoff": True},
        {"expected": 3},
        {"expected": {}},
        {"expected": expected_item(quality="high")},
        {"expected": expected_item(samples=None)},
        {"expected": expected_item(cost=-1)},
        {"expected": expected_item(full_cost=0)},
        {"expected": expected_item(cost=10**400)},
        {"tradeoff": 10**400},
    ],
)
def test_damaged_fields_are_refused(changes):
    item = {
        "format": "offramp.config",
        "version": 1,
        "choices": [choice()],
        "tradeoff": 0.5,
        "expected": None,
    }
    assert len(ExitConfig.from_json(json.dumps(item)).choices) == 1
    with pytest.raises(ArtifactError, match=r"configuration: damaged, .*; write it again"):
        ExitConfig.from_json(json.dumps({**item, **changes}))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(word):
    text = ExitConfig((ExitChoice("a", "linear", 0.5),)).to_json().replace("0.5", word)
    with pytest.raises(ArtifactError, match="expected a finite number"):
        ExitConfig.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"configs": []},
        {"configs": None},
        {"configs": [{}]},
        {"by_tradeoff": 3},
        {"by_tradeoff": [[0.5]]},
        {"by_tradeoff": [["half", None]]},
        {"meta": 3},
        {"meta": "text"},
        {"meta": {"score": math.nan}},
    ],
)
def test_damaged_frontiers_are_refused(frontier, changes):
    document = json.loads(frontier.to_json())
    with pytest.raises(ArtifactError, match="damaged"):
        Frontier.from_json(json.dumps({**document, **changes}))
    for name in changes:
        del document[name]
    with pytest.raises(ArtifactError, match=f"frontier: damaged, KeyError: '{next(iter(changes))}'"):
        Frontier.from_json(json.dumps(document))


def test_a_frontier_out_of_order_is_refused(frontier):
    document = json.loads(frontier.to_json())
    document["configs"].reverse()
    with pytest.raises(ArtifactError, match="strictly rising cost and quality"):
        Frontier.from_json(json.dumps(document))
    without = json.loads(frontier.to_json())
    without["configs"][0]["expected"] = None
    with pytest.raises(ArtifactError, match="evaluate it first"):
        Frontier.from_json(json.dumps(without))


def test_parse_document_returns_the_whole_document():
    text = '{"format": "x", "version": 1, "more": [1]}'
    assert parse_document(text, "x", 1) == {"format": "x", "version": 1, "more": [1]}


# -------------------------------------------------------------------------------------------- checks


def test_choice_checks_its_fields():
    assert ExitChoice("a", "linear", np.float32(0.5)).threshold == 0.5
    assert type(ExitChoice("a", "linear", 1).threshold) is float
    with pytest.raises(InputError, match=r"ExitChoice.position: expected a name, got ''"):
        ExitChoice("", "linear", 0.5)
    with pytest.raises(InputError, match=r"ExitChoice.head: expected a name, got 3"):
        ExitChoice("a", 3, 0.5)
    with pytest.raises(InputError, match="expected a number, got 'high'"):
        ExitChoice("a", "linear", "high")
    with pytest.raises(InputError, match="expected a number, got None"):
        ExitChoice("a", "linear", None)
    with pytest.raises(InputError, match="got NaN; use inf to switch an exit off"):
        ExitChoice("a", "linear", math.nan)


def test_config_checks_its_choices():
    one = ExitChoice("a", "linear", 0.5)
    assert ExitConfig([one]).choices == (one,)
    with pytest.raises(InputError, match="position 'a' occurs twice; keep one exit"):
        ExitConfig((one, ExitChoice("a", "mlp", 0.1)))
    with pytest.raises(InputError, match=r"expected ExitChoice objects, got \('a', 'linear', 0.5\)"):
        ExitConfig((("a", "linear", 0.5),))


@pytest.mark.parametrize("values", [(math.nan, 1, 1, 2), (1, math.inf, 1, 2), (1, 1, 1, 0), (1, -1, 1, 2)])
def test_expected_checks_its_figures(values):
    with pytest.raises(InputError, match="finite figures and costs above 0"):
        Expected(*values, 10)


@pytest.mark.parametrize("tradeoff", [math.nan, math.inf])
def test_tradeoffs_are_finite(tradeoff):
    with pytest.raises(InputError, match="tradeoff: expected a finite number"):
        ExitConfig((), tradeoff)
    with pytest.raises(InputError, match="by_tradeoff: expected finite lambdas"):
        Frontier([point(2, 0.7)], {tradeoff: point(2, 0.7)})


def test_expected_derives_drop_and_relative_cost():
    figures = Expected(0.75, 3.0, 1.0, 4.0, 10)
    assert (figures.drop, figures.relative_cost) == (0.25, 0.75)


def test_frontier_checks_its_configurations():
    with pytest.raises(InputError, match="at least one configuration, got none"):
        Frontier([])
    with pytest.raises(InputError, match="got one without, evaluate it first"):
        Frontier([ExitConfig()])
    for second in (point(2, 0.9), point(3, 0.7), point(1, 0.9)):
        with pytest.raises(InputError, match="strictly rising cost and quality"):
            Frontier([point(2, 0.7), second])
    with pytest.raises(InputError, match="from one set of samples and costs, got several"):
        Frontier([point(2, 0.7), point(3, 0.9, full=(20.0, 1.0))])


def test_dominated_and_duplicate_candidates_are_dropped():
    worse, good, best = point(5, 0.8), point(4, 0.9), point(9, 0.95)
    equal = point(4, 0.9, exits=3)
    frontier = Frontier.of([worse, best, equal, good, good, point(9, 0.95, exits=2)])
    assert list(frontier) == [good, best]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_what_is_kept_dominates_what_is_dropped(points):
    frontier = Frontier.of(point(cost, quality) for cost, quality in points)
    kept = [(c.expected.cost, c.expected.quality) for c in frontier]
    assert set(kept) <= {(float(c), float(q)) for c, q in points}
    for cost, quality in points:
        assert any(c <= cost and q >= quality for c, q in kept)


def test_frontier_is_a_sequence(frontier):
    assert len(frontier) == 3
    assert frontier[0].expected.cost == 2
    assert frontier[-1] in frontier
    assert [c.expected.cost for c in frontier[:2]] == [2, 5]
    assert [c.expected.cost for c in frontier] == [2, 5, 8]
    assert frontier == Frontier.from_json(frontier.to_json())
    assert frontier != Frontier(list(frontier))
    assert frontier != "frontier"
    assert (
        repr(frontier)
        == "Frontier(3 configurations, cost 20.0% to 80.0%, quality 0.7000 to 0.9900, in-sample)"
    )


def test_frontier_cannot_be_changed(frontier):
    with pytest.raises(TypeError):
        frontier.by_tradeoff[0.5] = frontier[0]
    with pytest.raises(TypeError):
        frontier.meta["method"] = "other"


def test_full_model_is_always_there(frontier):
    full = frontier.full_model
    assert full.choices == ()
    assert full.expected == Expected(1.0, 10.0, 1.0, 10.0, 100)


# ------------------------------------------------------------------------------------------------ at


@pytest.mark.parametrize(
    ("criterion", "cost"),
    [
        ({"max_cost": 0.2}, 2),
        ({"max_cost": 0.79}, 5),
        ({"max_cost": 5}, 8),
        ({"max_drop": 0.5}, 2),
        ({"max_drop": 0.1}, 5),
        ({"max_drop": 0.01}, 8),
        ({"min_quality": 0.0}, 2),
        ({"min_quality": 0.9}, 5),
        ({"min_quality": 0.99}, 8),
        ({"tradeoff": 0.6}, 2),
        ({"tradeoff": 0.74}, 2),
        ({"tradeoff": 0.76}, 8),
        ({"tradeoff": 0.9}, 8),
    ],
)
def test_at_picks(frontier, criterion, cost):
    assert frontier.at(**criterion).expected.cost == cost


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ({}, "expected exactly one of max_cost, max_drop, min_quality, tradeoff; got none"),
        ({"max_cost": 0.5, "max_drop": 0.1}, r"exactly one of .*; got \['max_cost', 'max_drop'\]"),
        (
            {"max_cost": 0.19},
            r"at\(max_cost=0.19\): costs run from 0.2 to 0.8 of the full model's; ask for 0.2 or more",
        ),
        (
            {"max_drop": 0.005},
            r"at\(max_drop=0.005\): quality runs from 0.7 to 0.99 \(full model 1\); ask for less",
        ),
        ({"min_quality": 0.995}, r"at\(min_quality=0.995\): quality runs from 0.7 to 0.99"),
        ({"tradeoff": 0.5}, r"at\(tradeoff=0.5\): searched from 0.6 to 0.9; ask within or search again"),
        ({"tradeoff": math.nan}, "searched from 0.6 to 0.9"),
    ],
)
def test_at_says_what_there_is(frontier, criterion, message):
    with pytest.raises(InputError, match=message):
        frontier.at(**criterion)


def test_at_tradeoff_without_any():
    with pytest.raises(InputError, match="holds no lambda values; use max_cost or max_drop"):
        Frontier([point(1, 0.5)]).at(tradeoff=0.5)


def test_a_budget_is_spent_among_equally_good_configurations():
    def made(cost, quality, threshold):
        choices = (ExitChoice("a", "linear", threshold),)
        return ExitConfig(choices, expected=Expected(quality, cost, 0.9, 1.0, 100))

    listed = [made(0.2, 0.7, 0.1), made(0.6, 0.8, 0.9)]
    level = [made(0.3, 0.7, 0.2), made(0.4, 0.7, 0.3)]
    frontier = Frontier(listed, between=level)
    picked = {budget: frontier.at(max_cost=budget) for budget in (0.2, 0.29, 0.35, 0.59, 0.6, 2.0)}
    assert picked == {
        0.2: listed[0],
        0.29: listed[0],
        0.35: level[0],
        0.59: level[1],
        0.6: listed[1],
        2.0: listed[1],
    }
    assert frontier.at(min_quality=0.7) == listed[0]  # the cheapest
    assert list(frontier) == listed
    assert Frontier.from_json(frontier.to_json()) == frontier
    assert frontier != Frontier(listed)
