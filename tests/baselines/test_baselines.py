"""Baselines against brute force, against their definitions sample by sample, and against the search."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp.baselines import stepwise
from offramp.baselines.derived_records import entropy_records, patience_records
from offramp.baselines.published import GRID, brent_iterative, brent_single_pass, greedy_grid
from offramp.baselines.rules import entropy_thresholds, patience, same_threshold, single_exit
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.core.records import ExitRecords
from offramp.errors import InputError, MissingExtraError
from offramp.solver.search import search
from offramp.tasks.confidence import get_confidence
from progress import steps_shown

LAMBDAS = (0.0, 0.5, 0.8, 0.95, 1.0)


def case(seed, p=4, c=2, n=40, *, levels=8, gaps=0.25, classes=3):
    """Outputs decide; few confidence levels make ties; gaps are missing heads and confidences not finite."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(p, c, n, classes)) + np.linspace(0, 2, p)[:, None, None, None] * (
        labels[:, None] == np.arange(classes)
    )
    logits = logits.astype(np.float32)
    exists = rng.random((p, c)) > gaps
    exists[0], exists[-1, 0] = False, True
    quality = (logits.argmax(axis=3) == labels).astype(np.float32)
    probability = np.exp(logits - logits.max(axis=3, keepdims=True))
    probability = (probability / probability.sum(axis=3, keepdims=True)).max(axis=3)
    confidence = np.round(probability * levels) / levels
    wrong = rng.random(confidence.shape) < gaps / 5
    confidence[wrong] = rng.choice([np.nan, np.inf, -np.inf], np.count_nonzero(wrong))
    confidence[~exists], quality[~exists] = np.nan, np.nan
    final = (rng.random(n) < 0.9).astype(np.float32)
    names = ("input", *(f"p{i}" for i in range(1, p)))
    heads = tuple(f"h{i}" for i in range(c))
    records = ExitRecords(confidence, quality, final, exists, names, heads, logits=logits)
    backbone = np.concatenate([[0.0], np.cumsum(rng.uniform(0.5, 1.5, p))])
    return records, CostTable(backbone, rng.uniform(0, 0.2, (p, c)) * exists, "macs")


def objective(records, costs, config, lam):
    """J from evaluate."""
    outcome = evaluate(records, costs, config)
    full = records.final_quality.astype(float).mean()
    return lam * (full - outcome.quality) / (full or 1) + (1 - lam) * outcome.relative_cost


def by_definition(records, costs, config):
    """Quality and cost, sample by sample, from nothing but the definition."""
    chosen = {choice.position: choice for choice in config.choices}
    quality = cost = 0.0
    for n in range(records.samples):
        paid, answer = 0.0, None
        for p, name in enumerate(records.positions):
            if answer is None and name in chosen:
                c = records.heads.index(chosen[name].head)
                paid += costs.heads[p, c]
                sure = records.confidence[p, c, n]
                if np.isfinite(sure) and sure > np.float32(chosen[name].threshold):
                    answer = records.quality[p, c, n]
                    paid += costs.backbone[p]
        if answer is None:
            answer, paid = records.final_quality[n], paid + costs.backbone[-1]
        quality, cost = quality + answer, cost + paid
    return quality / records.samples, cost / records.samples


def thresholds(records, places):
    values = np.concatenate([records.confidence[p, c] for p, c in places])
    return [-np.inf, *np.unique(values[np.isfinite(values)]).tolist()]


def common(records, places, threshold):
    return ExitConfig(tuple(ExitChoice(records.positions[p], records.heads[c], threshold) for p, c in places))


def lowest(records, costs, lineups, lam):
    """The lowest J of the full model and of every line-up with every common threshold."""
    every = [common(records, places, t) for places in lineups for t in thresholds(records, places)]
    return min(objective(records, costs, config, lam) for config in [ExitConfig(), *every])


def kinds(records):
    p, c = records.exists.shape
    return [[(i, k) for i in range(p) if records.exists[i, k]] for k in range(c)]


ALL = {
    "same threshold": same_threshold,
    "single exit": single_exit,
    "greedy grid": greedy_grid,
    "Brent, single pass": brent_single_pass,
    "Brent, iterative": brent_iterative,
    "Brent, iterative, incremental": lambda *a: brent_iterative(*a, incremental=True),
}
PLAIN = pytest.mark.parametrize("baseline", ALL.values(), ids=ALL)


@PLAIN
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_true_and_exact_search_is_never_worse(baseline, seed):
    records, costs = case(seed, n=60, levels=10**6)
    exact = search(records, costs, tradeoffs=LAMBDAS, regularise=None).by_tradeoff
    for lam, config in baseline(records, costs, LAMBDAS).items():
        quality, cost = by_definition(records, costs, config)
        assert config.expected.quality == pytest.approx(quality, abs=1e-12)
        assert config.expected.cost == pytest.approx(cost, abs=1e-9)
        assert config.tradeoff == lam
        assert objective(records, costs, exact[lam], lam) <= objective(records, costs, config, lam) + 1e-9
        assert objective(records, costs, config, lam) <= 1 - lam + 1e-9  # the full model


@pytest.mark.parametrize("seed", range(6))
def test_same_threshold_equals_brute_force(seed):
    records, costs = case(seed, levels=8 if seed % 2 else 10**6, n=30)
    mean = np.where(records.exists, records.quality.mean(axis=2), -1)
    best = [(p, int(mean[p].argmax())) for p in range(4) if records.exists[p].any()]
    for lam, config in same_threshold(records, costs, LAMBDAS).items():
        assert len({choice.threshold for choice in config.choices}) <= 1
        expected = lowest(records, costs, [*kinds(records), best], lam)
        assert objective(records, costs, config, lam) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_single_exit_equals_brute_force(seed):
    records, costs = case(seed, levels=8 if seed % 2 else 10**6)
    lineups = [[(p, c)] for p, c in np.argwhere(records.exists).tolist()]
    for lam, config in single_exit(records, costs, LAMBDAS).items():
        assert len(config.choices) <= 1
        expected = lowest(records, costs, lineups, lam)
        assert objective(records, costs, config, lam) == pytest.approx(expected, abs=1e-9)


def test_thresholds_lie_between_the_confidences_they_part():
    confidence = np.array([[[0.0] * 4], [[0.2, 0.4, 0.8, 0.8]]])
    records = ExitRecords(
        confidence, confidence > 0.5, np.ones(4), [[False], [True]], ("input", "p1"), ("h",)
    )
    costs = CostTable(np.array([0, 1, 2.0]), np.zeros((2, 1)), "macs")
    assert single_exit(records, costs, [0.9])[0.9].choices == (ExitChoice("p1", "h", np.float32(0.6)),)
    assert single_exit(records, costs, [0.1])[0.1].choices == (ExitChoice("p1", "h", -np.inf),)
    near = np.float32(0.8) - np.float32(2**-24)  # its neighbour: there is nothing between
    close = replace(records, confidence=np.array([[[0.0] * 4], [[0.2, near, 0.8, 0.8]]]))
    assert single_exit(close, costs, [0.9])[0.9].choices == (ExitChoice("p1", "h", near),)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_grid_by_definition(seed):
    records, costs = case(seed)
    for lam, config in greedy_grid(records, costs, LAMBDAS).items():
        chosen = ()
        for p, name in enumerate(records.positions):
            heads = [h for h, there in zip(records.heads, records.exists[p], strict=True) if there]
            options = [chosen, *((*chosen, ExitChoice(name, h, t)) for h in heads for t in GRID)]
            chosen = min(
                options, key=lambda o: objective(records, costs, ExitConfig(o), lam) + 1e-12 * len(o)
            )
        expected = objective(records, costs, ExitConfig(chosen), lam)
        assert objective(records, costs, config, lam) == pytest.approx(expected, abs=1e-9)
        assert {choice.threshold for choice in config.choices} <= {float(np.float32(t)) for t in GRID}


def test_greedy_grid_takes_other_thresholds():
    records, costs = case(0)
    config = greedy_grid(records, costs, [0.0], grid=[-np.inf])[0.0]
    assert {choice.threshold for choice in config.choices} == {-np.inf}


def brent(function, low, high):
    from scipy.optimize import fminbound

    return float(np.float32(fminbound(function, low, high)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_brent_single_pass_by_definition(seed, shift):
    records, costs = case(seed)
    records = replace(records, confidence=records.confidence - shift)  # bounds follow the confidences
    for lam, config in brent_single_pass(records, costs, [0.5, 0.9]).items():
        chosen = ()
        for p, c in np.argwhere(records.exists).tolist():
            before = tuple(x for x in chosen if x.position != records.positions[p])

            def value(t, p=p, c=c, before=before, lam=lam):
                choice = ExitChoice(records.positions[p], records.heads[c], t)
                return objective(records, costs, ExitConfig((*before, choice)), lam)

            t = brent(value, -3.0 if shift else 0.0, 1.0)
            if value(t) < objective(records, costs, ExitConfig(chosen), lam) - 1e-10:
                chosen = (*before, ExitChoice(records.positions[p], records.heads[c], t))
        # equal values may be summed in another order, so the search may end elsewhere on a plateau
        expected = objective(records, costs, ExitConfig(chosen), lam)
        assert objective(records, costs, config, lam) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_incremental_and_simulated_changes_are_the_same(seed):
    records, costs = case(seed, p=5, n=80, levels=10**6)
    whole = brent_iterative(records, costs, [0.5, 0.8, 0.95])
    quick = brent_iterative(records, costs, [0.5, 0.8, 0.95], incremental=True)
    for lam, config in whole.items():
        assert quick[lam].expected == config.expected
        assert [c.position for c in quick[lam].choices] == [c.position for c in config.choices]


def test_iterative_makes_the_best_single_change_each_round():
    records, costs = case(1, p=5, n=80, levels=10**6)
    values = [
        objective(records, costs, brent_iterative(records, costs, [0.8], rounds=r)[0.8], 0.8)
        for r in (0, 1, 2, 1000)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(0.2)
    assert values[3] < values[1] < values[0]
    reached = []
    for p, c in np.argwhere(records.exists).tolist():

        def value(t, p=p, c=c):
            return objective(records, costs, common(records, [(p, c)], t), 0.8)

        reached.append(value(brent(value, 0, 1)))
    assert values[1] == pytest.approx(min(reached), abs=1e-12)


@pytest.mark.parametrize("incremental", [False, True])
def test_iterative_switches_exits_off_again(incremental):
    """A case found by trying seeds: the first exit chosen becomes useless once others are there."""
    records, costs = case(11, p=6, n=60, levels=10**6, gaps=0.1)
    costs = replace(costs, heads=4 * costs.heads)
    before, after, end = (
        brent_iterative(records, costs, [0.7], rounds=r, incremental=incremental)[0.7] for r in (5, 6, 1000)
    )
    assert {c.position for c in before.choices} - {c.position for c in after.choices} == {"p2"}
    values = [objective(records, costs, config, 0.7) for config in (before, after, end)]
    assert values[0] > values[1] > values[2]


# ------------------------------------------------------------------------------------- entropy and patience


def test_entropy_is_that_of_the_registered_confidence():
    records, _ = case(0)
    derived = entropy_records(records)
    for p, c in np.argwhere(records.exists).tolist():
        expected = get_confidence("entropy")(torch.from_numpy(records.logits[p, c])).numpy()
        np.testing.assert_allclose(derived.confidence[p, c], expected, atol=1e-6)
    assert derived.quality is records.quality


def test_entropy_of_outputs_that_are_not_finite_never_exits():
    records, costs = case(0)
    records.logits[-1, 0, :3] = [[np.nan, 0, 0], [np.inf, 0, 0], [-np.inf, 0, 0]]
    derived = entropy_records(records)
    assert not np.isfinite(derived.confidence[-1, 0, :3]).any()
    config = common(records, [(3, 0)], -np.inf)
    assert (evaluate(derived, costs, config).position[:3] == 4).all()


def test_entropy_thresholds_are_the_same_threshold_of_the_entropy():
    records, costs = case(2)
    derived = entropy_records(records)
    assert entropy_thresholds(records, costs, LAMBDAS) == same_threshold(derived, costs, LAMBDAS)


def by_patience(records, costs, c, k):
    """Quality and cost if a sample leaves when k exits of kind c in a row agree: sample by sample."""
    quality = cost = 0.0
    for n in range(records.samples):
        paid, run, last, answer = 0.0, 0, None, None
        for p in np.flatnonzero(records.exists[:, c]):
            paid += costs.heads[p, c]
            if not np.isfinite(records.confidence[p, c, n]):
                run, last = 0, None
                continue
            said = int(records.logits[p, c, n].argmax())
            run, last = (run + 1 if said == last else 1), said
            if run >= k:
                answer, paid = records.quality[p, c, n], paid + costs.backbone[p]
                break
        if answer is None:
            answer, paid = records.final_quality[n], paid + costs.backbone[-1]
        quality, cost = quality + answer, cost + paid
    return quality / records.samples, cost / records.samples


@pytest.mark.parametrize("seed", range(4))
def test_patience_by_definition(seed):
    records, costs = case(seed, p=6, n=30)
    derived = patience_records(records)
    options = {(c, k): by_patience(records, costs, c, k) for c in range(2) for k in range(1, 6)}
    for (c, k), (quality, cost) in options.items():
        places = [(p, c) for p in range(6) if records.exists[p, c]]
        outcome = evaluate(derived, costs, common(records, places, k - 0.5))
        assert (outcome.quality, outcome.cost) == pytest.approx((quality, cost), abs=1e-9)
    full = float(records.final_quality.mean())
    for lam, config in patience(records, costs, LAMBDAS).items():
        values = [
            lam * (full - quality) / full + (1 - lam) * cost / costs.full
            for quality, cost in options.values()
        ]
        assert objective(derived, costs, config, lam) == pytest.approx(min(*values, 1 - lam), abs=1e-6)


def test_patience_counts_agreeing_exits():
    classes = np.array([[9, 9, 9], [1, 1, 1], [1, 2, 1], [1, 2, 1], [0, 2, 1]])[:, None]
    confidence = np.full((5, 1, 3), 0.5)
    confidence[2, 0, 2] = np.nan
    exists = [[False], [True], [True], [True], [True]]
    names = ("input", "a", "b", "c", "d")
    records = ExitRecords(confidence, np.ones((5, 1, 3)), np.ones(3), exists, names, ("h",))
    count = patience_records(records, classes).confidence[1:, 0].T.tolist()
    assert count == [[1, 2, 3, 1], [1, 1, 2, 3], [1, -np.inf, 1, 2]]
    costs = CostTable(np.arange(6.0), np.zeros((5, 1)), "macs")
    chosen = patience(records, costs, [0.1], predictions=classes)[0.1]
    assert [choice.position for choice in chosen.choices] == ["a", "b", "c", "d"]
    assert evaluate(patience_records(records, classes), costs, chosen).position.tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------ hard records, errors


@PLAIN
def test_no_head_anywhere_is_the_full_model(baseline):
    records, costs = case(0)
    records = replace(records, exists=np.zeros_like(records.exists))
    assert [config.choices for config in baseline(records, costs, [0.0, 1.0]).values()] == [(), ()]


@PLAIN
def test_confidences_that_are_not_finite_never_exit(baseline):
    records, costs = case(0)
    records = replace(records, confidence=np.full_like(records.confidence, np.nan))
    assert [config.choices for config in baseline(records, costs, [0.5]).values()] == [()]


@PLAIN
def test_a_full_model_that_is_always_wrong(baseline):
    records, costs = case(1, levels=10**6)
    records = replace(records, final_quality=np.zeros(40))
    found = baseline(records, costs, [0.5])[0.5]
    assert found.expected.quality > 0
    assert objective(records, costs, found, 0.5) < 0.5


def test_progress(monkeypatch):
    records, costs = case(0)
    for baseline in (brent_single_pass, brent_iterative):
        seen = steps_shown(monkeypatch, stepwise)
        baseline(records, costs, [0.9, 0.5, 0.9])
        assert seen == [(1, 2), (2, 2)]


@PLAIN
@pytest.mark.parametrize(
    ("tradeoffs", "message"),
    [
        ([], r"at least one value, all in \[0, 1\], got none; near 1 buys quality"),
        ([0.5, 1.5], r"all in \[0, 1\], got \[1.5\]"),
        ([float("nan")], r"got \[nan\]"),
        (0.5, r"several numbers in \[0, 1\], got 0.5; give a list such as \[0.8, 0.9\]"),
        (["much"], r"got \['much'\]"),
    ],
)
def test_tradeoffs_are_checked(baseline, tradeoffs, message):
    with pytest.raises(InputError, match=message):
        baseline(*case(0), tradeoffs)


@PLAIN
def test_records_and_costs_must_match(baseline):
    with pytest.raises(InputError, match="measure and record the same network"):
        baseline(case(0)[0], case(0, p=5)[1], [0.5])


@pytest.mark.parametrize("grid", [[], [float("nan")], ["much"], 0.5])
def test_the_grid_is_checked(grid):
    with pytest.raises(InputError, match=r"at least one threshold, all numbers, got .*; leave it out"):
        greedy_grid(*case(0), [0.5], grid=grid)


@pytest.mark.parametrize("rounds", [-1, 1.5, True])
def test_rounds_are_checked(rounds):
    with pytest.raises(InputError, match=f"rounds={rounds}.*whole number of at least 0; leave it out"):
        brent_iterative(*case(0), [0.5], rounds=rounds)


def test_outputs_are_needed_for_entropy_and_patience():
    records, costs = case(0)
    without, single = replace(records, logits=None), replace(records, logits=records.logits[..., :1])
    with pytest.raises(InputError, match=r"entropy_records: .*two outputs per exit, got none; .*keep_logits"):
        entropy_thresholds(without, costs, [0.5])
    with pytest.raises(InputError, match=r"got a single one; .* classifier with keep_logits=True$"):
        entropy_records(single)
    with pytest.raises(InputError, match=r"patience_records: .*keep_logits=True or give predictions"):
        patience(without, costs, [0.5])
    with pytest.raises(
        InputError, match=r"expected shape \(4, 2, 40\), got \(4, 2\); give one class for each"
    ):
        patience_records(records, np.zeros((4, 2)))


def test_without_scipy_brent_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    for baseline in (brent_single_pass, brent_iterative):
        with pytest.raises(MissingExtraError, match=r'run: pip install "offramp\[bench\]"'):
            baseline(*case(0), [0.5])


def test_neither_torch_nor_scipy_is_imported():
    script = "import sys, offramp.baselines; print(sorted({'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
