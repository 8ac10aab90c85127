"""A configuration as steps: run a span, ask an exit who leaves, go on with the rest.

Everything that can be decided beforehand is decided when a plan is made: which functions run, which exits
want a mask, whether a span is run in parts, whether a feature may be changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.core import BatchCosts, CostTable, ExitConfig, best_parts, part_sizes, resolve
from offramp.execution import Execution
from offramp.network import Ask, ExitNetwork, Judge
from offramp.runner import Activations, Runner, SpanFn

Rows = npt.NDArray[np.int64]


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
    sure: Judge
    here: Tensor
    ask: Ask | None = None
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

    def __init__(self, net: ExitNetwork, macs: CostTable, runner: Runner, seconds: BatchCosts | None) -> None:
        self._net, self._macs, self._runner, self._seconds = net, macs, runner, seconds
        self._spans: dict[tuple[int, int], SpanFn] = {}
        self._split: dict[tuple[int, int], SpanFn] = {}
        flow, cuts = net.partition.flow, net.partition.cuts
        self._owned = [False, *(flow.owned(cut.border.handed[0], cut.border.handed[1:]) for cut in cuts)]

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
                    self._runner.caller(position, column),
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


class InParts:
    """A span over a large batch, run part by part: smaller pieces stay in the caches.

    Args:
        span: the function.
        parts: by number of rows, in how many; more rows than it knows: parts as large as the best of these.
        before: for each value handed in, whether it has one row per sample.
        after: the same for what is handed on; None at the model's output, where everything that has rows has
            one per sample.
    """

    def __init__(
        self, span: SpanFn, parts: npt.NDArray[np.int64], before: Sequence[bool], after: Sequence[bool] | None
    ) -> None:
        self._span, self._parts = span, parts.tolist()
        self._largest = max(1, (len(parts) - 1) // self._parts[-1])
        self._before, self._after = tuple(before), after

    def __call__(self, *handed: Tensor) -> Activations:
        """As the span itself."""
        rows = len(handed[0])
        parts = self._parts[rows] if rows < len(self._parts) else -(-rows // self._largest)
        if parts == 1:
            return self._span(*handed)
        sizes = part_sizes(rows, parts)
        pieces = [
            torch.split(value, sizes) if each else [value] * parts
            for value, each in zip(handed, self._before, strict=True)
        ]
        found = [self._span(*piece) for piece in zip(*pieces, strict=True)]
        return tuple(self._joined(i, values, sizes) for i, values in enumerate(zip(*found, strict=True)))

    def _joined(self, index: int, values: tuple[Any, ...], sizes: list[int]) -> Any:
        if self._after is None:
            rows = [len(v) if isinstance(v, Tensor) and v.ndim else None for v in values]
            each = rows == sizes
        else:
            each = self._after[index]
        return torch.cat(values) if each else values[0]


def leaving(confidence: Tensor, threshold: float) -> npt.NDArray[np.bool_]:
    """(B,) who leaves: finite confidence strictly above the threshold. One transfer off the device."""
    values = confidence.cpu().numpy()
    found: npt.NDArray[np.bool_] = (values > threshold) & (values < math.inf)
    return found


def as_index(rows: Rows, device: torch.device) -> Tensor:
    """Row numbers as a tensor on a device."""
    return torch.from_numpy(rows).to(device)


def keep(handed: Activations, stay: Tensor, per_sample: Sequence[bool]) -> Activations:
    """The rows that stay, of the feature and of every carried tensor that has one row per sample."""
    return (handed[0].index_select(0, stay), *_kept(handed, stay, per_sample))


def close_gaps(
    handed: Activations, leaves: npt.NDArray[np.bool_], owned: bool, per_sample: Sequence[bool]
) -> tuple[Activations, Rows]:
    """Take out who leaves, in place where that is safe: only the last rows move, into the gaps.

    Args:
        handed: what the step's span handed on.
        leaves: (B,) at least one, not all.
        owned: whether the feature may be changed.
        per_sample: for each carried tensor, whether it has one row per sample.

    Returns:
        What is handed on, and which of the B rows each of its rows was.
    """
    feature, count = handed[0], len(leaves) - int(np.count_nonzero(leaves))
    order = np.arange(count)
    gaps = np.flatnonzero(leaves[:count])
    moved = count + np.flatnonzero(~leaves[count:])
    order[gaps] = moved
    device = feature.device
    stay = as_index(order, device)
    if owned and _dense(feature):
        if len(gaps):
            feature.index_copy_(0, as_index(gaps, device), feature.index_select(0, as_index(moved, device)))
        feature = feature[:count]
    else:
        feature = feature.index_select(0, stay)
    return (feature, *_kept(handed, stay, per_sample)), order


def _dense(value: Tensor) -> bool:
    """Whether every element has a place of its own, batch outermost."""
    return value.is_contiguous() or (
        value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
    )


def _kept(handed: Activations, stay: Tensor, per_sample: Sequence[bool]) -> Activations:
    carried = zip(handed[1:], per_sample, strict=True)
    return tuple(value.index_select(0, stay) if each else value for value, each in carried)
