"""Configurations as routes: at which positions a sample stops, which exit it asks there, which spans it runs.

Samples with different configurations share batches: a batch goes to the nearest stop of any of its samples.
Every configuration gets spans between its own exits; where a batch is of several configurations, spans
between neighbouring stops of all configurations fill in. Spans are made when a configuration is prepared,
never while samples run.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from offramp.core import CostTable, ExitConfig, PlanCache, resolve
from offramp.errors import InputError
from offramp.network import ConfidenceFn, ExitFn, ExitNetwork
from offramp.runtime import Planner, SpanFn, SpanProvider


@dataclass(frozen=True)
class RouteExit:
    """An exit that a configuration enables.

    Args:
        column: index of its head.
        ask: what is handed over, and the mask, to outputs.
        sure: outputs to confidence.
        threshold: of the confidence.
        macs: per sample, of the head.
    """

    column: int
    exit_fn: ExitFn
    confidence_fn: ConfidenceFn
    threshold: float
    macs: float


@dataclass(frozen=True, eq=False)
class Route:
    """A configuration made ready.

    Args:
        config: what it is made of.
        stops: positions of its exits, then P.
        exits: by position.
        onward: position -> the stop after it.
    """

    config: ExitConfig
    stops: tuple[int, ...]
    exits: Mapping[int, RouteExit]
    onward: Mapping[int, int]


class Routes:
    """Routes and spans of one network; made by any thread, read by the engine's.

    Args:
        net: with trained heads.
        macs: what is counted.
        runner: of the network.
        planner: of the network, for its spans.
    """

    def __init__(self, net: ExitNetwork, macs: CostTable, runner: SpanProvider, planner: Planner) -> None:
        self._net, self._macs, self._runner, self._planner = net, macs, runner, planner
        self._routes = PlanCache[ExitConfig, Route]()
        self._growing = threading.Lock()
        self._spans: dict[
            tuple[int, int], SpanFn
        ] = {}  # replaced, never changed: the engine's thread reads it
        self._joined: dict[tuple[int, int], SpanFn] = {}
        self.stops: tuple[int, ...] = (0,)
        """Positions where samples may wait: 0 and every position of a configuration, rising."""

    def get(self, config: ExitConfig) -> Route:
        """The route of a configuration; made if there is none.

        Raises:
            InputError: it is none, or names a position or head that the network lacks.
        """
        if not isinstance(config, ExitConfig):
            what = type(config).__name__
            raise InputError(f"expected an ExitConfig, such as frontier.at(max_cost=0.5); got a {what}")
        return self._routes.get(config, lambda: self._build(config))

    def span(self, start: int, stop: int) -> SpanFn:
        """The function from one stop to another: as made, or joined from such as are."""
        made = self._spans.get((start, stop)) or self._joined.get((start, stop))
        if made is None:
            made = self._joined[start, stop] = self._join(start, stop)
        return made

    def per_sample(self, position: int) -> tuple[bool, ...]:
        """For each value handed over at a position, and the mask where there is one: one row per sample?"""
        rest = self._planner.per_sample(position)
        return (True, *rest) if self._net.mask_input is None else (True, *rest, True)

    def _build(self, config: ExitConfig) -> Route:
        net, exits, last = self._net, dict[int, RouteExit](), len(self._net.positions)
        for position, column, threshold in resolve(net.positions, net.head_names, net.exists, config):
            exits[position] = RouteExit(
                column,
                self._runner.exit_fn(position, column),
                net.confidence_of(position, column),
                float(threshold),
                float(self._macs.heads[position, column]),
            )
        stops = (*exits, last)
        self._extend(stops)
        onward = dict(pairwise(stops))
        return Route(config, stops, exits, onward)

    def _extend(self, stops: tuple[int, ...]) -> None:
        """Make what is missing: first the spans, then the stops known to the engine's thread."""
        with self._growing:
            last, spans = len(self._net.positions), dict(self._spans)
            union = sorted({*self.stops, *stops} - {last})
            for pair in {*pairwise(sorted({0, *stops})), *pairwise((*union, last))}:
                if pair not in spans:
                    spans[pair] = self._planner.span(*pair)
            self._spans = spans
            self.stops = tuple(union)

    def _join(self, start: int, stop: int) -> SpanFn:
        """The longest spans that lead from one stop to another, one after the other."""
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
