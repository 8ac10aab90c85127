"""A configuration made ready: every decision that can be made beforehand is made in a plan.

Which functions run, which exits want a mask, whether a span is run in parts, whether a feature may be changed
in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.core import BatchCosts, CostTable, ExitConfig, best_parts, resolve
from offramp.network import ConfidenceFn, ExitFn, ExitNetwork
from offramp.runtime.backend import Activations, SpanFn, SpanProvider
from offramp.runtime.compaction import InParts
from offramp.runtime.execution import Execution


@dataclass(frozen=True)
class Step:
    """SpanFn ``span``; then, unless it is the last step, ask an exit who leaves.

    Args:
        span: what was handed on at the step before, to what is handed on here; None: nothing to run.
        macs: per sample, of the span and the head.
        position: where leaving is noted; P for the model's output.
        sure: outputs to confidence.
        ask: the exit; None at the last step.
        threshold: a float32, as a Python number.
        per_sample: for each carried tensor handed on here, whether it has one row per sample.
        owned: whether the feature handed on here belongs to nobody else.
        here: (1,) int64, the position, on the network's device.
    """

    span: SpanFn | None
    macs: int
    position: int
    confidence_fn: ConfidenceFn
    here: Tensor
    exit_fn: ExitFn | None = None
    threshold: float = math.inf
    per_sample: tuple[bool, ...] = ()
    owned: bool = False


@dataclass(frozen=True)
class Plan:
    """A configuration made ready.

    Args:
        config: what it is made of.
        execution: how its spans are computed.
        steps: one per enabled exit and one for the model's output.
        enter: flat inputs to what the first step is handed.
        answer: what the last step hands on to outputs as the task takes them.
        masked: whether any step wants to know which tokens are real.
    """

    config: ExitConfig
    execution: Execution
    steps: tuple[Step, ...]
    enter: Callable[[list[Tensor]], Activations]
    answer: Callable[[Activations], Tensor]
    masked: bool


class Planner:
    """Makes plans for one network and one way of computing its spans.

    Args:
        net: with trained heads.
        macs: what is counted.
        runner: of the network.
        seconds: measured costs by batch size; spans run in parts where that is faster. None: never.
    """

    def __init__(
        self, net: ExitNetwork, macs: CostTable, runner: SpanProvider, seconds: BatchCosts | None
    ) -> None:
        self._net, self._macs, self._runner, self._seconds = net, macs, runner, seconds
        self._spans: dict[tuple[int, int], SpanFn] = {}
        self._split: dict[tuple[int, int], SpanFn] = {}
        flow, cuts = net.partition.flow, net.partition.cuts
        self._owned = [
            False,
            *(flow.owned(cut.border.activations[0], cut.border.activations[1:]) for cut in cuts),
        ]

    def plan(self, config: ExitConfig) -> Plan:
        """A configuration made ready.

        Raises:
            InputError: it names a position or head that the network lacks.
        """
        net, backbone, steps, at = self._net, self._macs.backbone, list[Step](), 0
        masked, parts = net_masks(net), bool(config.choices)
        for position, column, threshold in resolve(net.positions, net.head_names, net.exists, config):
            macs = backbone[position] - backbone[at] + self._macs.heads[position, column]
            span = self.span(at, position, parts) if position > at else None
            masked = masked or wants_mask(net, position, column)
            steps.append(
                Step(
                    span,
                    int(macs),
                    position,
                    net.confidence_of(position, column),
                    self._here(position),
                    self._runner.exit_fn(position, column),
                    float(threshold),
                    self.per_sample(position),
                    self._owned[position],
                )
            )
            at = position
        last = len(net.positions)
        span = self.span(at, last, parts)
        steps.append(
            Step(span, int(backbone[last] - backbone[at]), last, net.confidence_of(last), self._here(last))
        )
        runner = self._runner
        return Plan(config, runner.execution, tuple(steps), runner.enter, runner.answer, masked)

    def _here(self, position: int) -> Tensor:
        return torch.full((1,), position, device=self._net.partition.spec.device)

    def span(self, start: int, stop: int, in_parts: bool = True) -> SpanFn:
        """What runs between two positions; the same function each time it is asked for.

        Args:
            start: 0 for the input.
            stop: P for the output.
            in_parts: whether a large batch may be run in parts, where that was measured to be faster.
        """
        if (start, stop) not in self._spans:
            self._spans[start, stop] = self._runner.span(start, stop)
        if not in_parts or self._seconds is None:
            return self._spans[start, stop]
        if (start, stop) not in self._split:
            self._split[start, stop] = self._in_parts(self._spans[start, stop], start, stop, self._seconds)
        return self._split[start, stop]

    def _in_parts(self, span: SpanFn, start: int, stop: int, seconds: BatchCosts) -> SpanFn:
        parts, _ = best_parts(seconds.span(start, stop))
        if parts.max() == 1:
            return span
        last = stop == len(self._net.positions)
        after = None if last else (True, *self.per_sample(stop))
        return InParts(span, parts, (True, *self.per_sample(start)), after)

    def per_sample(self, position: int) -> tuple[bool, ...]:
        """For each carried tensor handed on at a position, whether it has one row per sample."""
        if position == 0:
            return (True,) * (len(self._net.partition.spec.names) - 1)
        return self._net.partition.cuts[position - 1].carried_per_sample


def net_masks(net: ExitNetwork) -> bool:
    """Whether the answers themselves depend on which tokens are real."""
    return net.mask_input is not None and net.task.per_token


def wants_mask(net: ExitNetwork, position: int, column: int) -> bool:
    """Whether an exit looks at which tokens are real."""
    spec, head = net.specs[position], net.head(position, net.head_names[column])
    return net.mask_input is not None and spec is not None and spec.mask and getattr(head, "uses_mask", False)
