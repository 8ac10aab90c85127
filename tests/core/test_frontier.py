"""Frontiers of promised figures beside those of in-sample figures. The rest: ``test_config``."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from dials import dial_costs, dial_records, honest_frontier, in_sample_frontier
from instances import make_records, odd_case, random_case, synthetic
from offramp.core.config import ExitConfig
from offramp.core.frontier import Frontier, figures_come_from
from offramp.errors import FewSamplesWarning, InputError
from offramp.solver.search import search

RECORDS, COSTS = dial_records(samples=400), dial_costs()
HONEST, IN_SAMPLE = honest_frontier(RECORDS, COSTS), in_sample_frontier(RECORDS, COSTS)


def test_a_frontier_knows_what_its_figures_are():
    assert not HONEST.in_sample
    assert IN_SAMPLE.in_sample
    assert "in-sample" in repr(IN_SAMPLE)
    assert "in-sample" not in repr(HONEST)
    assert figures_come_from(HONEST) == "promised for new samples, from 400 search samples"
    assert figures_come_from(IN_SAMPLE) == "of the 400 search samples themselves (in-sample: optimistic)"


def test_the_full_model_of_both_kinds():
    """Nothing is lost by it, on these samples or on new ones; in-sample figures say nothing about those."""
    promised, seen = HONEST.full_model.expected, IN_SAMPLE.full_model.expected
    for figures in (promised, seen):
        assert figures.quality == figures.full_quality
        assert figures.cost == figures.full_cost
        assert (figures.drop, figures.in_sample_drop) == (0.0, 0.0)
    assert promised.in_sample_quality == promised.full_quality
    assert promised.drop_interval == (0.0, 0.0)
    assert not promised.in_sample
    assert seen.in_sample_quality is None
    assert seen.drop_interval is None
    assert HONEST.full_model.choices == IN_SAMPLE.full_model.choices == ()
    Frontier([*HONEST[:-1], HONEST.full_model])  # of the same kind as the others


def test_the_full_model_has_no_interval_of_a_configuration():
    """The first of the frontier lends it samples and costs, no more."""
    first = IN_SAMPLE[0]
    odd = Frontier([replace(first, expected=replace(first.expected, drop_interval=(0.0, 0.5)))])
    assert odd.full_model.expected.drop_interval is None


def test_a_promise_is_picked_by_the_promise():
    for ask in (0.0, 0.01, 0.05):
        config = HONEST.at(max_drop=ask)
        within = [each for each in HONEST if each.expected.drop <= ask + 1e-12]
        assert config == within[0]
        assert config.expected.in_sample_drop <= config.expected.drop


def random_exits(samples):
    """Exits that know nothing, to a model that is always right: none is worth its loss."""
    rng = np.random.default_rng(0)
    shape = 3, 1, samples
    return make_records(rng.random(shape), rng.random(shape) < 0.05, np.ones(samples))


def test_too_few_samples_for_a_drop_are_said_with_how_many_it_takes():
    frontier = search(*random_exits(150))
    with pytest.warns(FewSamplesWarning) as caught:
        config = frontier.at(max_drop=0.005)
    assert config.choices == ()
    assert str(caught[0].message) == (
        "at(max_drop=0.005): the full model, because 150 search samples hold fewer than one expected loss at "
        "a drop of 0.5 points; search on at least 200, or allow more"
    )
    assert caught[0].filename == __file__  # where it was asked


def test_groups_are_what_counts():
    records, costs = random_exits(400)
    frontier = search(replace(records, groups=np.arange(400) // 10), costs)
    assert frontier.meta["groups"] == 40
    with pytest.warns(FewSamplesWarning, match="because 40 groups of search samples hold fewer than one"):
        frontier.at(max_drop=0.01)


def test_the_number_of_samples_is_for_reading():
    frontier = search(*random_exits(1200))
    with pytest.warns(
        FewSamplesWarning, match=r"1,200 search samples .* 0.03 points; search on at least 3,334"
    ):
        frontier.at(max_drop=0.0003)


@pytest.mark.parametrize(
    "pick",
    [
        lambda: search(*random_exits(150)).at(max_drop=0),  # nothing else was asked for
        lambda: search(*random_exits(200)).at(max_drop=0.005),  # enough; the exits are bad
        lambda: search(*random_exits(150)).at(max_drop=0.01),
        lambda: search(*random_exits(150)).at(min_quality=1.0),
        lambda: search(*random_exits(150)).at(max_cost=1.0),
        lambda: search(*random_exits(150), regularise=None, tradeoffs=[1.0]).at(max_drop=0.005),  # in-sample
    ],
    ids=["no drop", "just enough", "enough", "quality", "cost", "in-sample"],
)
def test_the_full_model_is_no_reason_for_a_warning_where_samples_suffice(pick):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pick().choices == ()


def test_there_is_no_warning_where_exits_are_found_after_all():
    """Less than one expected loss: the least saving of the dial is still promised, by mixing."""
    records, costs = dial_records(samples=300, seed=1), dial_costs()
    frontier = search(records, costs)
    least = min(config.expected.drop for config in frontier if config.choices)
    assert 300 * least < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frontier.at(max_drop=least).choices


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 25])
def test_no_drop_can_always_be_asked_for(n):
    cases = [random_case(seed, 3, 2, n, gaps=0.3 * (seed % 2)) for seed in range(2)]
    cases += [synthetic(n=n, p=3), make_records(np.ones((2, 1, n)), np.ones((2, 1, n)), np.zeros(n))]
    for records, costs in cases:
        for options in ({}, {"max_exits": 1, "step": None}):
            frontier = search(records, costs, tradeoffs=[0.5, 0.9], **options)
            config = frontier.at(max_drop=0)
            assert config.expected.drop <= 0
            assert config.expected.relative_cost <= 1
            full = frontier.full_model.expected.full_quality
            if full > 0:
                assert config.expected.relative_cost == pytest.approx(1)
            assert frontier.at(max_drop=1).expected.relative_cost == frontier[0].expected.relative_cost


def test_no_drop_can_always_be_asked_for_whatever_costs_are():
    for seed in range(12):
        frontier = search(*odd_case(seed), tradeoffs=[0.0, 0.8, 1.0])
        assert frontier.at(max_drop=0).expected.drop <= 0
        assert max(config.expected.relative_cost for config in frontier) <= 1


def test_a_rise_cannot_be_asked_for():
    with pytest.raises(InputError, match=r"at\(max_drop=-0.01\): quality runs from"):
        HONEST.at(max_drop=-0.01)
    assert math.isclose(HONEST.at(max_drop=0).expected.relative_cost, 1.0)
    assert isinstance(HONEST.at(max_drop=0), ExitConfig)


@pytest.mark.parametrize("name", ["max_cost", "max_drop", "min_quality", "tradeoff"])
@pytest.mark.parametrize("value", ["much", True, [0.1]])
def test_a_criterion_is_a_number(name, value):
    frontier = search(*random_exits(30))
    with pytest.raises(InputError, match=rf"at\({name}=.*\): expected a number; 0.005 of max_drop is half"):
        frontier.at(**{name: value})


def test_numpy_numbers_are_criteria():
    frontier = search(*random_exits(30))
    for value in (np.float32(1), np.int64(1), np.float64(1)):
        assert frontier.at(max_cost=value) == frontier.at(max_cost=1.0)
