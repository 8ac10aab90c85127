"""Few exits and steady thresholds: the rule recomputed, and what averaging must keep."""

import numpy as np
import pytest

from instances import every_choice, generated, make_records, objective_of_each, random_case, synthetic
from offramp.core.config import ExitConfig
from offramp.core.evaluate import evaluate
from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.kernels import OFF
from offramp.solver.line_search import own_line
from offramp.solver.problem import Problem
from offramp.solver.pruning import PRICE_PATH, SELECTION_BIAS, parsimonious, path, significant_exits
from offramp.solver.search import DEFAULT_TRADEOFFS, search
from offramp.solver.solve import METHODS, SearchPlan, exits_of, place, solve, with_common_threshold

LAMBDAS = [0.6, 0.8, 0.95]


def quick_candidates(records, costs):
    """What a short search without prices meets, and the objectives it had."""
    objectives = Objectives(np.array(LAMBDAS), np.zeros(len(LAMBDAS)), 99)
    candidates = CandidateSet(Problem.of(records, costs))
    for step in METHODS["exact"][:-1]:
        step(objectives, candidates)
    return candidates, objectives


def standard_errors(difference):
    """How many of them a mean difference is above 0."""
    error = difference.std() / np.sqrt(difference.size)
    if error == 0:
        return np.inf if difference.mean() > 0 else -np.inf
    return difference.mean() / error


def missed(records, costs, config, lam, against=None):
    """(E,) by how many standard errors J is worse without each exit, against the configuration or another."""
    reference = objective_of_each(records, costs, against or config, lam)
    found = []
    for i in range(len(config.choices)):
        without = ExitConfig(config.choices[:i] + config.choices[i + 1 :])
        found.append(standard_errors(objective_of_each(records, costs, without, lam) - reference))
    return found


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("make", [synthetic, generated])
def test_deserving_exits_are_missed_by_more_than_one_standard_error(lam, make):
    records, costs = make(n=300, seed=3) if make is synthetic else make(3, 300, positions=6, heads=2)
    config = search(records, costs, tradeoffs=[lam], regularise=None).by_tradeoff[lam]
    candidates = CandidateSet(Problem.of(records, costs))
    (head,), (prefix,) = place(candidates.problem, [config.choices])
    before = head.copy(), prefix.copy()
    kept = significant_exits(candidates.problem, lam, head, prefix)
    assert (head == before[0]).all()
    assert (prefix == before[1]).all()
    # By definition: switch off the least missed one until all are missed.
    while config.choices and min(missed(records, costs, config, lam)) <= 1:
        least = int(np.argmin(missed(records, costs, config, lam)))
        config = ExitConfig(config.choices[:least] + config.choices[least + 1 :])
    (at,) = candidates.add(kept[0][None], kept[1][None])
    found = ExitConfig(exits_of(candidates, int(at)))
    assert [c.position for c in found.choices] == [c.position for c in config.choices]
    assert (evaluate(records, costs, found).position == evaluate(records, costs, config).position).all()


@pytest.mark.parametrize(("gains", "stays"), [(30, True), (14, False), (11, False), (0, False)])
def test_an_exit_stays_for_more_than_one_standard_error_and_not_for_less(gains, stays):
    """At lambda 1 only quality counts. All 200 leave; ``gains`` are right here alone, 10 at the end alone."""
    quality, final = np.zeros((2, 1, 200)), np.zeros(200)
    quality[0, 0, :gains] = 1
    final[200 - 10 :] = 1
    records, costs = make_records(np.full((2, 1, 200), 0.5), quality, final)
    head, _ = significant_exits(Problem.of(records, costs), 1.0, np.array([0, OFF]), np.array([200, 0]))
    difference = quality[0, 0] - final
    assert (standard_errors(difference) > 1) == stays
    assert (head[0] != OFF) == stays


def test_an_exit_that_changes_nothing_or_for_all_alike():
    """No spread, no standard error: kept if it is better at all."""
    records, costs = make_records(np.full((2, 1, 9), 0.5), np.ones((2, 1, 9)), np.ones(9))
    problem = Problem.of(records, costs)
    head, prefix = np.array([0, OFF]), np.array([9, 0])
    assert significant_exits(problem, 0.5, head, prefix)[0].tolist() == [0, OFF]
    assert significant_exits(problem, 1.0, head, prefix)[0].tolist() == [OFF, OFF]  # cost has no weight
    assert significant_exits(problem, 0.5, np.array([OFF, OFF]), np.array([0, 0]))[0].tolist() == [OFF, OFF]


@pytest.mark.parametrize("seed", range(6))
def test_a_weighted_line_counts_samples_as_often_as_they_are_drawn(seed):
    """The same cut as on records in which each sample occurs as often as its weight says."""
    records, costs = random_case(seed, 2, 2, 10, gaps=0)
    rng = np.random.default_rng(seed)
    weight = np.bincount(rng.integers(0, 10, 10), minlength=10)
    drawn = records.subset(np.repeat(np.arange(10), weight))
    problem = Problem.of(records, costs)
    lam, scale = 0.9, records.final_quality.astype(float).mean() or 1
    candidates = CandidateSet(problem)
    for p, position in problem.used:
        for own in range(len(position.heads)):
            start = position.prefix_near(own, 3)
            if not start:
                continue
            objectives = Objectives(np.array([lam]), np.zeros(1), 99)
            head, prefix = np.full((1, 2), OFF), np.zeros((1, 2), np.int64)
            head[0, p], prefix[0, p] = own, start
            continue_cost = (1 - lam) - lam * problem.final[None]
            line = own_line(
                candidates.batch(objectives, np.array([0]), head, prefix), p,
                np.ones((1, 10), bool), continue_cost,
                weight=weight,
            )  # fmt: skip
            prefix[0, p] = line.prefix[0]
            (at,) = candidates.add(head, prefix)
            reached = cost_of(drawn, costs, ExitConfig(exits_of(candidates, int(at))), lam, scale)
            every = [
                cost_of(drawn, costs, ExitConfig((choice,)), lam, scale)
                for choice in every_choice(records, p)[1:]
                if choice.head == records.heads[position.heads[own]]
                and position.prefix_at(own, choice.threshold)  # it stays on
            ]
            assert line.head.tolist() == [own]
            assert reached == pytest.approx(min(every), abs=1e-9)
            prefix[0, p] = start
            (at,) = candidates.add(head, prefix)
            before = cost_of(drawn, costs, ExitConfig(exits_of(candidates, int(at))), lam, scale)
            assert line.improvement[0] == pytest.approx(before - reached, abs=1e-9)


def cost_of(records, costs, config, lam, scale):
    outcome = evaluate(records, costs, config)
    return (1 - lam) * outcome.relative_cost - lam * outcome.quality / scale


def test_averaging_keeps_the_exits_and_depends_on_the_seed_alone():
    records, costs = synthetic(n=300)
    found = []
    for average, seed in ((True, 0), (True, 0), (True, 1), (False, 0)):
        candidates, objectives = quick_candidates(records, costs)
        priced = Objectives(objectives.tradeoff, np.full(3, SELECTION_BIAS / 300), 99)
        picks = parsimonious(priced, candidates, seed, average)
        found.append((candidates.head[picks].tolist(), candidates.prefix[picks].tolist()))
    assert found[0] == found[1]
    assert found[0][0] == found[2][0] == found[3][0]
    assert found[0][1] != found[2][1]
    assert found[0][1] != found[3][1]


def test_averaged_thresholds_fit_ties():
    """Cuts in the middle of a tie have no threshold; the next that has one is taken."""
    for seed in range(6):
        records, costs = random_case(seed, 4, 2, 40, levels=5, gaps=0.1)
        candidates, objectives = quick_candidates(records, costs)
        picks = parsimonious(objectives, candidates, 0)
        for i in picks.tolist():
            for p, position in candidates.problem.used:
                if candidates.head[i, p] != OFF:
                    assert (
                        position.prefix_near(int(candidates.head[i, p]), int(candidates.prefix[i, p]))
                        == candidates.prefix[i, p]
                    )
            outcome = evaluate(records, costs, ExitConfig(exits_of(candidates, i)))
            assert candidates.cost[i] == pytest.approx(outcome.relative_cost)


def test_a_path_finds_fewer_exits_at_every_price():
    records, costs = synthetic(n=200)
    candidates, objectives = quick_candidates(records, costs)
    before = len(candidates.cost)
    picks = path(objectives, candidates)
    assert (picks == candidates.best(objectives)[0]).all()
    counts = []
    for price_step in PRICE_PATH:
        best = candidates.best(Objectives(objectives.tradeoff, np.full(3, price_step / 200), 99))[0]
        counts.append(np.count_nonzero(candidates.head[best] != OFF))
    assert counts == sorted(counts, reverse=True)
    assert len(candidates.cost) >= before


def test_auto_uses_no_more_exits_than_needed():
    """Without any one of them J is more than a standard error above the best there is."""
    for seed in range(3):
        records, costs = synthetic(n=400, seed=seed)
        plan = SearchPlan("exact", SELECTION_BIAS / 400, 99, parsimonious=True)
        solved, best = (
            [ExitConfig(exits_of(candidates, i)) for i in picks.tolist()]
            for candidates, picks in (
                solve(Problem.of(records, costs), costs, p, LAMBDAS)
                for p in (plan, SearchPlan("exact", 0.0, 99))
            )
        )
        for lam, config, against in zip(LAMBDAS, solved, best, strict=True):
            assert len(config.choices) <= len(against.choices)
            assert min(missed(records, costs, config, lam, against), default=9) > 1


@pytest.mark.parametrize("make", [synthetic, generated])
def test_one_threshold_for_all_uses_no_more_exits_than_needed(make):
    """Without any one of them J is more than a standard error above the best there is."""
    records, costs = make(n=500, seed=1) if make is synthetic else make(1, 500, positions=8, heads=2)
    lambdas = list(DEFAULT_TRADEOFFS[:-1:10])
    plan = SearchPlan("exact", SELECTION_BIAS / 500, 99)
    best, _ = solve(Problem.of(records, costs), costs, plan, lambdas)
    against = best.best(Objectives(np.array(lambdas), np.zeros(len(lambdas)), 99))[0]
    common, picks = with_common_threshold(best, plan, lambdas)
    gone = 0
    for lam, i, j in zip(lambdas, picks.tolist(), against.tolist(), strict=True):
        config = ExitConfig(exits_of(common, i))
        assert len({choice.threshold for choice in config.choices}) <= 1
        reference = ExitConfig(exits_of(best, j))
        assert min(missed(records, costs, config, lam, reference), default=9) > 1
        gone += len(records.positions) - 1 - len(config.choices)
    assert gone > 0
