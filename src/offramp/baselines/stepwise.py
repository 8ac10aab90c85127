"""Configurations built exit by exit, as others build them: what ``baselines`` is made of.

front_to_back   decide each position once, with all later exits off
iterate         make the best single change anywhere, until none helps
brent           a threshold by bounded Brent search (scipy)

A line is J along the thresholds of one exit, everything else fixed; each of its points is a pass over the
samples. Letters: P positions, C heads, N samples, A of them arriving at a position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from offramp.core import CostTable, ExitChoice, ExitConfig, ExitRecords, evaluate, full_quality, leaves
from offramp.errors import MissingExtraError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Exits = tuple[ExitChoice, ...]
Setting = dict[int, tuple[int, float]]
"""A configuration by indices: head and threshold by position."""

SAME = 1e-11
"""Differences in J below this are rounding."""


class Curve(Protocol):
    """J along the thresholds of one exit."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Where thresholds are looked for: from 0 to 1, or as far as this exit's confidences go."""

    def improvement(self, threshold: float) -> float:
        """By how much J falls if the exit, now off, is enabled with this threshold."""


Pick = Callable[[Curve], float]
"""Chooses a threshold."""
CurveAt = Callable[[int, int], Curve]
"""The line of the exit at position p, head c."""
Change = tuple[int, tuple[int, float] | None]
"""A position and its new head and threshold; None for off."""


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
    return lambda line: float(np.float32(fminbound(lambda t: -line.improvement(t), *line.bounds)))


@dataclass(frozen=True, eq=False)
class Objective:
    """J at one trade-off.

    J is the mean over samples of what ``leave`` or ``final`` say plus ``entry`` for each head passed, and a
    constant that no configuration changes. A full model of quality 0 leaves qualities as they are.
    """

    records: ExitRecords
    costs: CostTable
    tradeoff: float
    full: float

    @classmethod
    def of(cls, records: ExitRecords, costs: CostTable, tradeoff: float) -> Objective:
        """For these records, whose full model's mean quality is the scale."""
        return cls(records, costs, tradeoff, full_quality(records))

    def final(self) -> Floats:
        """(N,) of samples that go through to the end."""
        return np.asarray((1 - self.tradeoff) - self._worth * self.records.final_quality)

    def leave(self, p: int, c: int) -> Floats:
        """(N,) of samples that leave at position p by head c."""
        spent = (1 - self.tradeoff) * self.costs.backbone[p] / self.costs.full
        return np.asarray(spent - self._worth * self.records.quality[p, c])

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
    def _worth(self) -> np.float64:
        return np.float64(self.tradeoff / (self.full or 1.0))  # in double precision, though quality is not

    def bounds(self, p: int, c: int) -> tuple[float, float]:
        """As in ``Curve``."""
        confidence = self.records.confidence[p, c]
        finite = confidence[np.isfinite(confidence)]
        return float(finite.min(initial=0)), float(finite.max(initial=1))


@dataclass(frozen=True, eq=False)
class Simulated:
    """A line each point of which simulates the whole configuration."""

    objective: Objective
    others: Setting
    p: int
    c: int
    off: float
    bounds: tuple[float, float]

    def improvement(self, threshold: float) -> float:
        """As in ``Curve``."""
        return self.off - self.objective.value({**self.others, self.p: (self.c, threshold)})


@dataclass(frozen=True, eq=False)
class Summed:
    """A line from what is known of the samples that arrive.

    Args:
        confidence: (A,) float32, finite.
        gain: (A,) what J * N falls by if that sample leaves.
        entry: what J * N rises by for having the head.
        samples: N.
        bounds: as in ``Curve``.
    """

    confidence: npt.NDArray[np.float32]
    gain: Floats
    entry: float
    samples: int
    bounds: tuple[float, float]

    @classmethod
    def of(cls, objective: Objective, p: int, c: int, arrive: Bools, onward: Floats) -> Summed:
        """From which samples arrive, (N,), and what going on costs them, (N,)."""
        confidence = objective.records.confidence[p, c]
        sure = arrive & np.isfinite(confidence)
        gain = (onward - objective.leave(p, c))[sure]
        entry = objective.entry(p, c) * np.count_nonzero(arrive)
        return cls(confidence[sure], gain, entry, objective.records.samples, objective.bounds(p, c))

    def improvement(self, threshold: float) -> float:
        """As in ``Curve``."""
        leave = self.confidence > np.float32(threshold)
        return float(leave @ self.gain - self.entry) / self.samples


def front_to_back(objective: Objective, pick: Pick) -> Exits:
    """At each position the best head with the threshold picked for it, or none; never revisited."""
    records, last, setting = objective.records, objective.final(), Setting()
    alive = np.ones(records.samples, bool)
    for p in range(len(records.positions)):
        best = SAME, (0, 0.0)
        for c in _heads(records, p):
            line = Summed.of(objective, p, c, alive, last)
            threshold = pick(line)
            best = max(best, (line.improvement(threshold), (c, threshold)), key=lambda found: found[0])
        if best[0] > SAME:
            setting[p] = best[1]
            alive &= ~objective.leaves(p, *setting[p])
    return choices(records, setting)


def iterate(
    objective: Objective, pick: Pick, rounds: int, lines: Callable[[Objective, Setting], CurveAt]
) -> Exits:
    """The best single change, at most ``rounds`` times; ``lines`` is ``simulated`` or ``summed``."""
    setting = Setting()
    for _ in range(rounds):
        change = _best_change(objective, setting, pick, lines(objective, setting))
        if change is None:
            break
        place, new = change
        setting = {p: old for p, old in setting.items() if p != place} | ({place: new} if new else {})
    return choices(objective.records, setting)


def _best_change(objective: Objective, setting: Setting, pick: Pick, line_at: CurveAt) -> Change | None:
    """The change that lowers J most; None if none does."""
    lowest, change = SAME, None
    for p in range(len(objective.records.positions)):
        improvement, new = _best_at(objective.records, setting, p, pick, line_at)
        if improvement > lowest:
            lowest, change = improvement, (p, new)
    return change


def _best_at(
    records: ExitRecords, setting: Setting, p: int, pick: Pick, line_at: CurveAt
) -> tuple[float, tuple[int, float] | None]:
    """The best head and threshold at a position, None for off, and how much J falls by the change."""
    now = line_at(p, setting[p][0]).improvement(setting[p][1]) if p in setting else 0.0
    best: tuple[float, tuple[int, float] | None] = -now, None
    for c in _heads(records, p):
        line = line_at(p, c)
        threshold = pick(line)
        best = max(best, (line.improvement(threshold) - now, (c, threshold)), key=lambda found: found[0])
    return best


def _heads(records: ExitRecords, p: int) -> list[int]:
    return [int(c) for c in np.flatnonzero(records.exists[p])]


def simulated(objective: Objective, setting: Setting) -> CurveAt:
    """Lines around a configuration, each point a simulation of it all: P * N steps."""
    off: dict[int, float] = {}

    def line_at(p: int, c: int) -> Curve:
        others = {q: exit_ for q, exit_ in setting.items() if q != p}
        if p not in off:
            off[p] = objective.value(others)
        return Simulated(
            objective=objective, others=others, p=p, c=c, off=off[p], bounds=objective.bounds(p, c)
        )

    return line_at


def summed(objective: Objective, setting: Setting) -> CurveAt:
    """The same lines from two sweeps over the positions, each point a sum over the samples: N steps."""
    count = len(objective.records.positions)
    leaves = {p: objective.leaves(p, *exit_) for p, exit_ in setting.items()}
    arrive, alive = [], np.ones(objective.records.samples, bool)
    for p in range(count):
        arrive.append(alive)
        alive = alive & ~leaves[p] if p in setting else alive
    onward, going = {}, objective.final()
    for p in reversed(range(count)):
        onward[p] = going
        if p in setting:
            c = setting[p][0]
            going = np.where(leaves[p], objective.leave(p, c), going) + objective.entry(p, c)
    return lambda p, c: Summed.of(objective, p, c, arrive[p], onward[p])
