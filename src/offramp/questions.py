"""One batch on its way through stops, with several tasks asking.

A task's exits see the samples that still want that task, and no others. A sample is taken out of the batch
when it has all the answers it wants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, arange

from offramp.graph import Span
from offramp.network import Ask, ExitNetwork, Judge
from offramp.steps import keep

Part = tuple[int, Tensor, Tensor, Tensor]
"""Answers given at one exit: position, rows of the batch, outputs, confidences."""


@dataclass(frozen=True)
class Question:
    """A task's exit at a stop; without ``ask``, its answer from the model's own output."""

    task: int
    macs: int
    sure: Judge
    ask: Ask | None = None
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
        if question.ask is not None:
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
        if question.ask is None:
            answers = net.answer(self._handed)
            outputs = answers if who is None else answers.index_select(0, who)
        else:
            handed = self._handed if who is None else keep(self._handed, who, stop.per_sample)
            outputs = question.ask(handed, mask)
        return outputs, question.sure(outputs, mask)

    def _let_go(self, per_sample: tuple[bool, ...]) -> None:
        """Take out those who want nothing more."""
        here = len(self._rows)
        if here in self._wanting or not any(self._wanting):  # all here want some task, or nobody wants any
            return
        stay = self._wants.any(1).nonzero().flatten()
        if len(stay) < here:
            self._rows, self._wants = self._rows[stay], self._wants[stay]
            self._handed = keep(self._handed, stay, per_sample)
