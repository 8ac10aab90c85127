"""What a search aims at, and every configuration it has met.

J is linear in a configuration's quality and cost, so what any objective finds is a candidate for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from offramp.solver.kernels import OFF, SAME
from offramp.solver.line_search import ConfigBatch, FindLine, best_line, simulate
from offramp.solver.problem import Floats, Ints, Problem


@dataclass(frozen=True, eq=False)
class Objectives:
    """G objectives: minimise J at ``tradeoff`` (G,) plus ``price`` (G,) per exit, at most ``cap`` exits."""

    tradeoff: Floats
    price: Floats
    cap: int

    def priced(self, price: float) -> Objectives:
        """The same trade-offs at another price per exit."""
        return replace(self, price=np.full(len(self.tradeoff), price))


class CandidateSet:
    """Every configuration met, with its quality and cost: any objective may pick any of them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.complete = False  # whether every configuration that could be best has been met
        positions = len(problem.positions)
        self.head = np.zeros((0, positions), np.int64)
        self.prefix = np.zeros((0, positions), np.int64)
        self.quality, self.cost, self.common = np.zeros(0), np.zeros(0), np.zeros(0)
        self._place: dict[bytes, int] = {}
        self.add(np.full((1, positions), OFF), np.zeros((1, positions), np.int64))

    def add(self, head: Ints, prefix: Ints, common: Floats | None = None) -> Ints:
        """Take in configurations (B, P); ``common`` (B,) is their one threshold, NaN if they differ.

        Where some of their exits are never taken, the rest may be known. Returns their places in the
        candidates, (B,).
        """
        common = np.full(len(head), np.nan) if common is None else common
        keys = _keys(head, prefix)
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._place}
        index = sorted(first.values())
        heads, prefixes = head[index], prefix[index]
        parts = self.problem.by_batch(
            len(index), lambda part: simulate(self.problem, heads[part], prefixes[part])[:2]
        )
        new: list[int] = []
        for i, key in enumerate(_keys(heads, prefixes)):
            if key not in self._place:
                self._place[key] = len(self.cost) + len(new)
                new.append(i)
            self._place[keys[index[i]]] = self._place[key]
        if parts:
            quality, cost = (np.concatenate(part)[new] for part in zip(*parts, strict=True))
            self.quality, self.cost = np.append(self.quality, quality), np.append(self.cost, cost)
            self.head = np.vstack([self.head, heads[new]])
            self.prefix = np.vstack([self.prefix, prefixes[new]])
            self.common = np.append(self.common, common[index][new])
        return np.array([self._place[key] for key in keys])

    def batch(self, objectives: Objectives, index: Ints, head: Ints, prefix: Ints) -> ConfigBatch:
        """Configurations (B, P), each to minimise the objective that ``index`` (B,) names."""
        return ConfigBatch(
            problem=self.problem,
            head=head.copy(),
            prefix=prefix.copy(),
            tradeoff=objectives.tradeoff[index],
            price=objectives.price[index],
            cap=np.full(len(index), objectives.cap),
        )

    def rows(self, objectives: Objectives, found: Ints, index: Ints | None = None) -> ConfigBatch:
        """Candidates ``found`` (B,), each to minimise the objective ``index`` (B,); by default 0, 1, ..."""
        index = np.arange(len(found)) if index is None else index
        return self.batch(objectives, index, self.head[found], self.prefix[found])

    def all_off(self, objectives: Objectives) -> ConfigBatch:
        """One row per objective: the full model, which is the first candidate."""
        return self.rows(objectives, np.zeros(len(objectives.tradeoff), np.int64))

    def descend(self, rows: ConfigBatch, find: FindLine = best_line) -> Ints:
        """Sweep rows to local optima, in place, and take them in; returns their places."""
        rows.descend(find)
        return self.add(rows.head, rows.prefix)

    def best(self, objectives: Objectives) -> tuple[Ints, Floats]:
        """The best candidate of each objective (G,) and its J (G,); at equal J the fewest exits."""
        exits = np.count_nonzero(self.head != OFF, axis=1)
        lam = objectives.tradeoff[:, None]
        value = lam * (self.problem.full - self.quality) + (1 - lam) * self.cost
        value = value + objectives.price[:, None] * exits + np.where(exits > objectives.cap, np.inf, 0.0)
        lowest = value.min(axis=1, keepdims=True)
        pick = np.where(value <= lowest + SAME, exits, exits.max() + 1).argmin(axis=1)
        return pick, value[np.arange(len(pick)), pick]


def _keys(head: Ints, prefix: Ints) -> list[bytes]:
    return [h.tobytes() + k.tobytes() for h, k in zip(head, prefix, strict=True)]


Step = Callable[[Objectives, CandidateSet], Ints]
"""Adds candidates and returns which one it would answer for each objective, (G,)."""
