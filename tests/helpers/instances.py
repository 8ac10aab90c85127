"""Records and costs for the tests of search, and answers by definition to compare with.

random_case     tiny ones with everything that is awkward; ``odd_case`` adds what costs can be
synthetic       exits that grow better with depth
random_exits    random configurations of a problem
objective       J from evaluate; ``brute_force`` and ``lowest`` the least J of all configurations
"""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path

import numpy as np

from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.core.records import ExitRecords
from offramp.solver.kernels import OFF

LAMBDAS = (0.0, 0.3, 0.8, 0.95, 1.0)
REFERENCES = ("single-pass", "iterative", "same-threshold")


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


def odd_case(seed):
    """At most 3 positions, 2 heads, 12 samples: of every kind, costs in MACs, in seconds or in fractions.

    In seconds a head costs as much as a segment. Segments and heads may cost nothing; sometimes every sample
    leaves at the input, so that none arrives later.
    """
    rng = np.random.default_rng([seed, 7])
    p, c, n = rng.integers(1, 4), rng.integers(1, 3), rng.integers(1, 13)
    levels = rng.choice([2, 4, 1000])
    records, costs = random_case(
        seed, p, c, n, levels=levels, binary=rng.random() < 0.5, gaps=rng.choice([0, 0.3])
    )
    segment = rng.choice([0.0, 1.0], p, p=[0.3, 0.7]) * rng.uniform(1e-4, 2e-3, p)
    backbone = np.concatenate([[0], np.cumsum(segment)])
    backbone[-1] += 1e-3
    in_seconds = backbone, rng.uniform(0.5, 1.5, (p, c)) * 1e-3
    in_fractions = backbone / backbone[-1], rng.choice([0, 1e-9, 0.01, 3.0], (p, c))
    chosen = (None, in_seconds, in_fractions)[seed % 3]
    if seed % 5 == 0:  # the first head is right and free for all
        confidence, quality, exists = records.confidence.copy(), records.quality.copy(), records.exists.copy()
        confidence[0, 0], quality[0, 0], exists[0, 0] = 0.5, 1.0, True
        chosen = chosen or (costs.backbone, costs.heads)
        chosen[1][0, 0] = 0
        return make_records(confidence, quality, records.final_quality, exists, chosen)
    if chosen is None:
        return records, costs
    return records, CostTable(*chosen, "seconds")


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


def generated(seed, samples, **options):
    """Records like a network's, from the benchmarks."""
    source = Path(__file__).parents[2] / "bench" / "search" / "recordsets.py"
    spec = importlib.util.spec_from_file_location("bench_recordsets", source)
    recordsets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recordsets)
    return recordsets.generated(seed, samples, **options)


def objective(records, costs, config, lam):
    """J from evaluate, independently of what the search believes."""
    outcome = evaluate(records, costs, config)
    full = records.final_quality.astype(float).mean()
    return lam * (full - outcome.quality) / (full or 1) + (1 - lam) * outcome.relative_cost


def objective_of_each(records, costs, config, lam):
    """(N,) J of each sample, its mean is ``objective``; from where evaluate says that it leaves."""
    left = evaluate(records, costs, config).position
    quality = records.final_quality.astype(float)
    cost = np.append(costs.backbone[:-1], costs.full)[left]
    for choice in config.choices:
        p, c = records.positions.index(choice.position), records.heads.index(choice.head)
        quality[left == p] = records.quality[p, c][left == p]
        cost[left >= p] += costs.heads[p, c]
    full = records.final_quality.astype(float).mean()
    return lam * (full - quality) / (full or 1) + (1 - lam) * cost / costs.full


def every_choice(records, p):
    """Off, and each head with a threshold below, between and at its confidences."""
    options = [None]
    for c in np.flatnonzero(records.exists[p]):
        values = records.confidence[p, c]
        for t in (-np.inf, *np.unique(values[np.isfinite(values)])):
            options.append(ExitChoice(records.positions[p], records.heads[c], t))
    return options


def brute_force(records, costs, lambdas, max_exits=99):
    """The least J of each lambda, one configuration after the other."""
    best = dict.fromkeys(lambdas, np.inf)
    for combination in product(*(every_choice(records, p) for p in range(len(records.positions)))):
        config = ExitConfig(tuple(choice for choice in combination if choice))
        if len(config.choices) <= max_exits:
            for lam in lambdas:
                best[lam] = min(best[lam], objective(records, costs, config, lam))
    return best


def lowest(records, costs, lambdas):
    """``brute_force`` without a cap, all configurations at once: quality and cost (configurations, N)."""
    quality = records.final_quality.astype(float)[None]
    cost = np.full(quality.shape, costs.full)
    for p in reversed(range(len(records.positions))):
        found = [(quality, cost)]
        for choice in every_choice(records, p)[1:]:
            c = records.heads.index(choice.head)
            sure = records.confidence[p, c]
            leaves = np.isfinite(sure) & (sure > choice.threshold)
            spent = np.where(leaves, costs.backbone[p], cost) + costs.heads[p, c]
            found.append((np.where(leaves, records.quality[p, c], quality), spent))
        quality, cost = (np.concatenate(part) for part in zip(*found, strict=True))
    full = records.final_quality.astype(float).mean()
    drop, relative = (full - quality.mean(axis=1)) / (full or 1), cost.mean(axis=1) / costs.full
    return {lam: float((lam * drop + (1 - lam) * relative).min()) for lam in lambdas}


def random_exits(problem, count, rng):
    """Heads and prefixes (count, P) of random configurations whose cuts a threshold makes."""
    head = np.full((count, len(problem.positions)), OFF)
    prefix = np.zeros_like(head)
    for p, position in problem.used:
        for row in np.flatnonzero(rng.random(count) < 0.7):
            own = int(rng.integers(len(position.heads)))
            size = position.prefix_near(own, int(rng.integers(1, problem.samples + 1)))
            head[row, p], prefix[row, p] = (own, size) if size else (OFF, 0)
    return head, prefix
