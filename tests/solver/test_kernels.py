"""The inner loops three ways, with identical bits: as plain Python, as machine code, and with NumPy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from instances import LAMBDAS, REFERENCES, make_records, random_case, random_exits, synthetic
from offramp.core.evaluate import evaluate
from offramp.solver import kernels
from offramp.solver.kernels import BACKWARD, BEST, FORWARD, NO_NUMBA, OWN, WEIGHTED
from offramp.solver.line_search import ConfigBatch, best_line, own_line, per_sample, simulate
from offramp.solver.problem import FEW, Problem
from offramp.solver.search import search

pytest.importorskip("numba")

SEEDS = st.integers(0, 10**6)
KINDS = ("binary", "few", "many")
MODES = (BEST, OWN, WEIGHTED, FORWARD, BACKWARD)
WAYS = ("plain", "compiled", "numpy")


@pytest.fixture(autouse=True)
def no_switch(monkeypatch):
    monkeypatch.delenv(NO_NUMBA, raising=False)


def case(seed, kind, n=None):
    """Few samples of every awkward kind; quality of 2, of at most 5 or of many values."""
    rng = np.random.default_rng(seed)
    p, n = int(rng.integers(1, 5)), n or int(rng.integers(1, 9))
    levels, gaps = int(rng.choice([2, 4, 10**6])), float(rng.choice([0, 0.3]))
    records, costs = random_case(seed, p, 2, n, levels=levels, binary=kind == "binary", gaps=gaps)
    if kind == "many":
        quality = np.where(np.isnan(records.quality), np.nan, rng.random(records.quality.shape))
        records = replace(records, quality=quality, final_quality=rng.random(n))
    return records, costs


def some_rows(problem, seed, count=4):
    """Rows with exits whose prefixes a threshold makes, prices, and caps that may be exceeded already."""
    rng = np.random.default_rng(seed)
    head, prefix = random_exits(problem, count, rng)
    return ConfigBatch(
        problem=problem,
        head=head,
        prefix=prefix,
        tradeoff=rng.choice([*LAMBDAS, 0.61803], count),
        price=rng.choice([0.0, 0.003, 0.1], count),
        cap=rng.choice([0, 1, 2, 99], count),
    )


def swept(way, rows, mode, sweeps, weight):
    """Heads and prefixes after ``sweep``, or after what it stands for."""
    rows = rows.take(slice(None))
    if way == "numpy":
        find = best_line if mode == BEST else own_line
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(NO_NUMBA, "1")
            if mode == FORWARD:
                rows.take_forward()
            elif mode == BACKWARD:
                rows.take_backward()
            else:
                rows.descend(find, sweeps, weight if mode == WEIGHTED else None)
        return rows.head.tolist(), rows.prefix.tolist()
    run = kernels.sweep if way == "plain" else kernels.compiled(kernels.sweep)
    counted = weight if mode == WEIGHTED else np.zeros(0, np.int64)
    changed = rows.head, rows.prefix
    run(rows.problem.sorted, *changed, rows.tradeoff, rows.price, rows.cap, counted, mode, sweeps)
    return rows.head.tolist(), rows.prefix.tolist()


def test_the_kinds_are_what_they_are_called():
    """The kernels work by value up to a few of them; every kind is met, with ties and without."""
    levels, ties = {}, set()
    for seed in range(30):
        for kind in KINDS:
            problem = Problem.of(*case(seed, kind))
            if problem.used:
                levels.setdefault(kind, set()).add(len(problem.sorted.levels))
                ties.add((kind, problem.sorted.fits.size > 0))
    assert 2 in levels["binary"]
    assert levels["binary"] <= {1, 2}
    assert levels["few"] <= set(range(1, FEW + 1))
    assert max(levels["few"]) == 5
    assert 0 in levels["many"]  # of some instances more than a few
    assert ties == {(kind, tied) for kind in KINDS for tied in (False, True)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, sweeps=st.sampled_from([1, 2, 3, 100]))
@settings(max_examples=12, deadline=None)
def test_sweeps_give_the_same_rows_three_ways(mode, kind, seed, sweeps):
    problem = Problem.of(*case(seed, kind))
    rows = some_rows(problem, seed)
    rng = np.random.default_rng(seed)
    weight = np.bincount(rng.integers(0, problem.samples, problem.samples), minlength=problem.samples)
    found = [swept(way, rows, mode, sweeps, weight) for way in WAYS]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_sweeps_of_more_samples_give_the_same_rows(mode, kind):
    """Enough for sums to be rounded differently if they were not of integers, and for many turns."""
    for seed in range(4):
        problem = Problem.of(*case(seed, kind, n=150))
        rows = some_rows(problem, seed, count=12)
        weight = np.bincount(np.random.default_rng(seed).integers(0, 150, 150), minlength=150)
        assert swept("compiled", rows, mode, 100, weight) == swept("numpy", rows, mode, 100, weight)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_simulation_gives_the_same_bits_three_ways(kind, seed):
    problem = Problem.of(*case(seed, kind))
    start = some_rows(problem, seed)
    b, n, found = len(start), problem.samples, []
    for way in WAYS:
        rows = start.take(slice(None))
        if way == "plain":
            total, spent = np.zeros(b, np.int64), np.zeros(b)
            leavers = np.full(rows.head.shape, 99)
            kernels.simulate(problem.sorted, rows.head, rows.prefix, total, spent, leavers)
            quality, cost = total / (problem.unit * n), spent / n
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(NO_NUMBA, "" if way == "compiled" else "1")
                quality, cost, leavers = simulate(problem, rows.head, rows.prefix)
        found.append(
            (quality.tobytes(), cost.tobytes(), leavers.tolist(), rows.head.tolist(), rows.prefix.tolist())
        )
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_samples_without_each_exit_have_the_same_bits_three_ways(kind, seed):
    problem = Problem.of(*case(seed, kind))
    rows = some_rows(problem, seed, count=2)
    for head, prefix in zip(rows.head, rows.prefix, strict=True):
        before, found = (head.copy(), prefix.copy()), []
        for way in ("compiled", "numpy"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(NO_NUMBA, "" if way == "compiled" else "1")
                each = per_sample(problem, head, prefix)
            found.append((each.quality, each.cost, each.lost, each.spared))
        exits, n = len(each.places), problem.samples
        plain = np.full(n, 9.0), np.full(n, 9.0), np.full((exits, n), 9.0), np.full((exits, n), 9.0)
        kernels.without_each(problem.sorted, head, prefix, *plain)
        found.append(plain)
        bits = [[array.tobytes() for array in arrays] for arrays in found]
        assert bits[0] == bits[1] == bits[2]
        assert head.tolist() == before[0].tolist()
        assert prefix.tolist() == before[1].tolist()


ARGUMENTS = (
    *(({}, kind) for kind in KINDS),
    *(({"regularise": None}, kind) for kind in KINDS),
    ({"regularise": 0.004}, "binary"),
    ({"max_exits": 0}, "binary"),
    ({"max_exits": 1}, "binary"),
    ({"max_exits": 1}, "many"),
    ({"max_exits": 2, "regularise": None}, "few"),
    ({"step": None}, "few"),
    ({"seed": 3, "workers": 2}, "binary"),
    *(({"method": name}, kind) for name in REFERENCES for kind in ("binary", "many")),
    *(({"method": name, "max_exits": 1}, "few") for name in REFERENCES),
)


@pytest.mark.parametrize(("arguments", "kind"), ARGUMENTS, ids=str)
def test_a_whole_search_gives_the_same_file_with_and_without_numba(monkeypatch, arguments, kind):
    for seed, n in ((1, 3), (2, 25), (3, 60)):
        records, costs = case(seed, kind, n) if n < 60 else synthetic(n=60, p=4, seed=seed)
        if n == 60 and kind != "binary":
            rng = np.random.default_rng(seed)
            share = rng.random(60) if kind == "many" else rng.integers(1, 4, 60) / 4
            records = replace(records, quality=records.quality * share, final_quality=0.5 + 0.5 * share)
        with_numba = search(records, costs, tradeoffs=LAMBDAS, **arguments).to_json()
        monkeypatch.setenv(NO_NUMBA, "1")
        assert search(records, costs, tradeoffs=LAMBDAS, **arguments).to_json() == with_numba
        monkeypatch.delenv(NO_NUMBA)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_search_gives_the_same_file_in_plain_python(monkeypatch, kind):
    records, costs = case(11, kind, n=7)
    wanted = [search(records, costs, tradeoffs=[0.5, 0.9], regularise=r).to_json() for r in ("auto", None)]
    seen = []

    def plain(function):
        seen.append(function.__name__)
        return function

    monkeypatch.setattr(kernels, "compiled", plain)
    found = [search(records, costs, tradeoffs=[0.5, 0.9], regularise=r).to_json() for r in ("auto", None)]
    assert found == wanted
    assert {"sweep", "simulate", "without_each"} <= set(seen)


@pytest.mark.parametrize("arguments", [{}, {"regularise": None}])
def test_by_value_or_by_level_it_is_the_same(monkeypatch, arguments):
    """Quality of two values, worked on as if there were many."""
    records, costs = synthetic(n=80, p=4)
    by_level = search(records, costs, tradeoffs=LAMBDAS, **arguments)
    assert len(Problem.of(records, costs).sorted.levels) == 2
    monkeypatch.setattr("offramp.solver.problem.FEW", 0)
    assert len(Problem.of(records, costs).sorted.levels) == 0
    assert search(records, costs, tradeoffs=LAMBDAS, **arguments).to_json() == by_level.to_json()


def test_at_the_border_between_levels_and_values():
    for values, levels in ((FEW, FEW), (FEW + 1, 0)):
        quality = np.resize(np.linspace(0, 1, values), (1, 1, 20))
        records, costs = make_records(np.linspace(0, 1, 20).reshape(1, 1, 20), quality, np.ones(20))
        problem = Problem.of(records, costs)
        assert len(problem.sorted.levels) == levels
        rows = some_rows(problem, 1, count=6)
        found = [swept(way, rows, BEST, 100, None) for way in WAYS]
        assert found[0] == found[1] == found[2]


def test_without_numba_search_works_and_nothing_is_compiled(monkeypatch):
    records, costs = synthetic(n=60, p=4)
    with_numba = search(records, costs, tradeoffs=LAMBDAS)

    def never(function):
        raise AssertionError("compiled, but numba is not there")

    monkeypatch.setattr(kernels, "_installed", lambda: False)
    monkeypatch.setattr(kernels, "compiled", never)
    assert not kernels.available()
    without = search(records, costs, tradeoffs=LAMBDAS)
    assert without.to_json() == with_numba.to_json()
    for config in without:
        assert config.expected.in_sample_quality == evaluate(records, costs, config).quality


def test_the_environment_switches_numba_off(monkeypatch):
    assert kernels.available()
    monkeypatch.setenv(NO_NUMBA, "1")
    assert not kernels.available()
    monkeypatch.setenv(NO_NUMBA, "")  # empty is as if it were not there
    assert kernels.available()


def test_with_numba_the_loops_of_numpy_are_not_used(monkeypatch):
    def never(*given):
        raise AssertionError("NumPy, though numba is there")

    for name in ("_descend", "forward"):
        monkeypatch.setattr(ConfigBatch, name, never)
    records, costs = synthetic(n=60, p=4)
    assert len(search(records, costs, tradeoffs=LAMBDAS)) > 5


def test_a_function_is_compiled_once_and_stays_plain_itself():
    code = kernels.compiled(kernels.simulate)
    assert kernels.compiled(kernels.simulate) is code
    assert code is not kernels.simulate
    assert code.py_func.__module__ == "offramp.solver.kernels"  # where its machine code is kept on disk
    assert kernels.one_way.__globals__["line"] is kernels.line
