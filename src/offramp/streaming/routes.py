"""Configurations as routes: the exit points of a sample, the exits it runs there, the spans between them.

Samples with different configurations share batches: a batch goes to the nearest exit point of any of its
samples. Every configuration gets spans between its own exits; where a batch is of several configurations,
spans between neighbouring exit points of all configurations fill in. Spans are made when a configuration is
prepared, never while samples run.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from offramp.core import ExitConfig, PlanCache
from offramp.network import ExitNetwork
from offramp.runtime import EnabledExit, Planner, SpanFn, check_config


@dataclass(frozen=True, eq=False)
class Route:
    """A configuration made ready: its exits by exit point, the model's output last, and what follows each."""

    config: ExitConfig
    exits: Mapping[int, EnabledExit]
    following: Mapping[int, int]


class Routes:
    """Routes and spans of one network; made by any thread, read by the engine's.

    Attributes:
        exit_points: positions where samples may wait: 0 and those of all configurations, P aside, rising.
    """

    def __init__(self, net: ExitNetwork, planner: Planner) -> None:
        self._last, self._planner = len(net.positions), planner
        self._routes = PlanCache[ExitConfig, Route]()
        self._extending = threading.Lock()
        # replaced, never changed: the engine's thread reads it
        self._spans: dict[tuple[int, int], SpanFn] = {}
        self._joined: dict[tuple[int, int], SpanFn] = {}
        self.exit_points: tuple[int, ...] = (0,)

    def get(self, config: ExitConfig) -> Route:
        """The route of a configuration, made if there is none; InputError: no such exit."""
        check_config(config)
        return self._routes.get(config, lambda: self._build(config))

    def span(self, start: int, stop: int) -> SpanFn:
        """The function from one exit point to another: as made, or joined from such as are."""
        made = self._spans.get((start, stop)) or self._joined.get((start, stop))
        if made is None:
            made = self._joined[start, stop] = self._join(start, stop)
        return made

    def _build(self, config: ExitConfig) -> Route:
        exits = {exit_.position: exit_ for exit_ in self._planner.exits(config)}
        self._extend(exits)
        return Route(config, exits, dict(pairwise(exits)))

    def _extend(self, positions: Mapping[int, EnabledExit]) -> None:
        """Make what is missing: first the spans, then the exit points known to the engine's thread."""
        while True:
            known = self.exit_points
            points = tuple(sorted({*known, *positions} - {self._last}))
            pairs = {*pairwise(sorted({0, *positions})), *pairwise((*points, self._last))}
            made = {pair: self._planner.span(*pair) for pair in pairs}  # without the lock: it may take long
            with self._extending:
                if self.exit_points == known:
                    self._spans = {**self._spans, **made}
                    self.exit_points = points
                    return

    def _join(self, start: int, stop: int) -> SpanFn:
        """The longest spans that lead from one exit point to another, one after the other."""
        parts, at = list[SpanFn](), start
        while at != stop:
            further = max(b for a, b in self._spans if a == at and b <= stop)
            parts.append(self._spans[at, further])
            at = further

        def joined(*activations: Any) -> tuple[Any, ...]:
            for part in parts:
                activations = part(*activations)
            return activations

        return joined
