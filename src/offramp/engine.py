"""The engine: runs a network under one configuration, stops per sample, switches between calls.

    input ─ span ─▶ exit? ─ stay ─▶ span ─▶ exit? ─ stay ─▶ span ─▶ output
                     └ leave            └ leave

Between two enabled exits the operations are one function. Samples that leave are taken out of the batch, so
the rest is cheaper. A configuration is prepared once; ``use`` then only swaps one reference, and a call under
way keeps the plan it started with.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from offramp.config import ExitConfig
from offramp.cost import CostTable, measure_cost
from offramp.errors import InputError
from offramp.evaluate import resolve
from offramp.network import Ask, ExitNetwork, Judge
from offramp.plans import Plans
from offramp.spans import Span

_COSTS: WeakKeyDictionary[ExitNetwork, CostTable] = WeakKeyDictionary()
"""MACs of each network, counted once."""


@dataclass(frozen=True)
class EngineOutput:
    """Answers for a batch of B, in the order of the inputs.

    Args:
        outputs: (B, K), or (B, L, K) for a task with an answer per token.
        position: (B,) int64, index into ``net.positions`` of where each left; P for the model's output.
        confidence: (B,) float32, of the exit taken or of the model's output.
    """

    outputs: Tensor
    position: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done since it was made or reset.

    Args:
        samples: answered.
        exits: samples that left at each position; P + 1 counts, the last is the model's output.
        macs: multiply-accumulates executed, heads included.
        full_macs: what the full model would have spent on the same samples.
    """

    samples: int
    exits: tuple[int, ...]
    macs: int
    full_macs: int


@dataclass(frozen=True)
class _Step:
    """Run ``span``; then, unless it is the last step, ask an exit who leaves at ``position``."""

    span: Span | None
    macs: int
    position: int
    sure: Judge
    ask: Ask | None = None
    threshold: float = math.inf
    per_sample: tuple[bool, ...] = ()


@dataclass(frozen=True)
class _Plan:
    config: ExitConfig
    steps: tuple[_Step, ...]


class Engine:
    """Runs an ``ExitNetwork`` under a configuration that can be switched while it runs.

    Args:
        net: with trained heads; its backbone is called on the device it is on, always in eval mode.
        config: to start with; without choices it is the full model.
        prepare: further configurations to make ready, for instance a whole frontier.
        costs: what ``stats`` counts by; None counts MACs, which not every module given as an exit allows.

    Raises:
        InputError: a configuration names a position or head that the network lacks.
    """

    def __init__(
        self,
        net: ExitNetwork,
        config: ExitConfig | None = None,
        *,
        prepare: Iterable[ExitConfig] = (),
        costs: CostTable | None = None,
    ) -> None:
        if not isinstance(net, ExitNetwork):
            raise InputError(f"Engine: expected a network from attach_exits, got a {type(net).__name__}")
        self.net = net
        self._spec = net.partition.spec
        self._costs = macs_of(net) if costs is None else costs
        self._spans: dict[tuple[int, int], Span] = {}
        self._plans = Plans[ExitConfig, _Plan]()
        self._counting = threading.Lock()
        self.reset_stats()
        net.eval()
        self._plan = self._prepared(ExitConfig() if config is None else config)
        for each in prepare:
            self.prepare(each)

    @property
    def config(self) -> ExitConfig:
        """The configuration that the next call will use."""
        return self._plan.config

    def prepare(self, config: ExitConfig) -> None:
        """Make a configuration ready, so that ``use`` is a matter of microseconds."""
        self._prepared(config)

    def use(self, config: ExitConfig) -> None:
        """Switch to a configuration; calls under way finish under theirs. Safe from any thread.

        Raises:
            InputError: the configuration names a position or head that the network lacks. Nothing changes.
        """
        self._plan = self._prepared(config)

    def stats(self) -> EngineStats:
        """Counts since the engine was made or ``reset_stats`` was called."""
        with self._counting:
            exits, macs = tuple(self._exits), self._macs
        return EngineStats(sum(exits), exits, macs, sum(exits) * int(self._costs.full))

    def reset_stats(self) -> None:
        """Start counting anew."""
        with self._counting:
            self._exits = [0] * (len(self.net.positions) + 1)
            self._macs = 0

    @torch.inference_mode()
    def __call__(self, inputs: object) -> EngineOutput:
        """Answer a batch.

        Args:
            inputs: as in ``example_inputs``: a tensor, a tuple or a dict of tensors; any batch size.

        Raises:
            InputError: a shape, dtype, device or structure differs from the example's.
        """
        plan = self._plan
        values = self._spec.flatten(inputs)
        batch = len(values[0])
        if batch == 0:
            return self._nothing(values[0].device)
        return self._run(plan, values, batch)

    def _run(self, plan: _Plan, values: list[Tensor], batch: int) -> EngineOutput:
        handed: tuple[Any, ...] = tuple(values)
        mask = self.net.mask(values)
        rows: Tensor | None = None  # which samples of the batch are still here; None: all
        left: list[tuple[int, Tensor | None, Tensor, Tensor]] = []
        here, macs = batch, 0
        for step in plan.steps:
            macs += here * step.macs
            if step.span is not None:
                handed = step.span(*handed)
            if step.ask is None:
                outputs = self.net.answer(handed)
                left.append((step.position, rows, outputs, step.sure(outputs, mask)))
                break
            outputs = step.ask(handed, mask)
            confidence = step.sure(outputs, mask)
            leaves = (confidence > step.threshold) & (confidence < math.inf)
            going = int(leaves.sum())
            if going == 0:
                continue
            if going == here:
                left.append((step.position, rows, outputs, confidence))
                break
            out, stay = leaves.nonzero().flatten(), (~leaves).nonzero().flatten()
            gone = out if rows is None else rows[out]
            left.append((step.position, gone, outputs[out], confidence[out]))
            rows = stay if rows is None else rows[stay]
            here -= going
            handed = keep(handed, stay, step.per_sample)
            mask = None if mask is None else mask.index_select(0, stay)
        self._count(left, macs)
        outputs, position, confidence = _assemble(left, batch)
        return EngineOutput(self.net.task.answer(outputs), position, confidence)

    def _count(self, left: list[tuple[int, Tensor | None, Tensor, Tensor]], macs: int) -> None:
        with self._counting:
            self._macs += macs
            for position, _, outputs, _ in left:
                self._exits[position] += len(outputs)

    def _nothing(self, device: torch.device) -> EngineOutput:
        dtype = next((p.dtype for p in self.net.parameters()), torch.float32)
        return EngineOutput(
            torch.empty(0, *self.net.answer_shape, device=device, dtype=dtype),
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, device=device),
        )

    def _prepared(self, config: ExitConfig) -> _Plan:
        if not isinstance(config, ExitConfig):
            what = type(config).__name__
            raise InputError(f"expected an ExitConfig, such as frontier.at(max_cost=0.5); got a {what}")
        return self._plans.get(config, lambda: self._build(config))

    def _build(self, config: ExitConfig) -> _Plan:
        net, steps, at = self.net, list[_Step](), 0
        for position, column, threshold in resolve(net.positions, net.head_names, net.exists, config):
            cost = (
                self._costs.backbone[position]
                - self._costs.backbone[at]
                + self._costs.heads[position, column]
            )
            sure, ask = net.confidence_of(position, column), net.caller(position, column)
            per_sample = self._per_sample(position)
            span = self._span(at, position) if position > at else None
            steps.append(_Step(span, int(cost), position, sure, ask, float(threshold), per_sample))
            at = position
        last = len(net.positions)
        cost = self._costs.backbone[last] - self._costs.backbone[at]
        steps.append(_Step(self._span(at, last), int(cost), last, net.confidence_of(last)))
        return _Plan(config, tuple(steps))

    def _per_sample(self, position: int) -> tuple[bool, ...]:
        if position == 0:
            return (True,) * (len(self._spec.names) - 1)
        return self.net.partition.cuts[position - 1].carried_per_sample

    def _span(self, start: int, stop: int) -> Span:
        if (start, stop) not in self._spans:
            self._spans[start, stop] = self.net.partition.span(start, stop)
        return self._spans[start, stop]


def macs_of(net: ExitNetwork) -> CostTable:
    """What a network costs; counted the first time."""
    return _COSTS[net] if net in _COSTS else _COSTS.setdefault(net, measure_cost(net))


def keep(handed: tuple[Any, ...], stay: Tensor, per_sample: tuple[bool, ...]) -> tuple[Any, ...]:
    """The rows that stay, of the feature and of every carried tensor that has one row per sample."""
    carried = zip(handed[1:], per_sample, strict=True)
    return (
        handed[0].index_select(0, stay),
        *(value.index_select(0, stay) if each else value for value, each in carried),
    )


def _assemble(
    left: list[tuple[int, Tensor | None, Tensor, Tensor]], batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, positions and confidences, back in the order of the inputs."""
    position, rows, outputs, confidence = left[0]
    if rows is None:  # all left together
        return outputs, torch.full((batch,), position, device=outputs.device), confidence
    order = torch.cat([rows for _, rows, _, _ in left if rows is not None])
    back = torch.empty_like(order)
    back[order] = torch.arange(batch, device=order.device)
    positions = torch.cat([torch.full((len(out),), p, device=order.device) for p, _, out, _ in left])
    return (
        torch.cat([out for _, _, out, _ in left])[back],
        positions[back],
        torch.cat([conf for _, _, _, conf in left])[back],
    )
