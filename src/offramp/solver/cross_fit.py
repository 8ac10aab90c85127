"""What a dial keeps: its configurations judged on samples that folds held out, and the drop it may promise.

Every fold's training part gives a dial of its own. A configuration found on all samples, of cost c, is judged
by what the folds' dials lose at that cost, the mixture of their two neighbours, on the samples held out. From
the full model down, the losses add up to a running maximum; a drop of epsilon allows what was reached before
that passes (N + 1) epsilon - 1. This is conformal risk control (arXiv 2208.02814) along the dial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from offramp.core import CostTable, ExitConfig, ExitRecords, expected, simulate
from offramp.solver.dial import Dial, dials
from offramp.solver.effort import EFFORT
from offramp.solver.problem import Floats, Ints, Problem, in_parallel
from offramp.solver.solve import Report, SearchPlan

NORMAL = 1.959964
"""Standard errors on either side of a 95 % interval, by the normal approximation."""

ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Figures:
    """What the R configurations of a dial lose on new samples, in units of quality.

    Args:
        mean: (R,) the mean drop on samples held out.
        low, high: (R,) ends of its 95 % interval.
        promised: (R,) the least drop that may be promised: the mean loss over draws is at most this.
    """

    mean: Floats
    low: Floats
    high: Floats
    promised: Floats


class Folds:
    """Which samples each of K folds holds out; samples of one group share a fold.

    Args:
        records: N samples.
        order: (N,) the samples in an order of their own, so that the division does not depend on how they
            came; ``Problem.canonical``.
        seed: of the division.
    """

    def __init__(self, records: ExitRecords, order: Ints, seed: int) -> None:
        names = np.arange(records.samples) if records.groups is None else records.groups
        # groups by their first sample in that order
        _, first, self.group = np.unique(names[order], return_index=True, return_inverse=True)
        self.group = np.argsort(np.argsort(first))[self.group][np.argsort(order)]
        self.groups, self.samples = len(first), records.samples
        count = min(EFFORT.folds, self.groups)
        fold = np.random.default_rng(seed).permutation(self.groups) % max(count, 1)
        self.masks = [fold[self.group] == k for k in range(count)] if count > 1 else []
        self.unit = float(np.bincount(self.group).max()) * self.groups / self.samples
        """Most that one group can lose, where the mean over groups is the mean over samples."""

    def sums(self, losses: Floats, mask: npt.NDArray[np.bool_]) -> Floats:
        """(R, G') losses (R, N) added up over the groups that a fold holds out, scaled to mean loss."""
        if self.groups == self.samples:
            return losses[:, mask]
        where, inverse = np.unique(self.group[mask], return_inverse=True)
        total = np.zeros((len(losses), len(where)))
        for row, values in zip(total, losses[:, mask], strict=True):
            row += np.bincount(inverse, values, len(where))
        return total * (self.groups / self.samples)


class CrossFit:
    """The dials of one kind that K folds gave, ready to judge any cost."""

    def __init__(self, folds: Folds) -> None:
        self.folds = folds
        self._parts: list[tuple[Floats, Floats, Floats, Floats, Floats]] = []

    def add(self, records: ExitRecords, dial: Dial, mask: npt.NDArray[np.bool_]) -> None:
        """Take in the dial of one fold, found on the samples outside ``mask``; ``records`` are all."""
        full = records.final_quality.astype(np.float64)
        losses = np.stack(
            [full - simulate(records, ExitConfig(dial.exits(i))).quality for i in dial.rows.tolist()]
        )
        held = self.folds.sums(losses, mask)
        products = (held[:-1] * held[1:]).sum(axis=1) if len(held) > 1 else np.zeros(0)
        sums = held.sum(axis=1), (held**2).sum(axis=1), np.append(products, 0.0)
        self._parts.append((dial.cost, losses.mean(axis=1), *sums))

    def figures(self, cost: Floats) -> Figures:
        """Of configurations with costs (R,), strictly falling from the full model's."""
        groups, unit = self.folds.groups, self.folds.unit
        if not self._parts:  # nothing is known of new samples
            worst = np.where(np.arange(len(cost)) == 0, 0.0, 1.0)
            return Figures(worst, np.zeros_like(worst), worst, worst)
        total, squares, means = np.zeros(len(cost)), np.zeros(len(cost)), []
        for known, mean, sums, square, products in self._parts:
            at, then, weight = neighbours(known, cost)
            rest = 1 - weight
            total += weight * sums[at] + rest * sums[then]
            squares += weight**2 * square[at] + rest**2 * square[then] + 2 * weight * rest * products[at]
            means.append(weight * mean[at] + rest * mean[then])
        mean = total / groups
        variance = (squares / groups + unit**2 / groups) / groups + np.var(means, axis=0, ddof=1)
        half = NORMAL * np.sqrt(variance)
        half[0] = 0.0  # the full model loses nothing
        promised = first_passage(1 - cost, total / unit) * unit / (groups + 1)
        return Figures(mean, mean - half, mean + half, promised)


def neighbours(known: Floats, cost: Floats) -> tuple[Ints, Ints, Floats]:
    """For each cost the two of the ``known`` ones, falling, that bracket it, and the weight of the first.

    Beyond the last, it is the last alone.

    >>> [each.tolist() for each in neighbours(np.array([1.0, 0.6, 0.2]), np.array([1.0, 0.5, 0.1]))]
    [[0, 1, 2], [1, 2, 2], [1.0, 0.75, 1.0]]
    """
    at = np.clip(np.searchsorted(-known, -cost, side="right") - 1, 0, len(known) - 1)
    then = np.minimum(at + 1, len(known) - 1)
    gap = known[at] - known[then]
    weight = np.where(gap > 0, (cost - known[then]) / np.where(gap > 0, gap, 1.0), 1.0)
    return at, then, np.clip(weight, 0.0, 1.0)


def first_passage(saving: Floats, losses: Floats) -> Floats:
    """(R,) how many losses (N + 1 times the drop) must be allowed for each configuration of a dial.

    Args:
        saving: (R,) one less the cost, rising from 0.
        losses: (R,) the sum of the losses on the samples held out; each sample loses at most 1.

    With j losses allowed the dial may go as far as the running maximum of the sum stays at or below j - 1:
    s_j in saving; between whole numbers, as far as the mixture of s_j and s_j+1. Returned is the inverse.

    >>> first_passage(np.array([0.0, 0.2, 0.4, 0.5]), np.array([0.0, 0.0, 1.0, 3.0])).tolist()
    [0.0, 1.0, 2.0, 4.0]
    """
    top = np.maximum.accumulate(losses)
    most = max(math.ceil(top[-1] - ROUNDING) + 1, 1)
    limits = np.arange(most) + ROUNDING
    reached = np.append(0.0, saving[np.searchsorted(top, limits, side="right") - 1])
    after = np.searchsorted(reached, saving - ROUNDING)
    before = np.maximum(after - 1, 0)
    gap = reached[after] - reached[before]
    share = np.where(gap > 0, (saving - reached[before]) / np.where(gap > 0, gap, 1.0), 0.0)
    allowed: Floats = np.where(after > 0, before + share, 0.0)
    return allowed


@dataclass(frozen=True, eq=False)
class Setting:
    """A configuration of a dial: which, its cost over the full model's, and what it was judged to keep."""

    dial: Dial
    row: int  # which candidate
    cost: float
    mean: float
    interval: tuple[float, float]
    promised: float

    def config(self, costs: CostTable) -> ExitConfig:
        """By names, with its figures."""
        records = self.dial.candidates.problem.records
        config = ExitConfig(self.dial.exits(self.row))
        seen = expected(records, costs, config)
        kept = max(seen.full_quality - self.promised, 0.0)
        figures = replace(seen, quality=kept, drop_interval=self.interval, in_sample_quality=seen.quality)
        return replace(config, expected=figures)


@dataclass(frozen=True, eq=False)
class Judged:
    """A dial and what its configurations keep: those on it (R), and the picks of the trade-offs (G)."""

    rows: list[Setting]
    picks: list[Setting]


def judged(dial: Dial, judge: CrossFit) -> Judged:
    """What the configurations of a dial keep, as the folds' dials of its kind say."""
    cost = dial.candidates.cost
    known = -np.unique(-cost[np.append(dial.rows, dial.picks)])
    figures = judge.figures(known)

    def setting(i: int) -> Setting:
        at = int(np.searchsorted(-known, -cost[i]))
        interval = float(figures.low[at]), float(figures.high[at])
        mean, promised = float(figures.mean[at]), float(figures.promised[at])
        return Setting(dial, i, float(known[at]), mean, interval, promised)

    made = {i: setting(i) for i in np.append(dial.rows, dial.picks).tolist()}
    return Judged([made[i] for i in dial.rows.tolist()], [made[i] for i in dial.picks.tolist()])


def thinned(settings: list[Setting], step: float | None) -> list[Setting]:
    """Those that no other beats in cost and promise; of them no more than it takes for steps of cost."""
    ranked = sorted(settings, key=lambda each: (-each.cost, -each.promised))
    best: list[Setting] = []
    for each in reversed(ranked):  # from the cheapest
        if not best or each.promised < best[-1].promised:
            best.append(each)
    kept: list[Setting] = []
    falling = best[::-1]  # from the full model, which stays, as the cheapest does
    for each, after in zip(falling, [*falling[1:], None], strict=True):
        if after is None or step is None or not kept or after.cost < kept[-1].cost / (1 + step):
            kept.append(each)
    return kept


def judged_settings(
    problem: Problem,
    costs: CostTable,
    lambdas: list[float],
    plan: SearchPlan,
    folds: Folds,
    step: float | None = None,
    report: Report = lambda: None,
) -> list[Judged]:
    """Each dial of all samples, judged by the folds' dials of its kind.

    The careful dial comes first; the common one only where ``governed`` needs it. ``report`` is called three
    times for every fold and three times more.
    """
    find = partial(
        dials, costs=costs, plan=plan, lambdas=lambdas, common=common_losses(folds.groups) > 0, report=report
    )
    records = problem.records

    def without(mask: npt.NDArray[np.bool_]) -> list[Dial]:
        return find(Problem.of(records.subset(~mask), costs))

    tasks: list[Callable[[], list[Dial]]] = [partial(find, problem, step=step)]
    tasks += [partial(without, mask) for mask in folds.masks]
    own, *parts = in_parallel(tasks, plan.workers)
    found = []
    for kind, dial in enumerate(own):
        judge = CrossFit(folds)
        for mask, part in zip(folds.masks, parts, strict=True):
            judge.add(records, part[kind], mask)
        found.append(judged(dial, judge))
    return found


def common_losses(samples: int) -> float:
    """Up to how many losses (N + 1 times the drop) the dial with one common threshold is the one to trust.

    The fewer samples and the fewer losses, the less they say about each exit's own threshold. To let the
    figures decide between the dials would promise too much: the lower of two noisy ones has selection bias.
    """
    losses = EFFORT.common_losses * min(EFFORT.common_samples / max(samples, 1), 1.0)
    return losses if losses >= EFFORT.least_losses else 0.0


def governed(found: list[Judged], samples: int, unit: float = 1.0) -> list[Setting]:
    """Of the careful dial and the common one, the part of each that is to be trusted.

    The common one also goes on where it gets cheaper than the careful one ever does. ``samples`` are N, or
    the number of groups, and ``unit`` is the most that one of them can lose.
    """
    careful, *others = found
    limit = common_losses(samples) * unit / (samples + 1)
    least = min(each.cost for each in careful.rows)
    common = [each for one in others for each in one.rows if each.promised <= limit or each.cost < least]
    return common + [each for each in careful.rows if each.promised > limit or each.promised == 0]
