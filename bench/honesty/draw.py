"""One draw of search samples from a pool: what each way to choose by a drop keeps on the rest of the pool.

    promised        what ``frontier.at(max_drop=...)`` picks by default
    in-sample       by the figures of the search samples
    cross-fitted    by the mean drop on samples that folds held out
    isotonic        by that mean, made to rise with saving by isotonic regression
    oracle          by the drop on the rest of the pool, which no one can know, from the same as ``promised``
    certified 0.9   ``certify`` with delta 0.1 on half of the samples, after a search on the other half;
    certified 0.95  with delta 0.05

All take the cheapest within the drop. ``in-sample``, ``cross-fitted`` and ``isotonic`` pick from both kinds
of dial that the search of this draw found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import offramp
from offramp import CostTable, ExitConfig, ExitRecords
from offramp.core import full_quality, simulate
from offramp.solver.cross_fit import NORMAL, Folds, Setting, governed, judged_settings, thinned
from offramp.solver.problem import Problem
from offramp.solver.pruning import SELECTION_BIAS
from offramp.solver.search import DEFAULT_TRADEOFFS, dial_tradeoffs
from offramp.solver.solve import SearchPlan

Floats = npt.NDArray[np.float64]

OURS, ORACLE = "promised", "oracle"
CERTIFIED = {"certified 0.9": 0.1, "certified 0.95": 0.05}
WAYS = (OURS, "in-sample", "cross-fitted", "isotonic", ORACLE, *CERTIFIED)
STEP = 0.01
ROUNDING = 1e-12


@dataclass
class Draw:
    """What one draw gave: by way, for each ask, cost over the full model's and the drop kept.

    ``covered`` is the share of the listed configurations whose interval holds the drop on the rest.
    """

    cost: dict[str, list[float]] = field(default_factory=dict)
    kept: dict[str, list[float]] = field(default_factory=dict)
    covered: float = float("nan")


def parts(
    pool: ExitRecords, samples: int, draws: int, seed: int
) -> Iterator[tuple[ExitRecords, ExitRecords]]:
    """Search samples, drawn at random by whole groups, and the rest, for each draw."""
    random = np.random.default_rng([seed, samples])
    names = np.arange(pool.samples) if pool.groups is None else pool.groups
    _, group = np.unique(names, return_inverse=True)
    for _ in range(draws):
        place = random.permutation(group.max() + 1)[group]  # of each sample's group in a random order
        drawn = np.sort(place)[samples - 1]
        yield pool.subset(place <= drawn), pool.subset(place > drawn)


class Truth:
    """Drops of configurations on the rest of the pool."""

    def __init__(self, rest: ExitRecords) -> None:
        self.rest, self._full = rest, rest.final_quality.astype(np.float64)
        self._known: dict[ExitConfig, tuple[float, float]] = {}

    def drop(self, config: ExitConfig) -> tuple[float, float]:
        """The mean drop and its standard error; each configuration is run once."""
        key = ExitConfig(config.choices)
        if key not in self._known:
            loss = self._full - simulate(self.rest, key).quality
            self._known[key] = float(loss.mean()), float(loss.std() / np.sqrt(loss.size))
        return self._known[key]

    def of(self, setting: Setting) -> tuple[float, float]:
        """The same of a configuration on a dial."""
        return self.drop(ExitConfig(setting.dial.exits(setting.row)))


def measure(
    records: ExitRecords,
    rest: ExitRecords,
    costs: CostTable,
    asks: Sequence[float],
    seed: int,
    certified: bool = True,
) -> Draw:
    """Search on the records, choose in every way for every ask, and look at the rest."""
    plan = SearchPlan("exact", SELECTION_BIAS / records.samples, len(records.positions), True, seed)
    problem, truth, draw = Problem.of(records, costs), Truth(rest), Draw()
    folds = Folds(records, problem.canonical(), seed)
    found = judged_settings(problem, costs, dial_tradeoffs(DEFAULT_TRADEOFFS), plan, folds, STEP)
    every = [setting for kind in found for setting in kind.rows]
    listed = thinned(governed(found, folds.groups, folds.unit), STEP)
    mean = np.array([each.mean for each in every])
    cost = np.array([each.cost for each in every])
    figures = {
        OURS: (listed, np.array([each.promised for each in listed])),
        "in-sample": (every, np.array([seen(each) for each in every])),
        "cross-fitted": (every, mean),
        "isotonic": (every, isotonic(cost, mean)),
        ORACLE: (listed, np.array([truth.of(each)[0] for each in listed])),
    }
    for way, (settings, drops) in figures.items():
        costs_of = np.array([each.cost for each in settings])
        picks = [settings[cheapest(costs_of, drops, ask)] for ask in asks]
        draw.cost[way] = [each.cost for each in picks]
        draw.kept[way] = [truth.of(each)[0] for each in picks]
    for way, configs in (certify(records, costs, asks, seed) if certified else {}).items():
        draw.cost[way] = [offramp.evaluate(rest, costs, each).relative_cost for each in configs]
        draw.kept[way] = [truth.drop(each)[0] for each in configs]
    draw.covered = coverage(listed, truth)
    return draw


def cheapest(cost: Floats, drop: Floats, ask: float) -> int:
    """Which is the cheapest within the drop."""
    within = np.flatnonzero(drop <= ask + ROUNDING)
    return int(within[cost[within].argmin()])


def certify(
    records: ExitRecords, costs: CostTable, asks: Sequence[float], seed: int
) -> dict[str, list[ExitConfig]]:
    """What ``offramp.certify`` gives for each ask; the full model where it gives nothing."""
    first, second = next(parts(records, records.samples // 2, 1, seed))
    frontier = offramp.search(first, costs, progress=False)
    return {
        way: [
            offramp.certify(frontier, second, costs, max_drop=ask, delta=delta) or ExitConfig()
            for ask in asks
        ]
        for way, delta in CERTIFIED.items()
    }


def coverage(listed: Sequence[Setting], truth: Truth) -> float:
    """The share of intervals that hold the drop on the rest, whose own error widens them."""
    inside = []
    for each in listed:
        if each.cost < 1:
            (low, high), (drop, error) = each.interval, truth.of(each)
            inside.append(abs(drop - (low + high) / 2) <= np.hypot((high - low) / 2, NORMAL * error))
    return float(np.mean(inside)) if inside else float("nan")


def seen(setting: Setting) -> float:
    """The drop on the search samples."""
    candidates = setting.dial.candidates
    scale = full_quality(candidates.problem.records) or 1.0
    return float(candidates.problem.full - candidates.quality[setting.row]) * scale


def isotonic(cost: Floats, drop: Floats) -> Floats:
    """Drops made to fall with cost."""
    from sklearn.isotonic import IsotonicRegression

    return np.asarray(IsotonicRegression(increasing=False).fit(cost, drop).predict(cost), np.float64)
