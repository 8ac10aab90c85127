"""One batch on its way through stops, with several tasks asking.

A task's exits see the samples that still want that task, and no others. A sample is taken out of the batch
when it has all the answers it wants.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, arange

from offramp.core import ExitConfig, PlanCache, names_of, resolve
from offramp.errors import InputError
from offramp.graph import Span
from offramp.network import ConfidenceFn, ExitFn, ExitNetwork, mac_table
from offramp.runtime.compaction import keep
from offramp.runtime.engine import EngineOutput

Part = tuple[int, Tensor, Tensor, Tensor]
"""Answers given at one exit: position, rows of the batch, outputs, confidences."""


@dataclass(frozen=True)
class Question:
    """A task's exit at a stop; without ``ask``, its answer from the model's own output."""

    task: int
    macs: int
    confidence_fn: ConfidenceFn
    exit_fn: ExitFn | None = None
    threshold: float = -math.inf


@dataclass(frozen=True)
class Stop:
    """Run ``span``; then put the questions to the samples that want them."""

    position: int
    span: Span | None
    macs: int
    per_sample: tuple[bool, ...]
    questions: tuple[Question, ...]


class Call:
    """One batch on its way.

    Attributes:
        macs: executed so far.
        given: by task, the answers given so far.
    """

    def __init__(self, nets: Sequence[ExitNetwork], values: list[Tensor], wants: Tensor) -> None:
        self.macs = 0
        self.given: list[list[Part]] = [[] for _ in nets]
        self._nets, self._handed, self._wants = nets, tuple(values), wants.clone()  # (samples here, T)
        self._masks = [net.mask(values) for net in nets]
        self._rows = arange(len(wants), device=wants.device)  # of the batch: who is here
        self._wanting: list[int] = wants.sum(0).tolist()  # by task, how many of those here want it

    def run(self, stops: Sequence[Stop]) -> None:
        """From the input to wherever the last sample has its last answer."""
        self._let_go((True,) * (len(self._handed) - 1))
        for stop in stops:
            if not any(self._wanting):
                return
            self.macs += len(self._rows) * stop.macs
            if stop.span is not None:
                self._handed = stop.span(*self._handed)
            before = sum(self._wanting)
            for question in stop.questions:
                if self._wanting[question.task]:
                    self._put(question, stop)
            if sum(self._wanting) < before:
                self._let_go(stop.per_sample)

    def _put(self, question: Question, stop: Stop) -> None:
        """Ask who wants to know; note the answers that are sure enough."""
        task, count = question.task, self._wanting[question.task]
        who = None if count == len(self._rows) else self._wants[:, task].nonzero().flatten()  # None: all here
        self.macs += count * question.macs
        outputs, confidence = self._ask(question, stop, who)
        if question.exit_fn is not None:
            leaves = (confidence > question.threshold) & (confidence < math.inf)
            count = int(leaves.sum())
            if count == 0:
                return
            if count < len(leaves):
                leaving = leaves.nonzero().flatten()
                who = leaving if who is None else who[leaving]
                outputs, confidence = outputs[leaving], confidence[leaving]
        rows = self._rows if who is None else self._rows[who]
        self.given[task].append((stop.position, rows, outputs, confidence))
        self._wanting[task] -= count
        self._wants[slice(None) if who is None else who, task] = False

    def _ask(self, question: Question, stop: Stop, who: Tensor | None) -> tuple[Tensor, Tensor]:
        net, mask = self._nets[question.task], self._masks[question.task]
        if mask is not None:
            mask = mask.index_select(0, self._rows if who is None else self._rows[who])
        if question.exit_fn is None:
            answers = net.answer(self._handed)
            outputs = answers if who is None else answers.index_select(0, who)
        else:
            activations = self._handed if who is None else keep(self._handed, who, stop.per_sample)
            outputs = question.exit_fn(activations, mask)
        return outputs, question.confidence_fn(outputs, mask)

    def _let_go(self, per_sample: tuple[bool, ...]) -> None:
        """Take out those who want nothing more."""
        here = len(self._rows)
        if here in self._wanting or not any(self._wanting):  # all here want some task, or nobody wants any
            return
        stay = self._wants.any(1).nonzero().flatten()
        if len(stay) < here:
            self._rows, self._wants = self._rows[stay], self._wants[stay]
            self._handed = keep(self._handed, stay, per_sample)


Wanted = Sequence[str] | Tensor
"""Names of tasks, for the whole batch; or (B, T) bool, a column per task in the order of ``engine.tasks``."""


@dataclass(frozen=True)
class MultiStats:
    """What an engine for several tasks has done since it was made or reset.

    Args:
        samples: that asked for anything.
        exits: by task, answers given at each position; P + 1 counts, the last is the model's output.
        macs: multiply-accumulates executed, heads included, shared segments once.
        separate_macs: what one engine per task would have spent on the same questions.
        full_macs: what the full model would have spent on the same samples, run once for all tasks.
    """

    samples: int
    exits: Mapping[str, tuple[int, ...]]
    macs: int
    separate_macs: int
    full_macs: int


@dataclass(frozen=True)
class _Plan:
    configs: Mapping[str, ExitConfig]
    stops: tuple[Stop, ...]
    spent: tuple[tuple[int, ...], ...]
    """By task and position: MACs of leaving there, were the task asked alone."""


class MultiEngine:
    """Runs networks of several tasks over one backbone, each under a configuration of its own.

    Args:
        networks: by task, from ``attach_tasks`` or ``load_tasks``, with trained heads.
        configs: by task, to start with; a task without one has the full model's answer.
        prepare: further settings to make ready: dicts as for ``use``.

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
        self._parts = self._nets[0].partition
        self._costs = [mac_table(net) for net in self._nets]
        self._spans: dict[tuple[int, int], Span] = {}
        self._plans = PlanCache[tuple[ExitConfig, ...], _Plan]()
        self._switching, self._counting = threading.Lock(), threading.Lock()
        self.reset_stats()
        for net in self._nets:
            net.eval()
        self._plan = self._prepared(dict.fromkeys(self.tasks, ExitConfig()))
        self.use(configs or {})
        for each in prepare:
            self.prepare(each)

    @property
    def configs(self) -> Mapping[str, ExitConfig]:
        """The configurations, by task, that the next call will use."""
        return self._plan.configs

    def prepare(self, configs: Mapping[str, ExitConfig]) -> None:
        """Make a setting ready, so that ``use`` is a matter of microseconds.

        Args:
            configs: by task; a task left out keeps the configuration it has now.
        """
        self._prepared(self._completed(configs))

    def use(self, configs: Mapping[str, ExitConfig]) -> None:
        """Switch some tasks, or all, at once; calls under way finish under theirs. Safe from any thread.

        Args:
            configs: by task; the others keep theirs.

        Raises:
            InputError: an unknown task, or a configuration that does not fit its network. Nothing changes.
        """
        with self._switching:  # two threads that switch different tasks must not undo each other
            self._plan = self._prepared(self._completed(configs))

    def stats(self) -> MultiStats:
        """Counts since the engine was made or ``reset_stats`` was called."""
        with self._counting:
            exits = {name: tuple(counts) for name, counts in zip(self.tasks, self._exits, strict=True)}
            samples, macs, separate = self._samples, self._macs, self._separate
        return MultiStats(samples, exits, macs, separate, samples * int(self._costs[0].full))

    def reset_stats(self) -> None:
        """Start counting anew."""
        with self._counting:
            self._exits = [[0] * (len(self._parts.cuts) + 2) for _ in self.tasks]
            self._samples = self._macs = self._separate = 0

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
        values = self._parts.spec.flatten(inputs)
        names, wants = self._wanted(tasks, len(values[0]), values[0].device)
        call = Call(self._nets, values, wants)
        call.run(plan.stops)
        self._count(plan, call, int(wants.any(1).sum()))
        return {name: self._answers(self.tasks.index(name), call, values[0]) for name in names}

    def _wanted(
        self, tasks: Wanted | None, batch: int, device: torch.device
    ) -> tuple[tuple[str, ...], Tensor]:
        """Tasks to answer, and (B, T) bool."""
        if isinstance(tasks, Tensor):
            if tasks.shape != (batch, len(self.tasks)) or tasks.dtype != torch.bool:
                raise InputError(
                    f"tasks: expected names, or bool of shape ({batch}, {len(self.tasks)}), a column for "
                    f"each of {names_of(self.tasks)}; got {tasks.dtype} of shape {tuple(tasks.shape)}"
                )
            return self.tasks, tasks.to(device)
        names = self.tasks if tasks is None else tasks
        if isinstance(names, str) or not names:
            raise InputError(f"tasks: expected names such as {self.tasks}, got {names!r}")
        for name in names:
            self._check_known(name)
        row = torch.tensor([name in names for name in self.tasks], device=device)
        return tuple(dict.fromkeys(names)), row.expand(batch, -1)

    def _answers(self, task: int, call: Call, like: Tensor) -> EngineOutput:
        """Answers to one task, in the order of the inputs."""
        net, parts, batch = self._nets[task], call.given[task], len(like)
        if len(parts) == 1 and len(parts[0][1]) == batch:  # one exit answered all, in order
            position, _, outputs, confidence = parts[0]
            where = torch.full((batch,), position, device=like.device)
            return EngineOutput(net.task.answer(outputs), where, confidence)
        where = torch.full((batch,), -1, device=like.device)
        confidence = torch.full((batch,), math.nan, device=like.device)
        if not parts:
            dtype = next((p.dtype for p in net.parameters()), torch.float32)
            nothing = torch.full((batch, *net.answer_shape), math.nan, device=like.device, dtype=dtype)
            return EngineOutput(nothing, where, confidence)
        rows = torch.cat([part[1] for part in parts])
        answers = net.task.answer(torch.cat([part[2] for part in parts]))
        outputs = answers.new_full((batch, *answers.shape[1:]), math.nan)
        outputs[rows] = answers
        confidence[rows] = torch.cat([part[3] for part in parts]).to(confidence.dtype)
        for position, gone, _, _ in parts:
            where[gone] = position
        return EngineOutput(outputs, where, confidence)

    def _count(self, plan: _Plan, call: Call, samples: int) -> None:
        with self._counting:
            self._samples += samples
            self._macs += call.macs
            for counts, spent, parts in zip(self._exits, plan.spent, call.given, strict=True):
                for position, rows, _, _ in parts:
                    counts[position] += len(rows)
                    self._separate += len(rows) * spent[position]

    def _check_known(self, name: object) -> None:
        if name not in self.tasks:
            raise InputError(f"unknown task {name!r}; there are {names_of(self.tasks)}")

    def _completed(self, configs: Mapping[str, ExitConfig]) -> dict[str, ExitConfig]:
        """With the present configurations of the tasks left out, in the order of the tasks."""
        if not isinstance(configs, Mapping):
            what = type(configs).__name__
            raise InputError(
                f"expected a dict task -> ExitConfig, got a {what}; tasks: {names_of(self.tasks)}"
            )
        for name, config in configs.items():
            self._check_known(name)
            if not isinstance(config, ExitConfig):
                what = type(config).__name__
                raise InputError(
                    f"{name!r}: expected an ExitConfig, such as frontier.at(max_cost=0.5); got a {what}"
                )
        return {**self._plan.configs, **configs}

    def _prepared(self, configs: Mapping[str, ExitConfig]) -> _Plan:
        return self._plans.get(tuple(configs.values()), lambda: self._build(configs))

    def _build(self, configs: Mapping[str, ExitConfig]) -> _Plan:
        last = len(self._parts.cuts) + 1
        questions: dict[int, list[Question]] = {last: []}
        spent = []
        for task, (name, config) in enumerate(configs.items()):
            net, costs = self._nets[task], self._costs[task]
            alone = costs.backbone.copy()
            try:
                chosen = resolve(net.positions, net.head_names, net.exists, config)
            except InputError as error:
                raise InputError(f"{name!r}: {error}") from error
            for p, c, threshold in chosen:
                macs, confidence_fn = int(costs.heads[p, c]), net.confidence_of(p, c)
                alone[p:] += macs
                asked = Question(task, macs, confidence_fn, net.exit_fn(p, c), float(threshold))
                questions.setdefault(p, []).append(asked)
            questions[last].append(Question(task, 0, net.confidence_of(last)))
            spent.append(tuple(map(int, alone)))
        stops, at = [], 0
        for p in sorted(questions):
            macs = int(self._costs[0].backbone[p] - self._costs[0].backbone[at])
            span = self._span(at, p) if p > at else None
            stops.append(Stop(p, span, macs, self._per_sample(p), tuple(questions[p])))
            at = p
        return _Plan(MappingProxyType(dict(configs)), tuple(stops), tuple(spent))

    def _per_sample(self, position: int) -> tuple[bool, ...]:
        if position == 0:
            return (True,) * (len(self._parts.spec.names) - 1)
        return () if position > len(self._parts.cuts) else self._parts.cuts[position - 1].carried_per_sample

    def _span(self, start: int, stop: int) -> Span:
        if (start, stop) not in self._spans:
            self._spans[start, stop] = self._parts.span(start, stop)
        return self._spans[start, stop]


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
