"""Draws of search samples from a pool, and what each way to choose by a drop keeps on the rest of the pool.

    promised             what ``search`` promises by default
    in-sample            the same configurations, chosen by their figures on the search samples
    cross-fitted         chosen by their mean drop on samples held out
    isotonic             chosen by that mean, made to rise with saving by isotonic regression
    oracle               chosen by the drop on the rest of the pool: what no one can know

All of them pick the cheapest within the drop, among the same configurations of the same draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from offramp import CostTable, ExitConfig, ExitRecords
from offramp.core import simulate
from offramp.solver.cross_fit import Folds, Setting, governed, judged_settings, thinned
from offramp.solver.problem import Problem
from offramp.solver.pruning import SELECTION_BIAS
from offramp.solver.search import DEFAULT_TRADEOFFS, dial_tradeoffs
from offramp.solver.solve import SearchPlan

Floats = npt.NDArray[np.float64]

WAYS = ("promised", "in-sample", "cross-fitted", "isotonic", "oracle")
STEP = 0.01


@dataclass
class Draw:
    """What one draw gave: by way and ask the cost and the drop kept, and whether intervals hold."""

    cost: dict[str, list[float]] = field(default_factory=dict)
    kept: dict[str, list[float]] = field(default_factory=dict)
    covered: float = float("nan")


def parts(
    pool: ExitRecords, samples: int, draws: int, seed: int
) -> Iterator[tuple[ExitRecords, ExitRecords]]:
    """Search samples and the rest, groups kept together."""
    random = np.random.default_rng([seed, samples])
    groups = np.arange(pool.samples) if pool.groups is None else pool.groups
    for _ in range(draws):
        order = random.permutation(np.unique(groups))
        places = np.argsort(np.argsort(order))[np.searchsorted(np.sort(order), groups)]
        by_place = np.argsort(places, kind="stable")
        few = np.zeros(pool.samples, bool)
        few[by_place[:samples]] = True
        few = np.isin(groups, np.unique(groups[few]))  # the last group whole
        yield pool.subset(few), pool.subset(~few)


class Truth:
    """Drops of configurations on the rest of the pool, each computed once."""

    def __init__(self, rest: ExitRecords) -> None:
        self.rest = rest
        self.full = rest.final_quality.astype(np.float64)
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def drop(self, setting: Setting) -> tuple[float, float]:
        """The mean drop and its standard error."""
        key = (id(setting.dial), setting.row)
        if key not in self._known:
            config = ExitConfig(setting.dial.exits(setting.row))
            loss = self.full - simulate(self.rest, config).quality
            self._known[key] = float(loss.mean()), float(loss.std() / np.sqrt(loss.size))
        return self._known[key]


def measure(
    records: ExitRecords, rest: ExitRecords, costs: CostTable, asks: Sequence[float], seed: int
) -> Draw:
    """One draw."""
    plan = SearchPlan("exact", SELECTION_BIAS / records.samples, len(records.positions), True, seed)
    problem = Problem.of(records, costs)
    folds = Folds(records, problem.canonical(), seed)
    found = judged_settings(problem, costs, dial_tradeoffs(DEFAULT_TRADEOFFS), plan, folds, STEP)
    every = [setting for kind in found for setting in kind.rows]
    listed, truth, draw = thinned(governed(found, folds.groups), STEP), Truth(rest), Draw()
    cost = np.array([each.cost for each in every])
    figures = {
        "in-sample": np.array([_seen(each) for each in every]),
        "cross-fitted": np.array([each.mean for each in every]),
        "isotonic": isotonic(cost, np.array([each.mean for each in every])),
    }
    true = {each: truth.drop(each)[0] for each in listed}
    for ask in asks:
        chosen = {
            "promised": min((s for s in listed if s.promised <= ask + 1e-12), key=lambda s: s.cost),
            "oracle": min((s for s in listed if true[s] <= ask + 1e-12), key=lambda s: s.cost),
        }
        for way, drops in figures.items():
            within = np.flatnonzero(drops <= ask + 1e-12)
            chosen[way] = every[int(within[cost[within].argmin()])]
        for way, setting in chosen.items():
            draw.cost.setdefault(way, []).append(setting.cost)
            draw.kept.setdefault(way, []).append(truth.drop(setting)[0])
    inside = []
    for each in listed[1:]:
        (low, high), (drop, error) = each.interval, truth.drop(each)
        middle, half = (low + high) / 2, (high - low) / 2
        inside.append(abs(drop - middle) <= np.hypot(half, 1.96 * error))
    draw.covered = float(np.mean(inside)) if inside else float("nan")
    return draw


def _seen(setting: Setting) -> float:
    """The drop on the search samples."""
    candidates = setting.dial.candidates
    problem = candidates.problem
    scale = float(problem.records.final_quality.astype(np.float64).mean()) or 1.0
    return float(problem.full - candidates.quality[setting.row]) * scale


def isotonic(cost: Floats, drop: Floats) -> Floats:
    """Drops made to fall with cost: isotonic regression, ties in cost together."""
    from sklearn.isotonic import IsotonicRegression

    return np.asarray(IsotonicRegression(increasing=False).fit(cost, drop).predict(cost), np.float64)
