"""Configurations built exit by exit, as others build them: what ``baselines`` is made of.

front_to_back   decide each position once, with all later exits off
iterate         make the best single change anywhere, until none helps
brent           a threshold by bounded Brent search (scipy)

A curve is J along the thresholds of one exit, everything else fixed; each of its points is a pass over the
samples. Letters: P positions, C heads, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from offramp._progress import progress_bar
from offramp.core import (
    CostTable,
    ExitChoice,
    ExitConfig,
    ExitRecords,
    check_match,
    check_tradeoffs,
    evaluate,
    expected,
    full_quality,
    leaves,
)
from offramp.errors import MissingExtraError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Exits = tuple[ExitChoice, ...]
Setting = dict[int, tuple[int, float]]
"""A configuration by indices: head and threshold by position."""

SAME = 1e-11
"""Differences in J below this are rounding."""


@dataclass(frozen=True)
class Curve:
    """J along the thresholds of one exit."""

    bounds: tuple[float, float]  # of thresholds: from 0 to 1, or as far as this exit's confidences go
    improvement: Callable[[float], float]  # by how much J falls if the exit, now off, has a threshold


Pick = Callable[[Curve], float]
"""Chooses a threshold."""
CurveAt = Callable[[int, int], Curve]
"""The curve of the exit at position p, head c."""


def choices(records: ExitRecords, setting: Setting) -> Exits:
    """Indices to names, in order of position."""
    places = ((p, *setting[p]) for p in sorted(setting))
    return tuple(ExitChoice(records.positions[p], records.heads[c], t) for p, c, t in places)


def brent() -> Pick:
    """Bounded Brent search with scipy's default tolerance, as in the released code of DyCE.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import fminbound
    except ImportError as error:
        raise MissingExtraError(
            'bounded Brent search needs scipy; run: pip install "offramp[bench]"'
        ) from error
    return lambda curve: float(np.float32(fminbound(lambda t: -curve.improvement(t), *curve.bounds)))


@dataclass(frozen=True, eq=False)
class Objective:
    """J at one trade-off.

    J is the mean over samples of what ``leave`` or ``final`` say plus ``entry`` for each head passed, and a
    constant that no configuration changes. A full model of quality 0 leaves qualities as they are.
    """

    records: ExitRecords
    costs: CostTable
    tradeoff: float

    @cached_property
    def full(self) -> float:
        """The full model's mean quality: the scale of quality."""
        return full_quality(self.records)

    def final(self) -> Floats:
        """(N,) of samples that go through to the end."""
        return np.asarray((1 - self.tradeoff) - self._per_quality * self.records.final_quality)

    def leave(self, p: int, c: int) -> Floats:
        """(N,) of samples that leave at position p by head c."""
        spent = (1 - self.tradeoff) * self.costs.backbone[p] / self.costs.full
        return np.asarray(spent - self._per_quality * self.records.quality[p, c])

    def entry(self, p: int, c: int) -> float:
        """Of each sample that passes the head, whether it leaves or not."""
        return float((1 - self.tradeoff) * self.costs.heads[p, c] / self.costs.full)

    def leaves(self, p: int, c: int, threshold: float) -> Bools:
        """(N,) which samples would leave there."""
        return leaves(self.records.confidence[p, c], np.float32(threshold))

    def value(self, setting: Setting) -> float:
        """J of a whole configuration, by simulation."""
        outcome = evaluate(self.records, self.costs, ExitConfig(choices(self.records, setting)))
        drop = (self.full - outcome.quality) / (self.full or 1.0)
        return self.tradeoff * drop + (1 - self.tradeoff) * outcome.relative_cost

    @property
    def _per_quality(self) -> np.float64:
        return np.float64(self.tradeoff / (self.full or 1.0))  # in double precision, though quality is not

    def bounds(self, p: int, c: int) -> tuple[float, float]:
        """``Curve.bounds`` of an exit."""
        confidence = self.records.confidence[p, c]
        finite = confidence[np.isfinite(confidence)]
        return float(finite.min(initial=0)), float(finite.max(initial=1))

    def curve(self, p: int, c: int, arrive: Bools, continue_cost: Floats) -> Curve:
        """From which samples arrive, (N,), and what going on costs them, (N,)."""
        confidence, samples = self.records.confidence[p, c], self.records.samples
        finite = arrive & np.isfinite(confidence)
        gain, confidence = (continue_cost - self.leave(p, c))[finite], confidence[finite]
        entry = self.entry(p, c) * np.count_nonzero(arrive)
        return Curve(
            self.bounds(p, c),
            lambda threshold: float((confidence > np.float32(threshold)) @ gain - entry) / samples,
        )


def front_to_back(objective: Objective, pick: Pick) -> Exits:
    """At each position the best head with the threshold picked for it, or none; never revisited."""
    records, last, setting = objective.records, objective.final(), Setting()
    alive = np.ones(records.samples, bool)
    for p in range(len(records.positions)):
        curve_at = partial(objective.curve, arrive=alive, continue_cost=last)
        improvement, exit_ = _best_at(records, p, pick, curve_at)
        if exit_ is not None and improvement > SAME:
            setting[p] = exit_
            alive = alive & ~objective.leaves(p, *exit_)
    return choices(records, setting)


def iterate(
    objective: Objective, pick: Pick, rounds: int, curves: Callable[[Objective, Setting], CurveAt]
) -> Exits:
    """The best single change, at most ``rounds`` times; ``curves`` is ``simulated`` or ``summed``."""
    records, setting = objective.records, Setting()
    for _ in range(rounds):
        curve_at, lowest, changed = curves(objective, setting), SAME, setting
        for p in range(len(records.positions)):
            now = curve_at(p, setting[p][0]).improvement(setting[p][1]) if p in setting else 0.0
            improvement, exit_ = _best_at(records, p, pick, curve_at, now)
            if improvement > lowest:
                others = {q: old for q, old in setting.items() if q != p}
                lowest, changed = improvement, others | ({p: exit_} if exit_ else {})
        if changed is setting:
            break
        setting = changed
    return choices(records, setting)


def _best_at(
    records: ExitRecords, p: int, pick: Pick, curve_at: CurveAt, now: float = 0.0
) -> tuple[float, tuple[int, float] | None]:
    """The best head and threshold at a position, None for off, and how much J falls by the change.

    ``now`` is how much it has fallen already by the exit that is there.
    """
    best: tuple[float, tuple[int, float] | None] = -now, None
    for c in np.flatnonzero(records.exists[p]).tolist():
        curve = curve_at(p, c)
        threshold = pick(curve)
        best = max(best, (curve.improvement(threshold) - now, (c, threshold)), key=lambda found: found[0])
    return best


def simulated(objective: Objective, setting: Setting) -> CurveAt:
    """Curves around a configuration, each point a simulation of it all: P * N steps."""
    off: dict[int, float] = {}

    def curve_at(p: int, c: int) -> Curve:
        others = {q: exit_ for q, exit_ in setting.items() if q != p}
        if p not in off:
            off[p] = objective.value(others)
        return Curve(objective.bounds(p, c), lambda t: off[p] - objective.value({**others, p: (c, t)}))

    return curve_at


def summed(objective: Objective, setting: Setting) -> CurveAt:
    """The same curves from two sweeps over the positions, each point a sum over the samples: N steps."""
    count = len(objective.records.positions)
    leaves = {p: objective.leaves(p, *exit_) for p, exit_ in setting.items()}
    arrive, alive = [], np.ones(objective.records.samples, bool)
    for p in range(count):
        arrive.append(alive)
        alive = alive & ~leaves[p] if p in setting else alive
    continue_cost, going = {}, objective.final()
    for p in reversed(range(count)):
        continue_cost[p] = going
        if p in setting:
            c = setting[p][0]
            going = np.where(leaves[p], objective.leave(p, c), going) + objective.entry(p, c)
    return lambda p, c: objective.curve(p, c, arrive[p], continue_cost[p])


Answers = dict[float, ExitConfig]
"""One configuration for each trade-off, with its figures on the records it was chosen on."""


def per_tradeoff(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    solve: Callable[[Objective], Exits],
    progress: bool | None = False,
) -> Answers:
    """Solve each trade-off by itself."""
    lambdas, found = distinct_tradeoffs(records, costs, tradeoffs), {}
    with progress_bar("Searching", len(lambdas), progress) as advance:
        for done, lam in enumerate(lambdas, start=1):
            found[lam] = solve(Objective(records, costs, lam))
            advance(done)
    return with_figures(records, costs, found)


def with_figures(records: ExitRecords, costs: CostTable, found: dict[float, Exits]) -> Answers:
    """Exits by trade-off as configurations with their figures on the records."""
    figures = {chosen: expected(records, costs, ExitConfig(chosen)) for chosen in set(found.values())}
    return {lam: ExitConfig(chosen, lam, figures[chosen]) for lam, chosen in found.items()}


def distinct_tradeoffs(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> list[float]:
    """The distinct trade-offs, in their order."""
    check_match(records, costs)
    return list(dict.fromkeys(check_tradeoffs(tradeoffs, "tradeoffs")))
