"""The verb: its arguments, what "auto" chooses, what a frontier holds, hard records, errors."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from effort import set_effort
from instances import (
    LAMBDAS,
    REFERENCES,
    brute_force,
    generated,
    make_records,
    objective,
    random_case,
    synthetic,
)
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.core.frontier import Frontier
from offramp.errors import InputError
from offramp.solver.dial import dials
from offramp.solver.problem import Problem
from offramp.solver.search import DEFAULT_TRADEOFFS, dial_tradeoffs, search
from offramp.solver.solve import METHODS, SearchPlan
from progress import steps_shown

MODULE = sys.modules["offramp.solver.search"]  # the package has a function of this name
EXTREMES = (np.float32(3.4e38), np.float32(-3.4e38), np.float32(1e-45))
SOME = (0.5, 0.6, 0.75, 0.85, 0.92, 0.97, 1.0)


def figures(frontier):
    return [(config.expected.relative_cost, config.expected.quality) for config in frontier]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cap", [0, 1, 3])
def test_max_exits_is_kept_by_every_method(method, cap):
    records, costs = synthetic()
    frontier = search(records, costs, method=method, regularise=None, max_exits=cap)
    assert max(len(config.choices) for config in frontier.by_tradeoff.values()) == cap
    assert max(len(config.choices) for config in frontier) == cap
    assert frontier.meta["max_exits"] == cap
    if cap == 0:
        assert [config.choices for config in frontier] == [()]
        assert frontier[0].expected.relative_cost == 1.0


@pytest.mark.parametrize("cap", [0, 1, 2])
def test_max_exits_is_kept_by_auto(cap):
    records, costs = synthetic(n=200)
    frontier = search(records, costs, tradeoffs=SOME, max_exits=cap)
    assert max(len(config.choices) for config in (*frontier, *frontier.by_tradeoff.values())) <= cap


def test_a_price_buys_fewer_exits():
    records, costs = synthetic()
    counts = [
        sum(len(c.choices) for c in search(records, costs, regularise=price).by_tradeoff.values())
        for price in (0.0, 0.002, 0.01, 10.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == 0


def test_auto_generalises():
    """Held-out J, mean over seeds: not worse than the pure optimum on few samples, here clearly better."""
    lambdas = [0.6, 0.75, 0.85, 0.92, 0.97]
    reached = {None: 0.0, "auto": 0.0}
    for seed in range(5):
        records, costs = synthetic(n=3000, seed=seed)
        chosen_on, held = records.subset(np.arange(120)), records.subset(np.arange(120, 3000))
        for regularise in reached:
            found = search(chosen_on, costs, tradeoffs=lambdas, regularise=regularise).by_tradeoff
            reached[regularise] += sum(objective(held, costs, found[lam], lam) for lam in lambdas) / 25
    assert reached["auto"] <= reached[None] - 1e-3


def kinds_of(records, costs):
    """What the careful dial and the one with a common threshold hold, as exits."""
    plan = SearchPlan("exact", 2 / records.samples, 99, parsimonious=True)
    grid = dial_tradeoffs(DEFAULT_TRADEOFFS)
    found = dials(Problem.of(records, costs), costs, plan, grid, common=True, step=0.01)
    return [{dial.exits(i) for i in dial.rows.tolist()} for dial in found]


def test_which_dial_is_trusted_depends_on_samples_and_losses():
    """Few losses, of few samples: one threshold for all exits. Many: each exit its own."""
    every, costs = generated(1, 4500, positions=6, heads=2)
    for samples, losses in ((80, 8), (2000, 4), (4500, 0)):
        records = every.subset(np.arange(samples))
        frontier, limit = search(records, costs), losses / (samples + 1)
        careful, common = kinds_of(records, costs)
        early = {config.choices for config in frontier if 0 < config.expected.drop <= limit}
        late = {config.choices for config in frontier if config.expected.drop > limit}
        assert early <= common
        assert (len(early) > 5) == (losses > 0)
        assert len(early & careful) < max(len(early), 1)
        assert len(late & careful) > 5
        cheapest = min(evaluate(records, costs, ExitConfig(exits)).cost for exits in careful)
        for exits in late - careful:  # cheaper than the careful one ever gets
            assert exits in common
            assert evaluate(records, costs, ExitConfig(exits)).cost < cheapest


@pytest.mark.parametrize("n", [1, 2, 3, 7, 19, 20, 21])
def test_auto_answers_however_few_samples_there_are(n):
    """With what these samples reached beside what new ones are promised, and never too few for no drop."""
    for seed in range(3):
        records, costs = random_case(seed, 3, 2, n)
        frontier = search(records, costs, tradeoffs=LAMBDAS)
        for config in (*frontier, *frontier.by_tradeoff.values()):
            outcome, found = evaluate(records, costs, config), config.expected
            assert (found.in_sample_quality, found.cost) == (outcome.quality, outcome.cost)
            assert found.samples == n
            assert config.choices or found.drop_interval == (0.0, 0.0)
            # of n samples one is left out: less than one loss in n + 1 cannot be promised with exits all on
            assert found.drop >= 0
        full = frontier.full_model.expected
        assert frontier.at(max_drop=0).expected.drop == 0
        assert frontier.at(max_drop=0).expected.relative_cost <= 1
        assert frontier[-1].expected.quality == full.full_quality
        if n == 1 and full.full_quality > 0:
            assert {config.expected.drop for config in frontier} <= {0.0, full.full_quality}


@pytest.mark.parametrize("samples", [10, 100, 3000])
@pytest.mark.parametrize("arguments", [{}, {"regularise": None}, {"method": "iterative"}])
def test_progress_counts_every_step(monkeypatch, samples, arguments):
    records, costs = synthetic(n=samples, p=3)
    seen = steps_shown(monkeypatch, MODULE)
    search(records, costs, tradeoffs=[0.9], **arguments)
    total = seen[-1][1]
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_by_tradeoff_and_meta():
    records, costs = synthetic(n=100)
    frontier = search(records, costs, tradeoffs=[0.9, 0.55, 0.9])
    assert list(frontier.by_tradeoff) == [0.9, 0.55]
    assert dict(frontier.meta) == {
        "method": "exact",
        "regularise": "auto",
        "figures": "cross-fitted",
        "price": 2 / 100,
        "max_exits": None,
        "step": 0.01,
        "proved": False,
        "samples": 100,
        "groups": None,
        "unit": "macs",
        "seed": 0,
    }
    assert not frontier.in_sample
    assert Frontier.from_json(frontier.to_json()) == frontier
    assert search(records, costs, tradeoffs=[0.9], regularise=np.float32(0.5)).meta["regularise"] == 0.5
    assert search(records, costs, tradeoffs=[0.9], regularise=None).meta["regularise"] is None
    assert search(records, costs, tradeoffs=[0.9], regularise=0).meta["regularise"] == 0
    assert search(records, costs, tradeoffs=[0.9], step=None).meta["step"] is None
    assert search(records, costs, tradeoffs=[0.9], method="iterative").meta["step"] is None


@pytest.mark.parametrize(
    ("arguments", "price"),
    [({"regularise": None}, 0), ({"regularise": 0.003}, 0.003)]
    + [({"method": name}, 0) for name in REFERENCES],
)
def test_what_is_not_judged_by_folds_is_called_in_sample(arguments, price):
    records, costs = synthetic(n=60)
    frontier = search(records, costs, tradeoffs=SOME, **arguments)
    assert frontier.in_sample
    assert frontier.meta["figures"] == "in-sample"
    assert frontier.meta["price"] == price
    for config in (*frontier, *frontier.between, *frontier.by_tradeoff.values()):
        assert config.expected.in_sample_quality is None
        assert config.expected.drop_interval is None
        assert config.expected.quality == evaluate(records, costs, config).quality


def test_default_tradeoffs():
    records, costs = synthetic(n=50, p=3)
    frontier = search(records, costs, regularise=None)
    assert tuple(frontier.by_tradeoff) == DEFAULT_TRADEOFFS
    assert (DEFAULT_TRADEOFFS[0], DEFAULT_TRADEOFFS[-1], len(set(DEFAULT_TRADEOFFS))) == (0.5, 1.0, 101)


@pytest.mark.parametrize("regularise", [None, "auto"])
@pytest.mark.parametrize("step", [None, 0.01])
def test_frontier_holds_what_is_not_dominated_with_true_figures(regularise, step):
    records, costs = synthetic(n=300)
    frontier = search(records, costs, regularise=regularise, step=step)
    for config in (*frontier, *frontier.by_tradeoff.values()):
        outcome, found = evaluate(records, costs, config), config.expected
        reached = found.quality if regularise is None else found.in_sample_quality
        assert (reached, found.cost) == (outcome.quality, outcome.cost)
    for (cost, quality), (costlier, better) in pairwise(figures(frontier)):
        assert cost < costlier
        assert quality < better
    full = (1.0, float(records.final_quality.astype(float).mean()))
    others = figures(frontier.by_tradeoff.values()) if regularise is None else []
    for cost, quality in (*others, full):
        assert any(c <= cost and q >= quality for c, q in figures(frontier))


def test_promises_are_less_than_what_was_seen_and_intervals_are_around_the_mean_held_out():
    records, costs = generated(0, 600, positions=6, heads=2)
    frontier = search(records, costs)
    full = frontier.full_model.expected
    assert frontier[-1].choices == ()
    assert frontier[-1].expected == full
    for config in frontier[:-1]:
        found = config.expected
        low, high = found.drop_interval
        assert low < high
        assert found.drop > (low + high) / 2  # the promise is above the mean held out
        assert found.full_quality == full.quality
        assert found.samples == 600
    seen = [config.expected.in_sample_drop for config in frontier]
    promised = [config.expected.drop for config in frontier]
    assert np.mean(np.array(promised) - np.array(seen)) > 1 / 601


def test_step_adds_configurations_and_leaves_those_of_the_tradeoffs_alone():
    records, costs = synthetic(n=300)
    plain, fine = (search(records, costs, regularise=None, step=step) for step in (None, 0.01))
    assert fine.by_tradeoff == plain.by_tradeoff
    assert len(fine) > len(plain)
    known = {config.choices for config in fine}
    missing = [config for config in plain if config.choices not in known]
    for config in missing:  # only what something between beats
        cost, quality = config.expected.cost, config.expected.quality
        assert any(c.expected.cost <= cost and c.expected.quality >= quality for c in fine)


@pytest.mark.parametrize("make", [synthetic, generated])
def test_step_makes_the_dial_of_auto_fine_and_leaves_the_choices_of_tradeoffs_alone(make):
    """Promises depend on how fine the dial is: losses add up at every configuration of it."""
    records, costs = make(n=300) if make is synthetic else make(1, 300, positions=6, heads=2)
    plain, fine = (search(records, costs, step=step) for step in (None, 0.02))
    assert list(fine.by_tradeoff) == list(plain.by_tradeoff)
    for one, other in zip(fine.by_tradeoff.values(), plain.by_tradeoff.values(), strict=True):
        assert one.choices == other.choices
        assert one.expected.cost == other.expected.cost
        assert one.expected.in_sample_quality == other.expected.in_sample_quality
        assert one.expected.drop_interval == other.expected.drop_interval
    assert len(fine) > 2 * len(plain)
    costs_of = np.array([config.expected.relative_cost for config in fine])
    ratio = costs_of[1:] / costs_of[:-1]
    assert (costs_of[2:] / costs_of[:-2]).min() > 1.02 - 1e-9  # none is more than it takes
    assert np.mean(ratio <= 1.02 + 1e-9) >= 0.9
    assert np.mean(ratio <= 1.03) > 0.9
    ends = [(f[0].expected.relative_cost, f[-1].expected.relative_cost) for f in (plain, fine)]
    assert ends[0][0] <= ends[1][0] <= ends[0][0] * 1.01
    assert ends[0][1] == ends[1][1] == 1.0


@pytest.mark.parametrize("regularise", [None, "auto"])
def test_at_picks_the_cheapest_that_reaches_and_the_best_that_fits(regularise):
    records, costs = synthetic(n=300, seed=4)
    frontier = search(records, costs, regularise=regularise)
    full = frontier.full_model.expected.quality
    rng = np.random.default_rng(0)
    known = figures(frontier)
    for wanted in rng.uniform(known[0][1], known[-1][1], 20):
        reaching = min(cost for cost, quality in known if quality >= wanted)
        for config in (frontier.at(min_quality=wanted), frontier.at(max_drop=full - wanted)):
            assert config.expected.relative_cost == reaching
    for budget in rng.uniform(known[0][0], known[-1][0], 20):
        config = frontier.at(max_cost=budget)
        assert config.expected.quality == max(quality for cost, quality in known if cost <= budget)
        assert config.expected.relative_cost <= budget


@pytest.mark.parametrize("regularise", [None, "auto"])
def test_same_seed_same_frontier(regularise):
    records, costs = synthetic(n=150)
    first, again = (search(records, costs, regularise=regularise, seed=3) for _ in range(2))
    assert first.to_json() == again.to_json()


def test_another_seed_has_other_folds_and_averages_over_other_resamples():
    records, costs = synthetic(n=300)
    one, other = (search(records, costs, tradeoffs=SOME, seed=seed) for seed in (0, 1))
    assert [c.choices for c in one.by_tradeoff.values()] != [c.choices for c in other.by_tradeoff.values()]
    assert figures(one) != figures(other)
    plain = [search(records, costs, tradeoffs=SOME, seed=seed, regularise=None) for seed in (0, 1)]
    assert list(plain[0]) == list(plain[1])


@pytest.mark.parametrize("regularise", [None, "auto", 0.002])
def test_threads_change_nothing(monkeypatch, regularise):
    set_effort(monkeypatch, cells=2000)  # several batches
    records, costs = synthetic(n=200)
    frontiers = [search(records, costs, tradeoffs=SOME, regularise=regularise, workers=w) for w in (1, 2, 3)]
    assert frontiers[0].to_json() == frontiers[1].to_json() == frontiers[2].to_json()


@pytest.mark.parametrize("method", METHODS)
def test_batch_size_changes_nothing(monkeypatch, method):
    records, costs = synthetic(n=100)
    arguments = {"tradeoffs": SOME, "method": method, "regularise": None}
    whole = search(records, costs, **arguments)
    set_effort(monkeypatch, cells=1)
    assert search(records, costs, **arguments).to_json() == whole.to_json()


# ----------------------------------------------------------------------------------------------- invariance


def reordered(records, costs):
    order = np.random.default_rng(5).permutation(records.samples)
    return records.subset(order), costs


def other_heads(records, costs):
    """The last head first, and new names."""
    back = slice(None, None, -1)
    arrays = {name: getattr(records, name)[:, back] for name in ("confidence", "quality", "exists")}
    names = tuple(f"x{name}" for name in records.heads[back])
    return replace(records, heads=names, **arrays), replace(costs, heads=costs.heads[:, back])


def costlier(factor):
    def change(records, costs):
        return records, CostTable(costs.backbone * factor, costs.heads * factor, "joules")

    return change


def ranked(records, costs):
    """Confidences replaced by the cube of their rank among all of them: monotone, exact, far from linear."""
    values = np.unique(records.confidence, return_inverse=True)[1].reshape(records.confidence.shape)
    return replace(records, confidence=(values - 100.0).astype(np.float32) ** 3), costs


def halved(records, costs):
    return replace(records, confidence=records.confidence / 2 - 0), costs


def ranked_each(records, costs):
    """Every head's confidences replaced by their ranks among themselves."""
    places = np.argsort(np.argsort(records.confidence, axis=2, kind="stable"), axis=2)
    return replace(records, confidence=places.astype(np.float32)), costs


CHANGES = {
    "samples": reordered,
    "heads": other_heads,
    "cost": costlier(8.0),
    "cost, rounded": costlier(0.3),
    "scale": halved,
    "monotone": ranked,
    "monotone, each": ranked_each,
}


def meaning(configs):
    """Exits without thresholds, and figures: what must not change."""
    return [
        (
            tuple((choice.position, choice.head.lstrip("x")) for choice in config.choices),
            pytest.approx(config.expected.relative_cost, abs=1e-12),
            pytest.approx(config.expected.quality, abs=1e-12),
        )
        for config in configs
    ]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("regularise", [None, 0.003])
@pytest.mark.parametrize("make", [synthetic, generated])
def test_what_must_not_matter_does_not(change, regularise, make):
    records, costs = make(seed=2, n=200, p=5) if make is synthetic else make(2, 200, positions=5, heads=2)
    arguments = {"tradeoffs": SOME[:-1], "regularise": regularise}  # at 1, cost breaks no ties
    first, again = search(records, costs, **arguments), search(*CHANGES[change](records, costs), **arguments)
    assert meaning(again.by_tradeoff.values()) == meaning(first.by_tradeoff.values())
    if change not in ("samples", "cost, rounded"):  # rounding may part two that are equally good
        assert meaning(again) == meaning(first)


def assert_same_promises(first, again):
    """The same exits, thresholds aside, and all figures: what must not change."""
    exits, numbers = [], []
    for frontier in (first, again):
        configs = [*frontier, *frontier.by_tradeoff.values()]
        exits.append([[(c.position, c.head.lstrip("x")) for c in config.choices] for config in configs])
        every = [config.expected for config in configs]
        numbers.append([(e.relative_cost, e.quality, e.in_sample_quality, *e.drop_interval) for e in every])
    assert exits[0] == exits[1]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-11)


@pytest.mark.parametrize("change", ["samples", "heads", "cost", "cost, rounded", "scale"])
@pytest.mark.parametrize("make", [synthetic, generated])
def test_what_must_not_matter_to_auto_does_not(change, make):
    """Nor to folds: they are by the mean rank of the samples. All trade-offs, 1 among them."""
    for seed in (2, 6):  # of the generated ones the second has heads that are equally good
        if make is synthetic:
            records, costs = make(n=200, p=5, seed=seed)
        else:
            records, costs = make(seed, 200, positions=5, heads=2)
        # rounding parts configurations at a budget between those of the trade-offs
        arguments = {"tradeoffs": SOME, "step": None if change == "cost, rounded" else 0.01}
        first = search(records, costs, **arguments)
        again = search(*CHANGES[change](records, costs), **arguments)
        assert_same_promises(first, again)


@pytest.mark.parametrize("make", [synthetic, generated])
@pytest.mark.parametrize("change", ["monotone", "monotone, each"])
def test_monotone_maps_leave_the_dials_as_they_are(change, make):
    """Which samples leave where. To samples held out only linear maps are the same: thresholds lie midway."""
    records, costs = make(n=200, p=5, seed=2) if make is synthetic else make(2, 200, positions=5, heads=2)
    each, plan = change == "monotone, each", SearchPlan("exact", 2 / 200, 99, parsimonious=True)
    first, again = (
        dials(Problem.of(given_records, costs), costs, plan, list(SOME), common=not each, step=0.02)
        for given_records in (records, CHANGES[change](records, costs)[0])
    )
    for name in ("head", "prefix"):
        one, other = (getattr(careful.candidates, name)[careful.rows] for careful, *_ in (first, again))
        assert one.tolist() == other.tolist()
    assert len(first[0].rows) > 5
    if not each:  # a common threshold lies between samples still there, whoever left before lies between too
        for name in ("cost", "quality"):
            one, other = (getattr(common.candidates, name)[common.picks] for _, common in (first, again))
            assert one.tolist() == other.tolist()


@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from([2, 4, 10, 10**6]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_order_of_samples_never_matters_to_auto(seed, p, n, levels, binary, grouped):
    """Ties, confidences that are not finite, equal samples; what groups are called does not matter either.

    Groups that begin with the same sample are told apart by nothing: there without ties.
    """
    levels, gaps = (10**6, 0) if grouped else (levels, 0.3)
    records, costs = random_case(seed, p, 2, n, levels=levels, binary=binary, gaps=gaps)
    rng = np.random.default_rng(seed)
    if grouped:
        records = replace(records, groups=rng.integers(0, 5, n))
    drawn = records.subset(rng.permutation(n))
    if grouped:
        drawn = replace(drawn, groups=7 - 2 * drawn.groups)
    # with a step, rounding of means parts configurations that are equally good
    first, again = (search(each, costs, tradeoffs=LAMBDAS, step=None) for each in (records, drawn))
    assert_same_promises(first, again)


@pytest.mark.parametrize("seed", range(10))
def test_monotone_maps_of_each_head_leave_the_optimum_as_it_is(seed):
    """J, ties included; among equals another configuration may be found."""
    records, costs = random_case(seed, 3, 2, 8, gaps=0.1)
    maps = np.random.default_rng(seed).choice([1, 3, 5], (3, 2, 1))
    bent = replace(records, confidence=(records.confidence.astype(float) * 4 - 1) ** maps)
    for lam in LAMBDAS:
        reached = [
            objective(r, costs, search(r, costs, tradeoffs=[lam], regularise=None).by_tradeoff[lam], lam)
            for r in (records, bent)
        ]
        assert reached[0] == pytest.approx(reached[1], abs=1e-12)


# -------------------------------------------------------------------------------------------- hard records


@pytest.mark.parametrize("method", METHODS)
def test_no_head_anywhere_is_the_full_model(method):
    records, costs = random_case(0, 3, 2, 30, gaps=1.1)
    frontier = search(records, costs, method=method, tradeoffs=[0, 0.5, 1])
    assert [config.choices for config in frontier.by_tradeoff.values()] == [(), (), ()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_confidences_that_are_not_finite_never_exit(method, value):
    records, costs = make_records(np.full((2, 1, 30), value), np.ones((2, 1, 30)), np.ones(30))
    frontier = search(records, costs, method=method, tradeoffs=[0, 0.5, 1])
    assert [config.choices for config in frontier.by_tradeoff.values()] == [(), (), ()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 30])
def test_equal_confidences_leave_all_or_none(method, n):
    records, costs = make_records(np.full((2, 1, n), 0.5), np.ones((2, 1, n)), np.ones(n))
    found = search(records, costs, method=method, tradeoffs=[0.0, 0.5, 1.0], regularise=None).by_tradeoff
    assert found[0.0].choices == found[0.5].choices == (ExitChoice("input", "h0", -np.inf),)
    assert found[1.0].choices == ()  # nothing to gain in quality, and cost has no weight


@pytest.mark.parametrize("method", METHODS)
def test_a_full_model_that_is_always_wrong(method):
    rng = np.random.default_rng(0)
    quality = rng.random((3, 2, 40)) < 0.5
    records, costs = make_records(rng.random((3, 2, 40)), quality, np.zeros(40))
    found = search(records, costs, method=method, tradeoffs=[0.0, 0.7, 1.0], regularise=None).by_tradeoff
    assert found[1.0].expected.quality >= found[0.7].expected.quality > 0
    assert objective(records, costs, found[0.7], 0.7) < 0.3
    auto = search(records, costs, tradeoffs=[0.7])
    assert objective(records, costs, auto.by_tradeoff[0.7], 0.7) < 0.3
    assert auto.at(max_drop=0).expected.quality >= 0  # nothing is less than the full model's quality
    assert auto.at(max_drop=0).expected.relative_cost == auto[0].expected.relative_cost


def test_an_exit_that_is_free_and_right_for_all_is_the_whole_frontier():
    """Nothing costs less than nothing: there is nothing between."""
    records, costs = make_records(
        np.ones((2, 1, 30)), np.ones((2, 1, 30)), np.ones(30), costs=(np.arange(3.0), np.zeros((2, 1)))
    )
    assert figures(search(records, costs, regularise=None)) == [(0.0, 1.0)]
    # with no loss on any of 30 samples held out, one in 31 is what can be promised
    (cheap, full) = search(records, costs)
    assert figures([full]) == [(1.0, 1.0)]
    assert (cheap.expected.relative_cost, cheap.expected.in_sample_quality) == (0.0, 1.0)
    assert cheap.expected.drop == pytest.approx(1 / 31, abs=1e-9)


def test_extreme_confidences_and_heads_dearer_than_the_model():
    values = np.array([*EXTREMES, 0, 1, -0.0], np.float32)
    records, costs = make_records(
        np.tile(values, (2, 1, 5)),
        np.tile([1, 0, 1, 1, 0, 1.0], (2, 1, 5)),
        np.full(30, 0.5),
        costs=(np.array([0, 1, 2.0]), np.array([[0.01], [50.0]])),
    )
    frontier = search(records, costs, tradeoffs=LAMBDAS, regularise=None)
    for lam, lowest in brute_force(records, costs, LAMBDAS).items():
        assert objective(records, costs, frontier.by_tradeoff[lam], lam) == pytest.approx(lowest, abs=1e-9)


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tradeoffs": []}, r"at least one value, all in \[0, 1\], got none; near 1 buys quality"),
        ({"tradeoffs": [0.5, 1.1]}, r"all in \[0, 1\], got \[1.1\]"),
        ({"tradeoffs": [float("nan")]}, r"got \[nan\]"),
        ({"tradeoffs": 0.5}, r"several numbers in \[0, 1\], got 0.5; give a list"),
        ({"tradeoffs": ["much"]}, r"several numbers in \[0, 1\], got \['much'\]"),
        ({"method": "greedy"}, "unknown; choose one of exact, single-pass, iterative, same-threshold"),
        ({"regularise": -0.1}, 'expected "auto", None or a price per exit of at least 0'),
        ({"regularise": float("inf")}, "price per exit"),
        ({"regularise": "much"}, "regularise='much'"),
        ({"regularise": True}, "regularise=True"),
        ({"regularise": [1]}, "price per exit"),
        ({"max_exits": -1}, "max_exits=-1.*whole number of at least 0; leave it out for no limit"),
        ({"max_exits": 1.5}, "whole number"),
        ({"max_exits": True}, "whole number"),
        ({"step": 0}, "step=0.*expected a share from 0.0001 to 1, 0.01 for one per cent, or None"),
        ({"step": 1.1}, "share"),
        ({"step": 5e-5}, "share"),
        ({"step": float("nan")}, "step=nan"),
        ({"step": True}, "step=True"),
        ({"step": "0.01"}, "step='0.01'"),
        ({"step": 0, "method": "iterative"}, "step=0"),
        ({"workers": 0}, "workers=0.*expected a number of threads, at least 1"),
        ({"workers": 1.0}, "workers=1.0"),
        ({"workers": True}, "workers=True"),
        ({"workers": None}, "workers=None"),
    ],
)
def test_errors_say_what_to_do(arguments, message):
    records, costs = synthetic(n=20)
    with pytest.raises(InputError, match=message):
        search(records, costs, **arguments)


def test_numpy_numbers_are_numbers():
    records, costs = synthetic(n=20, p=3)
    frontier = search(
        records,
        costs,
        tradeoffs=np.array([0.5, 0.9]),
        max_exits=np.int64(1),
        step=np.float32(0.5),
        workers=np.int32(2),
    )
    assert Frontier.from_json(frontier.to_json()) == frontier


def test_records_and_costs_must_match():
    records, costs = synthetic(n=20)
    with pytest.raises(InputError, match="measure and record the same network"):
        search(records, synthetic(n=20, p=4)[1])
    with pytest.raises(InputError, match="at least one sample"):
        search(records.subset(np.zeros(0, int)), costs)
