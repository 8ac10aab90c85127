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

import numpy as np
import torch
from torch import Tensor

from offramp.core import CostTable, ExitConfig, PlanCache
from offramp.errors import InputError
from offramp.network import ExitNetwork, counted_by
from offramp.runtime.backend import SpanProvider
from offramp.runtime.compaction import RowIndices, as_index, close_gaps, leaving
from offramp.runtime.execution import Execution
from offramp.runtime.plan import Plan, Planner


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


Left = tuple[int, RowIndices | None, Tensor, Tensor]
"""Who left at one exit: position, rows of the batch (None: all), outputs, confidences."""


class Engine:
    """Runs an ``ExitNetwork`` under a configuration that can be switched while it runs.

    Args:
        net: with trained heads; its backbone is called on the device it is on, always in eval mode.
        config: to start with; without choices it is the full model.
        prepare: further configurations to make ready, for instance a whole frontier.
        costs: what ``stats`` counts by, where it is no table of seconds: for modules given as exits whose
            MACs cannot be counted. A table of seconds (``measure_cost(unit="seconds")``) tells how large a
            batch is fastest: larger ones are run in parts. None counts MACs and never splits a batch.
        execution: how spans are computed; None is eager PyTorch, which equals the model bit for bit.

    Raises:
        InputError: a configuration names a position or head that the network lacks, the costs are of another
            network, or the execution cannot be had here.
    """

    def __init__(
        self,
        net: ExitNetwork,
        config: ExitConfig | None = None,
        *,
        prepare: Iterable[ExitConfig] = (),
        costs: CostTable | None = None,
        execution: Execution | None = None,
    ) -> None:
        if not isinstance(net, ExitNetwork):
            raise InputError(f"Engine: expected a network from attach_exits, got a {type(net).__name__}")
        self.net = net
        self._spec = net.partition.spec
        self._seconds = None if costs is None else costs.by_batch
        self._costs = counted_by(net, costs)
        self._planners: dict[Execution, Planner] = {}
        self._plans = PlanCache[tuple[ExitConfig, Execution], Plan]()
        self._switching, self._counting = threading.Lock(), threading.Lock()
        self.reset_stats()
        net.eval()
        first = ExitConfig() if config is None else config
        self._plan = self._prepared(first, Execution() if execution is None else execution)
        for each in prepare:
            self.prepare(each)

    @property
    def config(self) -> ExitConfig:
        """The configuration that the next call will use."""
        return self._plan.config

    @property
    def execution(self) -> Execution:
        """How the next call will compute spans."""
        return self._plan.execution

    def prepare(self, config: ExitConfig, execution: Execution | None = None) -> None:
        """Make a configuration ready, so that ``use`` is a matter of microseconds.

        Args:
            config: to make ready.
            execution: to make it ready for; None: the present one.

        Raises:
            InputError: as for ``Engine``.
        """
        self._prepared(config, self._plan.execution if execution is None else execution)

    def use(self, config: ExitConfig | None = None, execution: Execution | None = None) -> None:
        """Switch to a configuration; calls under way finish under theirs. Safe from any thread.

        Args:
            config: None keeps the present one.
            execution: None keeps the present one.

        Raises:
            InputError: the configuration names a position or head that the network lacks, or the execution
                cannot be had. Nothing changes.
        """
        if config is None and execution is None:
            raise InputError(
                "use: expected an ExitConfig, such as frontier.at(max_cost=0.5), an Execution, or both; "
                "got neither"
            )
        if config is not None and execution is not None:
            self._plan = self._prepared(config, execution)
            return
        with self._switching:  # two threads that switch different things must not undo each other
            now = self._plan
            self._plan = self._prepared(now.config if config is None else config, execution or now.execution)

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
        if batch == 1:
            return self._one(plan, values)
        if batch == 0:
            return self._nothing(values[0].device)
        return self._many(plan, values, batch)

    def _one(self, plan: Plan, values: list[Tensor]) -> EngineOutput:
        """A batch of one sample: nothing to take out, nothing to put in order."""
        activations = plan.enter(values)
        mask = self.net.mask(values) if plan.masked else None
        macs = 0
        for step in plan.steps:
            macs += step.macs
            if step.span is not None:
                activations = step.span(*activations)
            outputs = plan.answer(activations) if step.exit_fn is None else step.exit_fn(activations, mask)
            confidence = step.confidence_fn(outputs, mask)
            if step.exit_fn is None or step.threshold < confidence.item() < math.inf:
                break
        self._count([(step.position, 1)], macs)
        return EngineOutput(self.net.task.answer(outputs), step.here.clone(), confidence)

    def _many(self, plan: Plan, values: list[Tensor], batch: int) -> EngineOutput:
        activations = plan.enter(values)
        mask = self.net.mask(values) if plan.masked else None
        rows: RowIndices | None = None  # which samples of the batch are still here; None: all, in order
        left: list[Left] = []
        here, macs = batch, 0
        for step in plan.steps:
            macs += here * step.macs
            if step.span is not None:
                activations = step.span(*activations)
            outputs = plan.answer(activations) if step.exit_fn is None else step.exit_fn(activations, mask)
            confidence = step.confidence_fn(outputs, mask)
            if step.exit_fn is None:
                left.append((step.position, rows, outputs, confidence))
                break
            leaves = leaving(confidence, step.threshold)
            going = int(np.count_nonzero(leaves))
            if going == 0:
                continue
            if going == here:
                left.append((step.position, rows, outputs, confidence))
                break
            out = np.flatnonzero(leaves)
            index = as_index(out, outputs.device)
            gone = out if rows is None else rows[out]
            left.append(
                (step.position, gone, outputs.index_select(0, index), confidence.index_select(0, index))
            )
            activations, order = close_gaps(activations, leaves, step.owned, step.per_sample)
            rows = order if rows is None else rows[order]
            here -= going
            mask = None if mask is None else mask.index_select(0, as_index(order, mask.device))
        self._count([(position, len(gone)) for position, _, gone, _ in left], macs)
        outputs, position, confidence = _assemble(left, batch)
        return EngineOutput(self.net.task.answer(outputs), position, confidence)

    def _count(self, left: list[tuple[int, int]], macs: int) -> None:
        with self._counting:
            self._macs += macs
            for position, samples in left:
                self._exits[position] += samples

    def _nothing(self, device: torch.device) -> EngineOutput:
        dtype = next((p.dtype for p in self.net.parameters()), torch.float32)
        return EngineOutput(
            torch.empty(0, *self.net.answer_shape, device=device, dtype=dtype),
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, device=device),
        )

    def _prepared(self, config: ExitConfig, execution: Execution) -> Plan:
        if not isinstance(config, ExitConfig):
            what = type(config).__name__
            raise InputError(f"expected an ExitConfig, such as frontier.at(max_cost=0.5); got a {what}")
        if not isinstance(execution, Execution):
            raise InputError(
                f"expected an Execution, such as Execution(channels_last=True); got {execution!r:.80}"
            )
        return self._plans.get((config, execution), lambda: self._planner(execution).plan(config))

    def _planner(self, execution: Execution) -> Planner:
        if execution not in self._planners:
            runner = SpanProvider(self.net, execution)
            self._planners[execution] = Planner(self.net, self._costs, runner, self._seconds)
        return self._planners[execution]


def _assemble(left: list[Left], batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, positions and confidences, back in the order of the inputs."""
    position, rows, outputs, confidence = left[0]
    if rows is None:  # all left together
        return outputs, torch.full((batch,), position, device=outputs.device), confidence
    order = np.concatenate([rows for _, rows, _, _ in left if rows is not None])
    back = np.empty_like(order)
    back[order] = np.arange(batch)
    positions = np.repeat([p for p, _, _, _ in left], [len(out) for _, _, out, _ in left])[back]
    index = as_index(back, outputs.device)
    return (
        torch.cat([out for _, _, out, _ in left]).index_select(0, index),
        as_index(positions, outputs.device),
        torch.cat([conf for _, _, _, conf in left]).index_select(0, index),
    )
