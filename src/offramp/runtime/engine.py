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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from offramp.core import CostTable, EngineStats, ExitConfig, PlanCache, exact_cost
from offramp.data import advise_threads, as_tensors, has_arrays
from offramp.errors import InputError
from offramp.network import ExitNetwork, counted_by, mac_table
from offramp.runtime.backend import SpanProvider
from offramp.runtime.compaction import (
    LeftGroup,
    RowIndices,
    as_index,
    close_gaps,
    leaves,
    leaving,
    take_leaving,
)
from offramp.runtime.execution import Execution
from offramp.runtime.plan import EnginePlan, Planner, check_config


@dataclass(frozen=True)
class EngineOutput:
    """Answers for a batch of B, in the order of the inputs.

    Tensors are made in inference mode: clone one before it takes part in a computation with gradients.

    Args:
        outputs: (B, K), or (B, L, K) for a task with an answer per token.
        position: (B,) int64, index into ``net.positions`` of where each left; P for the model's output.
        confidence: (B,) float32, of the exit taken or of the model's output.
    """

    outputs: Tensor
    position: Tensor
    confidence: Tensor

    @property
    def logits(self) -> Tensor:
        """``outputs``, as models of transformers call them."""
        return self.outputs

    def __iter__(self) -> Iterator[Tensor]:
        """outputs, position, confidence."""
        return iter((self.outputs, self.position, self.confidence))

    def first_tokens(self, tokens: int | None) -> EngineOutput:
        """Without the answers (B, L, K) to tokens behind so many, that filled the texts up; None: all."""
        if tokens is None or tokens == self.outputs.shape[1]:
            return self
        return EngineOutput(self.outputs[:, :tokens], self.position, self.confidence)

    def numpy(self) -> EngineOutput:
        """The same with NumPy arrays in place of tensors, on the CPU."""
        return EngineOutput(*(value.cpu().numpy() for value in self))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        batch, *shape = self.outputs.shape
        where = self.outputs.device if isinstance(self.outputs, Tensor) else "NumPy"
        return f"EngineOutput({batch} answers of shape {tuple(shape)}, on {where})"


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
            network, the model was changed after ``attach_exits``, or the execution cannot be had here.
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
            swapped = ": swapped?" if isinstance(config, ExitNetwork) else ""
            what = f"a {type(net).__name__}{swapped}"
            raise InputError(f"Engine: expected a network from attach_exits, got {what}")
        self.net = net
        self._partition = net.partition
        self._partition.check_unchanged()
        self._seconds = None if costs is None else costs.by_batch
        self._costs = counted_by(net, costs)
        if self._costs.unit == "macs":
            advise_threads(self._costs.full, "Engine")
        self._full = exact_cost(self._costs.full)
        self._by_length = (self._costs.meta or {}).get(
            "device"
        ) == "meta"  # counted, not a table of the user's own
        self._planners = PlanCache[Execution, Planner]()
        self._plans = PlanCache[tuple[ExitConfig, Execution], EnginePlan]()
        self._switching, self._counting = threading.Lock(), threading.Lock()
        self.reset_stats()
        net.eval()
        first = ExitConfig() if config is None else config
        self._plan = self._prepared(first, Execution() if execution is None else execution)
        for each in prepare:
            self.prepare(each)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "Engine: cannot be copied or pickled, for it holds prepared plans and locks; make one in each "
            "process, from a network that offramp.load gives"
        )

    def __repr__(self) -> str:
        return f"Engine({type(self.net.backbone).__name__}, {self.config})"

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
            InputError: it names a position or head that the network lacks, or the execution cannot be had.
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
        while True:
            now = self._plan
            plan = self._prepared(
                now.config if config is None else config, now.execution if execution is None else execution
            )
            with self._switching:
                # another thread may have switched the half that is kept, while this one was prepared
                if self._plan is now or (config is not None and execution is not None):
                    self._plan = plan
                    return

    def stats(self) -> EngineStats:
        """Counts since the engine was made or ``reset_stats`` was called."""
        with self._counting:
            exits, macs, full_macs = tuple(self._exits), self._macs, self._full_macs
        return EngineStats(samples=sum(exits), exits=exits, macs=macs, full_macs=full_macs)

    def reset_stats(self) -> None:
        """Start counting anew."""
        with self._counting:
            self._exits = [0] * (len(self.net.positions) + 1)
            self._macs: float = 0
            self._full_macs: float = 0

    @torch.inference_mode()
    def __call__(self, inputs: object = None, /, **named: object) -> EngineOutput:
        """Answer a batch.

        Args:
            inputs: as in ``example_inputs``: a tensor, a tuple or a dict of tensors; any batch size. NumPy
                arrays, on the CPU, are answered in NumPy arrays.
            named: the tensors of a dict, one by one: ``engine(**batch)``. Labels among them are ignored.

        Raises:
            InputError: a shape, dtype, device or structure differs from the example's, or the model was moved
                or had a part replaced after ``attach_exits``.
        """
        if inputs is None or named:
            inputs = _one_of(inputs, named)
        if type(inputs) is not Tensor and has_arrays(inputs):
            return self(as_tensors(inputs)).numpy()
        plan = self._plan
        values = self._partition.flatten(inputs)
        if not plan.execution.plain:
            values = self._partition.spec.padded(values)  # compiled for one length
        batch = len(values[0])
        if batch == 0:
            return no_answers(self.net, 0, values[0].device)
        answered = self._one(plan, values) if batch == 1 else self._many(plan, values, batch)
        if not self.net.task.per_token:
            return answered
        return answered.first_tokens(self._partition.spec.tokens_given(inputs))

    def _one(self, plan: EnginePlan, values: list[Tensor]) -> EngineOutput:
        """A batch of one sample: nothing to take out, nothing to put in order."""
        activations = tuple(values)
        mask = self.net.mask(values) if plan.masked else None
        macs: float = 0
        for step in plan.steps:
            macs += step.macs
            if step.span is not None:
                activations = step.span(*activations)
            outputs = step.exit_fn(activations, mask)
            confidence = step.confidence_fn(outputs, mask)
            if step.last or leaves(confidence.item(), step.threshold):
                break
        self._count([(step.position, 1)], macs, values, plan)
        return EngineOutput(self.net.task.answer(outputs), step.here.clone(), confidence)

    def _many(self, plan: EnginePlan, values: list[Tensor], batch: int) -> EngineOutput:
        activations = tuple(values)
        mask = self.net.mask(values) if plan.masked else None
        rows: RowIndices | None = None  # which samples of the batch are still here; None: all, in order
        left: list[LeftGroup] = []
        here = batch
        macs: float = 0
        for step in plan.steps:
            macs += here * step.macs
            if step.span is not None:
                activations = step.span(*activations)
            outputs = step.exit_fn(activations, mask)
            confidence = step.confidence_fn(outputs, mask)
            leavers = None if step.last else leaving(confidence, step.threshold)
            going = here if leavers is None else int(np.count_nonzero(leavers))
            if leavers is None or going == here:
                left.append((step.position, rows, outputs, confidence))
                break
            if going == 0:
                continue
            out, outputs, confidence = take_leaving(leavers, outputs, confidence)
            left.append((step.position, out if rows is None else rows[out], outputs, confidence))
            activations, order = close_gaps(activations, leavers, step.owned, step.per_sample)
            rows = order if rows is None else rows[order]
            here -= going
            mask = None if mask is None else mask.index_select(0, as_index(order, mask.device))
        self._count([(position, len(group)) for position, _, group, _ in left], macs, values, plan)
        outputs, position, confidence = _assemble(left, batch)
        return EngineOutput(self.net.task.answer(outputs), position, confidence)

    def _count(
        self, left: list[tuple[int, int]], macs: float, values: list[Tensor], plan: EnginePlan
    ) -> None:
        length, full = self._partition.spec.length(values), self._full
        if length is not None and self._by_length:
            table = mac_table(self.net, length)
            macs, full = _macs_of(plan, table, left), exact_cost(table.full)
        with self._counting:
            self._macs += macs
            for position, samples in left:
                self._exits[position] += samples
                self._full_macs += samples * full

    def _prepared(self, config: ExitConfig, execution: Execution) -> EnginePlan:
        check_config(config)
        if not isinstance(execution, Execution):
            raise InputError(
                f"expected an Execution, such as Execution(channels_last=True); got {execution!r:.80}"
            )
        return self._plans.get((config, execution), lambda: self._planner(execution).plan(config))

    def _planner(self, execution: Execution) -> Planner:
        return self._planners.get(
            execution,
            lambda: Planner(self.net, self._costs, SpanProvider(self.net, execution), self._seconds),
        )


def _one_of(inputs: object, named: dict[str, object]) -> object:
    """What was given, by position or by name."""
    if inputs is not None and named:
        raise InputError(
            f"expected inputs or tensors by name, got both ({', '.join(named)}); put them into one dict"
        )
    if inputs is None and not named:
        raise InputError("expected a batch of inputs, got none; call engine(inputs) or engine(**batch)")
    return named if inputs is None else inputs


def _macs_of(plan: EnginePlan, costs: CostTable, left: list[tuple[int, int]]) -> float:
    """What samples that left at these positions have cost by another table than the plan's."""
    total, at, gone = 0.0, 0, dict(left)
    here = sum(gone.values())
    for step in plan.steps:
        head = 0.0 if step.last else float(costs.heads[step.position, step.column])
        total += here * (float(costs.backbone[step.position] - costs.backbone[at]) + head)
        at = step.position
        here -= gone.get(step.position, 0)
        if here == 0:
            break
    return exact_cost(total)


def no_answers(net: ExitNetwork, batch: int, device: torch.device) -> EngineOutput:
    """NaN at position -1 for each sample of a batch."""
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    return EngineOutput(
        torch.full((batch, *net.answer_shape), math.nan, device=device, dtype=dtype),
        torch.full((batch,), -1, device=device),
        torch.full((batch,), math.nan, device=device),
    )


def _assemble(left: list[LeftGroup], batch: int) -> tuple[Tensor, Tensor, Tensor]:
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
