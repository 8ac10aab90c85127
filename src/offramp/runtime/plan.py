"""A configuration made ready: every decision that can be made beforehand is made in a plan.

Which functions run, which exits want a mask, whether a span is run in parts, whether a feature may be changed
in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from offramp.core import BatchCosts, CostTable, ExitConfig, PlanCache, best_parts, exact_cost, resolve
from offramp.errors import InputError
from offramp.network import ConfidenceFn, ExitFn, ExitNetwork
from offramp.runtime.backend import SpanFn, SpanProvider
from offramp.runtime.compaction import InParts
from offramp.runtime.execution import Execution


@dataclass(frozen=True, kw_only=True)
class EnabledExit:
    """An exit that a configuration enables, or the model's own output (``last``), where everybody leaves.

    ``macs`` are per sample, of the head, and of the span before it in an ``EngineStep``; ``threshold`` is a
    float32 as a Python number; ``column`` is the index of the head.
    """

    position: int
    exit_fn: ExitFn
    confidence_fn: ConfidenceFn
    macs: float
    threshold: float = math.inf
    column: int = 0
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineStep(EnabledExit):
    """Run ``span`` from the step before (None: nothing to run), then the exit.

    ``per_sample`` says which carried tensors here have one row per sample, ``owned`` whether the feature here
    belongs to nobody else; ``here`` is the position, (1,) int64 on the network's device.
    """

    span: SpanFn | None
    per_sample: tuple[bool, ...]
    owned: bool
    here: Tensor


@dataclass(frozen=True)
class EnginePlan:
    """A configuration made ready on an execution backend; ``masked``: some step uses the mask."""

    config: ExitConfig
    execution: Execution
    steps: tuple[EngineStep, ...]
    masked: bool


def check_config(config: object) -> None:
    """Refuse what is no configuration, before it becomes a key."""
    if not isinstance(config, ExitConfig):
        what = type(config).__name__
        raise InputError(f"expected an ExitConfig, such as frontier.at(max_cost=0.5); got a {what}")


class Planner:
    """Makes plans for one network and one execution backend; safe from any thread.

    It counts by ``costs``; spans run in parts where that is faster by ``seconds``, costs by batch size.
    """

    def __init__(
        self, net: ExitNetwork, costs: CostTable, provider: SpanProvider, seconds: BatchCosts | None = None
    ) -> None:
        self._net, self._costs, self._provider, self._seconds = net, costs, provider, seconds
        self._split = PlanCache[tuple[int, int], SpanFn]()

    def exits(self, config: ExitConfig) -> list[EnabledExit]:
        """The exits of a configuration, in order, and the model's output; InputError: no such exit."""
        net, last = self._net, len(self._net.positions)
        enabled = [
            EnabledExit(
                position=position,
                exit_fn=self._provider.exit_fn(position, column),
                confidence_fn=net.confidence_of(position, column),
                macs=exact_cost(self._costs.heads[position, column]),
                threshold=float(threshold),
                column=column,
            )
            for position, column, threshold in resolve(net.positions, net.head_names, net.exists, config)
        ]
        output = EnabledExit(
            position=last,
            exit_fn=self._provider.exit_fn(last),
            confidence_fn=net.confidence_of(last),
            macs=0,
            last=True,
        )
        return [*enabled, output]

    def plan(self, config: ExitConfig) -> EnginePlan:
        """A configuration made ready; raises as ``exits`` does."""
        net, steps, at = self._net, list[EngineStep](), 0
        exits = self.exits(config)
        for exit_ in exits:
            position = exit_.position
            steps.append(
                EngineStep(
                    **{**vars(exit_), "macs": exact_cost(self.backbone(at, position) + exit_.macs)},
                    span=self.span(at, position, bool(config.choices)) if position > at else None,
                    per_sample=net.partition.carried_per_sample(position),
                    owned=self._owned[position],
                    here=torch.full((1,), position, device=net.partition.spec.device),
                )
            )
            at = position
        masked = any(net.uses_mask(exit_.position, exit_.column) for exit_ in exits)
        return EnginePlan(config, self._provider.execution, tuple(steps), masked)

    def backbone(self, start: int, stop: int) -> float:
        """Cost per sample of the backbone between two positions."""
        return exact_cost(self._costs.backbone[stop] - self._costs.backbone[start])

    def span(self, start: int, stop: int, in_parts: bool = True) -> SpanFn:
        """What runs between two positions, made once; ``in_parts`` where that was measured to be faster."""
        span = self._provider.span(start, stop)
        if not in_parts or self._seconds is None:
            return span
        seconds = self._seconds
        return self._split.get((start, stop), lambda: self._in_parts(span, start, stop, seconds))

    def _in_parts(self, span: SpanFn, start: int, stop: int, seconds: BatchCosts) -> SpanFn:
        parts, _ = best_parts(seconds.span(start, stop))
        if parts.max() == 1:
            return span
        per_sample = self._net.partition.carried_per_sample
        after = None if stop == len(self._net.positions) else (True, *per_sample(stop))
        return InParts(span, parts, (True, *per_sample(start)), after)

    @cached_property
    def _owned(self) -> list[bool]:
        """By position, whether the feature belongs to nobody else."""
        flow, borders = self._net.partition.flow, [cut.border.activations for cut in self._net.partition.cuts]
        return [False, *(flow.owned(border[0], border[1:]) for border in borders), False]
