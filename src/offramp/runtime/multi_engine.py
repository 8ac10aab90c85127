"""The engine for several tasks over one backbone: every segment runs once, each task leaves by its own exits.

A task's exits see the samples that still want that task, and no others. A sample is taken out of the batch
when it has all the answers it wants.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.core import ExitConfig, PlanCache, RunStats, exact_cost, names_of
from offramp.errors import InputError
from offramp.network import ExitNetwork, mac_table
from offramp.runtime.backend import SpanFn, SpanProvider
from offramp.runtime.compaction import RowIndices, as_index, keep, leaving, take_leaving
from offramp.runtime.engine import EngineOutput, no_answers
from offramp.runtime.plan import EnabledExit, Planner, check_config

Wanted = Sequence[str] | Tensor
"""Names of tasks, for the whole batch; or (B, T) bool, a column per task in the order of ``engine.tasks``."""

AnswerGroup = tuple[int, RowIndices, Tensor, Tensor]
"""Answers given at one exit: position, rows of the batch, outputs, confidences."""


@dataclass(frozen=True, kw_only=True)
class MultiStats(RunStats[Mapping[str, tuple[int, ...]]]):
    """What an engine for several tasks has done since it was made or reset.

    ``samples`` wanted any task; ``exits`` counts answers by task and position; shared segments are in
    ``macs`` once; ``full_macs`` is what the full model, run once for all tasks, would have spent.

    Args:
        separate_macs: what one engine per task would have spent on the same samples.
    """

    separate_macs: float


@dataclass(frozen=True)
class _MultiStep:
    """Run ``span`` of ``macs`` per sample, then the exits of some tasks (by index)."""

    span: SpanFn | None
    macs: float
    per_sample: tuple[bool, ...]
    exits: tuple[tuple[int, EnabledExit], ...]


@dataclass(frozen=True)
class _MultiPlan:
    """Configurations by task made ready; ``separate_macs`` by task and position, were the task run alone."""

    configs: Mapping[str, ExitConfig]
    steps: tuple[_MultiStep, ...]
    separate_macs: tuple[Mapping[int, float], ...]


class _Call:
    """One batch on its way.

    Attributes:
        macs: executed so far.
        left: by task, the answers given so far.
    """

    def __init__(
        self, masks: Sequence[Tensor | None], values: Sequence[Tensor], wants: npt.NDArray[np.bool_]
    ) -> None:
        self.macs: float = 0
        self.left: list[list[AnswerGroup]] = [[] for _ in masks]
        self._masks, self._activations = masks, tuple(values)
        self._wants, self._rows = wants.copy(), np.arange(len(wants))  # of the samples still here

    def run(self, steps: Sequence[_MultiStep]) -> None:
        """From the input to wherever the last sample has its last answer."""
        self._drop_finished((True,) * len(self._activations))
        for step in steps:
            if not self._wants.any():
                return
            self.macs += len(self._rows) * step.macs
            if step.span is not None:
                self._activations = step.span(*self._activations)
            for task, exit_ in step.exits:
                rows = np.flatnonzero(self._wants[:, task])
                if len(rows):
                    self._run_exit(task, exit_, rows, step.per_sample)
            self._drop_finished(step.per_sample)

    def _run_exit(self, task: int, exit_: EnabledExit, rows: RowIndices, per_sample: Sequence[bool]) -> None:
        """Run a task's exit on the rows that want the task; note the answers of those that leave."""
        activations, mask = self._activations, self._masks[task]
        some = None if len(rows) == len(self._rows) else as_index(rows, activations[0].device)
        if mask is not None:
            mask = mask.index_select(0, as_index(self._rows[rows], mask.device))
        if some is not None and not exit_.last:
            activations = keep(activations, some, per_sample)
        outputs = exit_.exit_fn(activations, mask)
        if some is not None and exit_.last:
            outputs = outputs.index_select(0, some)
        confidence = exit_.confidence_fn(outputs, mask)
        self.macs += len(rows) * exit_.macs
        if not exit_.last:
            leavers = leaving(confidence, exit_.threshold)
            if not leavers.all():
                out, outputs, confidence = take_leaving(leavers, outputs, confidence)
                rows = rows[out]
        if len(rows):
            self.left[task].append((exit_.position, self._rows[rows], outputs, confidence))
            self._wants[rows, task] = False

    def _drop_finished(self, per_sample: Sequence[bool]) -> None:
        """Take out the rows that want nothing more."""
        stay = self._wants.any(1)
        if stay.any() and not stay.all():
            index = as_index(np.flatnonzero(stay), self._activations[0].device)
            self._activations = keep(self._activations, index, per_sample)
            self._rows, self._wants = self._rows[stay], self._wants[stay]


class MultiEngine:
    """Runs networks of several tasks over one backbone, each under a configuration of its own.

    Args:
        networks: by task, from ``attach_tasks`` or ``load_tasks``, with trained heads.
        configs: by task, to start with; a task without one has the full model's answer.
        prepare: further settings to make ready: dicts of configurations by task, as ``use`` takes them.

    Raises:
        InputError: no networks, networks that do not share a partition, or a configuration that names an
            unknown task, position or head.
    """

    def __init__(
        self,
        networks: Mapping[str, ExitNetwork],
        configs: Mapping[str, ExitConfig] | None = None,
        *,
        prepare: Iterable[Mapping[str, ExitConfig]] = (),
    ) -> None:
        _check_networks(networks)
        self.networks: Mapping[str, ExitNetwork] = MappingProxyType(dict(networks))
        self.tasks = tuple(networks)
        self._nets = tuple(networks.values())
        self._partition = self._nets[0].partition
        self._planners = [Planner(net, mac_table(net), SpanProvider(net)) for net in self._nets]
        self._plans = PlanCache[tuple[ExitConfig, ...], _MultiPlan]()
        self._switching, self._counting = threading.Lock(), threading.Lock()
        self.reset_stats()
        for net in self._nets:
            net.eval()
        self._plan = self._prepared(dict.fromkeys(self.tasks, ExitConfig()))
        self.use(configs or {})
        for each in prepare:
            self.prepare(each)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "MultiEngine: cannot be copied or pickled, for it holds prepared plans and locks; make one in "
            "each process, from networks that offramp.load_tasks gives"
        )

    def __repr__(self) -> str:
        return f"MultiEngine({type(self._partition.model).__name__}, tasks {', '.join(self.tasks)})"

    @property
    def configs(self) -> Mapping[str, ExitConfig]:
        """The configurations, by task, that the next call will use."""
        return self._plan.configs

    def prepare(self, configs: Mapping[str, ExitConfig]) -> None:
        """Make a setting ready, so that ``use`` is a matter of microseconds.

        Args:
            configs: by task; a task left out keeps the configuration it has now.
        """
        self._check_configs(configs)
        self._prepared({**self._plan.configs, **configs})

    def use(self, configs: Mapping[str, ExitConfig]) -> None:
        """Switch some tasks, or all, at once; calls under way finish under theirs. Safe from any thread.

        Args:
            configs: by task; the others keep theirs.

        Raises:
            InputError: an unknown task, or a configuration that does not fit its network. Nothing changes.
        """
        self._check_configs(configs)
        while True:
            now = self._plan
            plan = self._prepared({**now.configs, **configs})
            with self._switching:
                if self._plan is now:  # else another thread has switched other tasks meanwhile
                    self._plan = plan
                    return

    def stats(self) -> MultiStats:
        """Counts since the engine was made or ``reset_stats`` was called."""
        with self._counting:
            return MultiStats(
                samples=self._samples,
                exits={name: tuple(counts) for name, counts in zip(self.tasks, self._exits, strict=True)},
                macs=self._macs,
                full_macs=self._samples * exact_cost(mac_table(self._nets[0]).full),
                separate_macs=self._separate,
            )

    def reset_stats(self) -> None:
        """Start counting anew."""
        with self._counting:
            self._exits = [[0] * (len(self._partition.cuts) + 2) for _ in self.tasks]
            self._samples = 0
            self._macs: float = 0
            self._separate: float = 0

    @torch.inference_mode()
    def __call__(self, inputs: object, tasks: Wanted | None = None) -> dict[str, EngineOutput]:
        """Answer a batch.

        Args:
            inputs: as in ``example_inputs``: a tensor, a tuple or a dict of tensors; any batch size.
            tasks: which ones to answer, None for all; or (B, T) bool, which sample wants which.

        Returns:
            Answers by task. Rows that did not want a task have position -1 and NaN for the rest.

        Raises:
            InputError: inputs that do not fit the model, an unknown task, or a mask of another shape.
        """
        plan = self._plan
        values = self._partition.spec.padded(self._partition.flatten(inputs))  # counted at one length
        names, wants = self._wanted(tasks, len(values[0]))
        call = _Call([net.mask(values) for net in self._nets], values, wants)
        call.run(plan.steps)
        self._count(plan, call, int(wants.any(1).sum()))
        indices = {name: self.tasks.index(name) for name in names}
        tokens = self._partition.spec.tokens_given(inputs)
        found = {name: _answers(self._nets[i], call.left[i], values[0]) for name, i in indices.items()}
        return {
            name: answered.first_tokens(tokens if self._nets[indices[name]].task.per_token else None)
            for name, answered in found.items()
        }

    def _wanted(self, tasks: Wanted | None, batch: int) -> tuple[tuple[str, ...], npt.NDArray[np.bool_]]:
        """Tasks to answer, and (B, T) which sample wants which."""
        if isinstance(tasks, Tensor):
            if tasks.shape != (batch, len(self.tasks)) or tasks.dtype != torch.bool:
                raise InputError(
                    f"tasks: expected names, or bool of shape ({batch}, {len(self.tasks)}), a column for "
                    f"each of {names_of(self.tasks)}; got {tasks.dtype} of shape {tuple(tasks.shape)}"
                )
            return self.tasks, tasks.cpu().numpy()
        names = self.tasks if tasks is None else tasks
        if isinstance(names, str) or not names:
            raise InputError(f"tasks: expected names such as {self.tasks}, got {names!r}")
        for name in names:
            self._check_known(name)
        row = np.array([name in names for name in self.tasks])
        return tuple(dict.fromkeys(names)), np.tile(row, (batch, 1))

    def _count(self, plan: _MultiPlan, call: _Call, samples: int) -> None:
        with self._counting:
            self._samples += samples
            self._macs += call.macs
            for counts, alone, groups in zip(self._exits, plan.separate_macs, call.left, strict=True):
                for position, rows, _, _ in groups:
                    counts[position] += len(rows)
                    self._separate += len(rows) * alone[position]

    def _check_known(self, name: object) -> None:
        if name not in self.tasks:
            raise InputError(f"unknown task {name!r}; there are {names_of(self.tasks)}")

    def _check_configs(self, configs: Mapping[str, ExitConfig]) -> None:
        if not isinstance(configs, Mapping):
            what = type(configs).__name__
            raise InputError(
                f"expected a dict task -> ExitConfig, got a {what}; tasks: {names_of(self.tasks)}"
            )
        for name, config in configs.items():
            self._check_known(name)
            try:
                check_config(config)
            except InputError as error:
                raise InputError(f"{name!r}: {error}") from error

    def _prepared(self, configs: Mapping[str, ExitConfig]) -> _MultiPlan:
        return self._plans.get(tuple(configs.values()), lambda: self._build(configs))

    def _build(self, configs: Mapping[str, ExitConfig]) -> _MultiPlan:
        planner, steps, at = self._planners[0], list[_MultiStep](), 0
        by_position: dict[int, list[tuple[int, EnabledExit]]] = {}
        separate_macs = []
        for task, (name, config) in enumerate(configs.items()):
            try:
                exits = self._planners[task].exits(config)
            except InputError as error:
                raise InputError(f"{name!r}: {error}") from error
            heads, alone = 0.0, dict[int, float]()
            for exit_ in exits:
                heads += exit_.macs
                alone[exit_.position] = exact_cost(planner.backbone(0, exit_.position) + heads)
                by_position.setdefault(exit_.position, []).append((task, exit_))
            separate_macs.append(alone)
        for position, exits_here in sorted(by_position.items()):
            step = _MultiStep(
                span=planner.span(at, position) if position > at else None,
                macs=planner.backbone(at, position),
                per_sample=(True, *self._partition.carried_per_sample(position)),
                exits=tuple(exits_here),
            )
            steps.append(step)
            at = position
        return _MultiPlan(MappingProxyType(dict(configs)), tuple(steps), tuple(separate_macs))


def _answers(net: ExitNetwork, groups: Sequence[AnswerGroup], like: Tensor) -> EngineOutput:
    """Answers to one task, in the order of the inputs; NaN at position -1 for rows that did not want it."""
    batch, device = len(like), like.device
    if len(groups) == 1 and len(groups[0][1]) == batch:  # one exit answered all, in order
        position, _, outputs, confidence = groups[0]
        where = torch.full((batch,), position, device=device)
        return EngineOutput(net.task.answer(outputs), where, confidence)
    where = torch.full((batch,), -1, device=device)
    confidence = torch.full((batch,), math.nan, device=device)
    if not groups:
        return no_answers(net, batch, device)
    rows = as_index(np.concatenate([group[1] for group in groups]), device)
    answers = net.task.answer(torch.cat([group[2] for group in groups]))
    outputs = answers.new_full((batch, *answers.shape[1:]), math.nan)
    outputs[rows] = answers
    confidence[rows] = torch.cat([group[3] for group in groups]).to(confidence.dtype)
    positions = [np.full(len(group[1]), group[0]) for group in groups]
    where[rows] = as_index(np.concatenate(positions), device)
    return EngineOutput(outputs, where, confidence)


def _check_networks(networks: Mapping[str, ExitNetwork]) -> None:
    if not isinstance(networks, Mapping) or not networks:
        raise InputError(f"MultiEngine: expected networks by task, from attach_tasks; got {networks!r:.80}")
    for name, net in networks.items():
        if not isinstance(net, ExitNetwork):
            raise InputError(f"MultiEngine: expected a network for {name!r}, got a {type(net).__name__}")
    if len({id(net.partition) for net in networks.values()}) > 1:
        raise InputError(
            "MultiEngine: expected networks that share their segments; attach all of them with attach_tasks, "
            "or load them with load_tasks"
        )
