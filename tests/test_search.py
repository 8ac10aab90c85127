"""Search against brute force, against each other method, and against evaluation by definition."""

import sys
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.config import ExitChoice, ExitConfig, Frontier
from offramp.cost import CostTable
from offramp.errors import InputError
from offramp.evaluate import evaluate
from offramp.lines import OFF, Problem, Rows, best_line, finals
from offramp.methods import METHODS, Goals, Pool
from offramp.records import ExitRecords
from offramp.search import DEFAULT_TRADEOFFS, search, threshold_between

REFERENCES = ("single-pass", "iterative", "same-threshold")
EXTREMES = (np.float32(3.4e38), np.float32(-3.4e38), np.float32(1e-45))


def make_records(confidence, quality, final, exists=None, costs=None):
    p, c, _ = np.shape(confidence)
    exists = np.ones((p, c), bool) if exists is None else exists
    names = ("input", *(f"p{i}" for i in range(1, p)))
    records = ExitRecords(confidence, quality, final, exists, names, tuple(f"h{i}" for i in range(c)))
    backbone, heads = costs or (np.arange(p + 1.0), np.full((p, c), 0.05))
    return records, CostTable(backbone, heads, "macs")


def random_case(seed, p=3, c=2, n=5, *, levels=4, binary=False, gaps=0.3):
    """Few levels make ties; gaps are missing heads, filled with rubbish, and confidences not finite."""
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, levels, (p, c, n)).astype(np.float32) / levels
    quality = rng.integers(0, 2 if binary else 5, (p, c, n)) / (1 if binary else 4)
    exists = rng.random((p, c)) > gaps
    wrong = rng.random((p, c, n)) < gaps / 4
    confidence[wrong] = rng.choice([np.nan, np.inf, -np.inf], np.count_nonzero(wrong))
    confidence[~exists], quality[~exists] = np.nan, np.nan
    final = rng.integers(0, 5, n) / 4 if rng.random() < 0.9 else np.zeros(n)
    backbone = np.concatenate([[0], np.cumsum(rng.integers(0, 3, p))])
    backbone[-1] += 1
    heads = rng.choice([0.0, 0.1, 0.5], (p, c))
    return make_records(confidence, quality, final, exists, (backbone.astype(float), heads))


def synthetic(n=400, p=6, c=2, seed=0):
    """Exits that grow better with depth, with confidences that know something about it."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    skill = np.linspace(-1.0, 1.6, p)[:, None] + 0.2 * np.arange(c) + rng.normal(0, 0.1, (p, c))
    margin = skill[:, :, None] - hard + 0.5 * rng.normal(size=(p, c, n))
    confidence = 1 / (1 + np.exp(-np.abs(margin) - 0.4 * (margin > 0) + 0.5 * rng.normal(size=margin.shape)))
    final = (1.9 - hard + 0.5 * rng.normal(size=n) > 0).astype(np.float32)
    exists = np.ones((p, c), bool)
    exists[0] = False
    costs = np.arange(p + 1.0), np.tile(0.02 * (1 + np.arange(c)), (p, 1))
    return make_records(confidence.astype(np.float32), (margin > 0).astype(np.float32), final, exists, costs)


def objective(records, costs, config, lam):
    """J from evaluate, independently of what the search believes."""
    outcome = evaluate(records, costs, config)
    full = records.final_quality.astype(float).mean()
    return lam * (full - outcome.quality) / (full or 1) + (1 - lam) * outcome.relative_cost


def every_choice(records, p):
    """Off, and each head with a threshold below, between and at its confidences."""
    options = [None]
    for c in np.flatnonzero(records.exists[p]):
        values = records.confidence[p, c]
        for t in (-np.inf, *np.unique(values[np.isfinite(values)])):
            options.append(ExitChoice(records.positions[p], records.heads[c], t))
    return options


def brute_force(records, costs, lambdas, max_exits=99):
    best = dict.fromkeys(lambdas, np.inf)
    for combination in product(*(every_choice(records, p) for p in range(len(records.positions)))):
        config = ExitConfig(tuple(choice for choice in combination if choice))
        if len(config.choices) <= max_exits:
            for lam in lambdas:
                best[lam] = min(best[lam], objective(records, costs, config, lam))
    return best


LAMBDAS = (0.0, 0.3, 0.8, 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_exact_equals_brute_force(seed):
    shape = [(1, 3, 6), (2, 2, 6), (3, 2, 3), (4, 1, 3), (3, 1, 5), (2, 2, 1)][seed % 6]
    records, costs = random_case(seed, *shape, binary=seed % 2 == 0)
    frontier = search(records, costs, tradeoffs=LAMBDAS, regularise=None)
    for lam, lowest in brute_force(records, costs, LAMBDAS).items():
        assert objective(records, costs, frontier.by_tradeoff[lam], lam) == pytest.approx(lowest, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cap", [0, 1, 2])
def test_exact_with_a_cap_equals_brute_force(seed, cap):
    records, costs = random_case(seed, 3, 2, 3, gaps=0.1)
    frontier = search(records, costs, tradeoffs=LAMBDAS, regularise=None, max_exits=cap)
    for lam, lowest in brute_force(records, costs, LAMBDAS, cap).items():
        config = frontier.by_tradeoff[lam]
        assert len(config.choices) <= cap
        assert objective(records, costs, config, lam) == pytest.approx(lowest, abs=1e-9)


def test_descent_alone_comes_close_to_brute_force(monkeypatch):
    """Without enumeration: escapes and a cap must find nearly the optimum; within 2 % of J in all."""
    monkeypatch.setattr("offramp.methods._TINY", 0)
    missed = total = 0.0
    for seed in range(8):
        records, costs = random_case(seed, 3, 2, 4, gaps=0.1)
        for cap in (1, 2, 3):
            frontier = search(records, costs, tradeoffs=LAMBDAS, regularise=None, max_exits=cap)
            for lam, lowest in brute_force(records, costs, LAMBDAS, cap).items():
                reached = objective(records, costs, frontier.by_tradeoff[lam], lam)
                assert reached >= lowest - 1e-9
                assert len(frontier.by_tradeoff[lam].choices) <= cap
                missed, total = missed + reached - lowest, total + abs(lowest)
    assert missed <= 0.02 * total


@given(st.integers(0, 10**6), st.sampled_from(LAMBDAS))
@settings(max_examples=60, deadline=None)
def test_line_finds_the_best_of_all_thresholds(seed, lam):
    records, costs = random_case(seed, 2, 2, 8)
    problem = Problem.of(records, costs)
    for p, spot in problem.used:
        off = np.full((1, 2), OFF)
        rows = Rows(off, np.zeros_like(off), np.array([lam]), np.zeros(1), np.array([2]))
        line = best_line(problem, p, rows, np.ones((1, 8), bool), finals(problem, rows.tradeoff))
        full = objective(records, costs, ExitConfig(), lam)
        options = [ExitConfig((choice,)) for choice in every_choice(records, p) if choice]
        lowest = min([full, *(objective(records, costs, config, lam) for config in options)])
        assert full - line.fall[0] == pytest.approx(lowest, abs=1e-9)
        if line.head[0] != OFF:
            falling = np.sort(spot.confidence[line.head[0]])[::-1]
            cut = line.cut[0]
            assert np.isfinite(falling[cut - 1])
            assert cut == 8 or falling[cut - 1] > falling[cut]


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 1, 2]))
@settings(max_examples=20, deadline=None)
def test_exact_is_never_worse_and_figures_are_true(seed, ties, cap):
    records, costs = random_case(seed, 5, 2, 60, levels=6 if ties else 10**6, gaps=0.15)
    lambdas = np.linspace(0, 1, 51).tolist()
    frontiers = {
        method: search(records, costs, tradeoffs=lambdas, method=method, regularise=None, max_exits=cap)
        for method in METHODS
    }
    for lam in lambdas:
        reached = {}
        for method, frontier in frontiers.items():
            config = frontier.by_tradeoff[lam]
            outcome = evaluate(records, costs, config)
            assert (config.expected.quality, config.expected.cost) == (outcome.quality, outcome.cost)
            assert config.tradeoff == lam
            taken = [outcome.exit_shares[records.positions.index(c.position)] for c in config.choices]
            assert all(share > 0 for share in taken)
            assert len(config.choices) <= (cap or 99)
            reached[method] = objective(records, costs, config, lam)
        assert reached["exact"] <= min(reached.values()) + 1e-9
        assert reached["exact"] <= (1 - lam) + 1e-9  # the full model


@pytest.mark.parametrize("price", [0.0, 0.004])
@pytest.mark.parametrize("method", METHODS)
def test_the_search_believes_what_evaluate_says(method, price):
    """Its own J, summed in integers and scaled, against J from evaluate plus prices."""
    records, costs = synthetic()
    problem, tradeoff = Problem.of(records, costs), np.array(DEFAULT_TRADEOFFS)
    goals, pool = Goals(tradeoff, np.full(101, price), 99), Pool(problem)
    for step in METHODS[method]:
        answer = step(problem, goals, pool)
    exits = np.count_nonzero(pool.head[answer] != OFF, axis=1)
    value = tradeoff * (1 - pool.quality[answer]) + (1 - tradeoff) * pool.cost[answer] + price * exits
    frontier = search(records, costs, method=method, regularise=price)
    for lam, believed in zip(DEFAULT_TRADEOFFS, value, strict=True):
        config = frontier.by_tradeoff[lam]
        reached = objective(records, costs, config, lam) + price * len(config.choices)
        assert reached == pytest.approx(believed, abs=1e-9)


def test_same_threshold_has_one_threshold_and_beats_a_coarse_grid():
    records, costs = synthetic(n=60)
    frontier = search(records, costs, tradeoffs=[0.7, 0.9], method="same-threshold")
    for lam in (0.7, 0.9):
        config = frontier.by_tradeoff[lam]
        assert len({choice.threshold for choice in config.choices}) == 1
        for threshold in np.linspace(0.3, 1, 30):
            exits = tuple(ExitChoice(name, "h1", threshold) for name in records.positions[1:])
            assert (
                objective(records, costs, config, lam)
                <= objective(records, costs, ExitConfig(exits), lam) + 5e-3
            )


def test_single_pass_is_greedy_from_the_front():
    """By definition: at each position the best choice with all later ones off."""
    records, costs = synthetic(n=60, p=4)
    for lam in (0.6, 0.85):
        chosen = ()
        for p in range(4):
            options = [chosen + ((choice,) if choice else ()) for choice in every_choice(records, p)]
            chosen = min(options, key=lambda o: objective(records, costs, ExitConfig(o), lam))
        config = search(records, costs, tradeoffs=[lam], method="single-pass").by_tradeoff[lam]
        assert objective(records, costs, config, lam) == pytest.approx(
            objective(records, costs, ExitConfig(chosen), lam), abs=1e-9
        )


@pytest.mark.parametrize("method", REFERENCES)
def test_reference_methods_answer_each_tradeoff_alone(method):
    """As published: what one lambda finds does not help another (only the exact method shares)."""
    records, costs = synthetic(n=200)
    swept = search(records, costs, method=method)
    for lam in (0.5, 0.75, 0.9, 0.99):
        near = min(DEFAULT_TRADEOFFS, key=lambda known: abs(known - lam))
        alone = search(records, costs, method=method, tradeoffs=[near])
        assert alone.by_tradeoff[near] == swept.by_tradeoff[near]


def test_iterative_ends_where_no_single_change_helps():
    records, costs = synthetic(n=60, p=4)
    config = search(records, costs, tradeoffs=[0.85], method="iterative").by_tradeoff[0.85]
    reached = objective(records, costs, config, 0.85)
    for p, name in enumerate(records.positions):
        others = [c for c in config.choices if c.position != name]
        for choice in every_choice(records, p):
            exits = sorted(
                [*others, *([choice] if choice else [])], key=lambda c: records.positions.index(c.position)
            )
            assert objective(records, costs, ExitConfig(tuple(exits)), 0.85) >= reached - 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cap", [0, 1, 3])
def test_max_exits_is_kept_by_every_method(method, cap):
    records, costs = synthetic()
    frontier = search(records, costs, method=method, regularise=None, max_exits=cap)
    assert max(len(config.choices) for config in frontier.by_tradeoff.values()) == cap
    assert frontier.meta["max_exits"] == cap
    if cap == 0:
        assert [config.choices for config in frontier] == [()]
        assert frontier[0].expected.relative_cost == 1.0


def test_capped_exact_is_as_good_as_the_best_subset_of_positions():
    """Each subset of the places searched on its own, exactly as far as that goes; within 0.1 % of J."""
    records, costs = synthetic(n=80, p=5, c=1)
    lambdas = [0.6, 0.8, 0.95]
    capped = search(records, costs, tradeoffs=lambdas, regularise=None, max_exits=2).by_tradeoff
    for lam in lambdas:
        lowest = np.inf
        for places in combinations(range(1, 5), 2):
            exists = np.zeros_like(records.exists)
            exists[list(places)] = True
            part = make_records(records.confidence, records.quality, records.final_quality, exists)[0]
            config = search(part, costs, tradeoffs=[lam], regularise=None).by_tradeoff[lam]
            lowest = min(lowest, objective(records, costs, config, lam))
        assert objective(records, costs, capped[lam], lam) <= lowest * 1.001


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


def test_auto_prefers_one_threshold_where_that_holds_out_better(monkeypatch):
    module = sys.modules["offramp.search"]  # the package has a function there
    monkeypatch.setattr(module, "_PRICES", (0.0,))
    monkeypatch.setattr(module, "shrunk", lambda records: records)  # the choice alone is under test
    # The confidence is the probability of being right, at every exit: one threshold is the right answer.
    rng = np.random.default_rng(0)
    confidence = rng.random((8, 1, 60), np.float32)
    quality = (rng.random((8, 1, 60)) < confidence).astype(np.float32)
    records, costs = make_records(confidence, quality, np.ones(60))
    seen = []
    frontier = search(records, costs, tradeoffs=[0.6, 0.7, 0.8], progress=lambda *step: seen.append(step))
    assert frontier.meta["chosen"] == {"method": "same-threshold", "price": 0.0}
    assert all(len({c.threshold for c in config.choices}) <= 1 for config in frontier)
    assert seen[-1][0] == seen[-1][1]


def test_auto_with_too_few_samples_takes_the_highest_price():
    records, costs = synthetic(n=19)
    assert search(records, costs, tradeoffs=[0.8]).meta["chosen"] == {"method": "exact", "price": 0.008}


def test_by_tradeoff_meta_and_progress():
    records, costs = synthetic(n=100)
    seen = []
    frontier = search(records, costs, tradeoffs=[0.9, 0.55, 0.9], progress=lambda *step: seen.append(step))
    assert list(frontier.by_tradeoff) == [0.9, 0.55]
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))
    assert {total for _, total in seen} == {seen[-1][1]}
    assert frontier.meta["samples"] == 100
    assert frontier.meta["unit"] == "macs"
    assert frontier.meta["method"] == "exact"
    assert frontier.meta["regularise"] == "auto"
    assert Frontier.from_json(frontier.to_json()) == frontier
    assert search(records, costs, tradeoffs=[0.9], regularise=np.float32(0.5)).meta["regularise"] == 0.5
    assert search(records, costs, tradeoffs=[0.9], regularise=None).meta["regularise"] is None
    assert search(records, costs, tradeoffs=[0.9], regularise=0).meta["regularise"] == 0


def test_default_tradeoffs():
    records, costs = synthetic(n=50, p=3)
    frontier = search(records, costs, regularise=None)
    assert tuple(frontier.by_tradeoff) == DEFAULT_TRADEOFFS
    assert (DEFAULT_TRADEOFFS[0], DEFAULT_TRADEOFFS[-1], len(set(DEFAULT_TRADEOFFS))) == (0.5, 1.0, 101)


@pytest.mark.parametrize("regularise", [None, "auto"])
def test_same_seed_same_frontier(regularise):
    records, costs = synthetic(n=150)
    first, again = (search(records, costs, regularise=regularise, seed=3) for _ in range(2))
    assert first.to_json() == again.to_json()


def test_escapes_stay_within_their_budget(monkeypatch):
    records, costs = synthetic()
    free = search(records, costs, regularise=None)
    for cells in (0, 60 * 5 * 2 * 400):
        monkeypatch.setattr("offramp.methods._ESCAPE_CELLS", cells)
        tight = search(records, costs, regularise=None)
        for lam in DEFAULT_TRADEOFFS:
            assert len(tight.by_tradeoff[lam].choices) <= 5
        total = [
            sum(objective(records, costs, f.by_tradeoff[lam], lam) for lam in DEFAULT_TRADEOFFS)
            for f in (free, tight)
        ]
        assert total[0] <= total[1] + 1e-9


def test_bounds_on_sweeps_and_rounds_only_end_early(monkeypatch):
    records, costs = synthetic(n=100)
    free = search(records, costs, tradeoffs=[0.7, 0.9], regularise=None)
    monkeypatch.setattr("offramp.lines._SWEEPS", 1)
    monkeypatch.setattr("offramp.methods._ROUNDS", 1)
    early = search(records, costs, tradeoffs=[0.7, 0.9], regularise=None)
    for lam in (0.7, 0.9):
        reached = [objective(records, costs, f.by_tradeoff[lam], lam) for f in (free, early)]
        assert reached[0] <= reached[1] + 1e-9 <= 1 - lam


def test_batch_size_changes_nothing(monkeypatch):
    records, costs = synthetic(n=100)
    whole = search(records, costs, regularise=None)
    monkeypatch.setattr("offramp.lines._CELLS", 1)
    assert search(records, costs, tradeoffs=[0.7, 0.9], regularise=None).by_tradeoff.keys() == {0.7, 0.9}
    assert search(records, costs, regularise=None).to_json() == whole.to_json()


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


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_threshold_parts_two_neighbours(a, b):
    lower, upper = np.float32(min(a, b)), np.float32(max(a, b))
    if lower < upper:
        threshold = threshold_between(lower, upper)
        assert threshold == np.float32(threshold)
        assert upper > np.float32(threshold)
        assert not lower > np.float32(threshold)
    assert threshold_between(np.float32(-np.inf), upper) == -np.inf


def test_threshold_is_the_midpoint_where_there_is_one():
    assert threshold_between(np.float32(0.25), np.float32(0.75)) == 0.5
    one = np.float32(1)
    below = np.nextafter(one, np.float32(0))
    assert threshold_between(below, one) == float(below)


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tradeoffs": []}, r"at least one value, all in \[0, 1\], got none; leave it out"),
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
    ],
)
def test_errors_say_what_to_do(arguments, message):
    records, costs = synthetic(n=20)
    with pytest.raises(InputError, match=message):
        search(records, costs, **arguments)


def test_records_and_costs_must_match():
    records, costs = synthetic(n=20)
    with pytest.raises(InputError, match="measure and record the same network"):
        search(records, synthetic(n=20, p=4)[1])
    with pytest.raises(InputError, match="at least one sample"):
        search(records.subset(np.zeros(0, int)), costs)
