"""The thread of a stream engine: takes samples from place to place until each is completed.

Whatever happens, a sample that was admitted is completed: an error of the model fails the samples that cause
it, or those of the batch where that cannot be told; an error in here all there are.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.errors import Expired, InputError, OfframpError
from offramp.network import ExitNetwork
from offramp.runtime import Activations, EnabledExit, Planner, RowIndices, as_index, keep, leaving
from offramp.streaming.buffer import StageQueue
from offramp.streaming.queue import AdmissionQueue
from offramp.streaming.request import Request
from offramp.streaming.routes import Routes
from offramp.streaming.scheduler import Pace, choose, has_room
from offramp.streaming.stats import LATE, Completion, StreamStats

ExitGroup = tuple[EnabledExit, RowIndices | None, float | npt.NDArray[np.float32]]
"""An exit, the rows of the batch that run it (None: all), and their threshold or thresholds."""

AnsweredRows = tuple[RowIndices, Tensor, list[float]]
"""Rows of the batch, their outputs and confidences."""


class Worker:
    """Runs samples through a network, batch by batch.

    ``limits`` are the samples in a full batch and those that may wait for admission; ``patience`` is in
    seconds, or None to go by how long runs take.
    """

    def __init__(
        self,
        net: ExitNetwork,
        routes: Routes,
        planner: Planner,
        limits: tuple[int, int],
        patience: float | None,
    ) -> None:
        self._net, self._routes, self._planner = net, routes, planner
        self._limit, self._patience, self._pace = limits[0], patience, Pace()
        self.admission, self._completion = AdmissionQueue(limits[1]), Completion(len(net.positions))
        self._masked = net.mask_input is not None
        self._stages: dict[int, StageQueue] = {}
        self._exit_points: tuple[int, ...] = ()
        self._places: list[AdmissionQueue | StageQueue] = [self.admission]
        self._dropping = False
        self.clock = time.perf_counter
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="offramp-stream", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # the interpreter does not end before what was submitted is completed

    def close(self, cancel: bool = False) -> None:
        """Take no more samples, complete those there are, and end; refused to a future's callback."""
        if os.getpid() != self._process:  # a forked child: there is no thread to end
            return
        self._refuse_own_thread("close")
        self._dropping = self._dropping or cancel
        self.admission.close()
        self._thread.join()
        atexit.unregister(self.close)

    def drain(self, timeout: float | None) -> bool:
        """Wait until all is completed; False where that took too long. Refused to a future's callback."""
        self._refuse_child("drain")
        self._refuse_own_thread("drain")
        return self.admission.drained(lambda: self._completion.completed, timeout)

    def enqueue(self, request: Request, timeout: float | None) -> None:
        """Let a sample in; a callback, which runs in this thread, is never made to wait for itself."""
        self._refuse_child("submit")
        own = threading.current_thread() is self._thread
        self.admission.enqueue(request, 0 if own else timeout)

    def stats(self) -> StreamStats:
        """Counts since the start."""
        full_macs = self._planner.backbone(0, len(self._net.positions))
        return self._completion.stats(self.admission.submitted, self.admission.count, full_macs)

    def _refuse_child(self, verb: str) -> None:
        if os.getpid() != self._process:
            raise InputError(
                f"{verb}: the engine's thread runs in process {self._process}, which made it, and not in "
                "this one, forked from it; make an engine here"
            )

    def _refuse_own_thread(self, verb: str) -> None:
        if threading.current_thread() is self._thread:
            raise InputError(
                f"{verb}: a future's callback runs in the engine's own thread and cannot wait for it; "
                "call it from another thread"
            )

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # no future must stay open
            self.admission.close(error)
            failed = _told(error)
            self._complete_all(lambda request: self._completion.fail(request, failed))
            raise
        finally:
            self.admission.all_completed()
            atexit.unregister(self.close)

    def _turn(self) -> bool:
        """One run, or sleep where there is nothing to run; False when there never will be."""
        if self._dropping:
            self._complete_all(self._completion.drop)
        now = self.clock()
        for request in self.admission.expired(now):
            self._completion.fail(request, Expired(LATE))
        self._extend()
        place = choose(self._places, now, self._limit, self._current_patience())
        if place is None:
            return self.admission.wait()
        self._run(self._places[place])
        self.admission.prune_deadlines(self.admission.submitted - self._completion.completed)
        return True

    def _current_patience(self) -> float:
        return self._pace.patience(len(self._places)) if self._patience is None else self._patience

    def _extend(self) -> None:
        """Stage queues for exit points of configurations that are new."""
        if self._exit_points is self._routes.exit_points:
            return
        self._exit_points = self._routes.exit_points
        for position in self._exit_points:
            if position not in self._stages:
                carried = self._net.partition.carried_per_sample(position)
                per_sample = (True, *carried, *([True] if self._masked else []))
                self._stages[position] = StageQueue(position, per_sample, self._limit)
        self._places = [self.admission, *(self._stages[position] for position in self._exit_points)]

    def _complete_all(self, complete: Callable[[Request], None]) -> None:
        places: list[AdmissionQueue | StageQueue] = [self.admission, *self._stages.values()]
        for place in places:
            for request in place.take(place.count)[0] if place.count else ():
                complete(request)

    def _run(self, place: AdmissionQueue | StageQueue) -> None:
        """Move the first samples of a place onward."""
        taken, activations = place.take(self._limit)
        self._extend()  # samples of a new configuration may have come since the place was chosen
        rows = self._present(taken)
        requests = taken if rows is None else [taken[i] for i in rows]
        if not requests:
            return
        point = min([request.exit_point for request in requests])
        stage = self._stages.get(point)
        begun = self.clock()
        try:
            if stage is not None and not has_room(stage, self._limit):
                self._run(stage)
                begun = self.clock()
            self._completion.count(place.position, len(requests))
            if isinstance(place, AdmissionQueue):
                activations = self._batch(requests)
            elif rows is not None:
                activations = keep(activations, as_index(rows, activations[0].device), place.per_sample)
            self._serve(requests, activations, place.position, point, begun)
        except Exception as error:
            if isinstance(place, AdmissionQueue) and len(requests) > 1:
                self._run_apart(requests)
            else:
                self._fail(requests, error)
        except BaseException as error:
            self._fail(requests, _told(error))
            raise
        self._pace.add(self.clock() - begun)

    def _run_apart(self, requests: Sequence[Request]) -> None:
        """Run samples of a failed batch one by one, from their inputs: only those that fail alone do."""
        for request in requests:
            if request.completed or not request.values:  # the batch got as far as this one's answer
                continue
            point, begun = request.exit_point, self.clock()
            stage = self._stages.get(point)
            if stage is not None and not has_room(stage, self._limit):
                self._run(stage)
            try:
                self._serve([request], self._batch([request]), AdmissionQueue.position, point, begun)
            except Exception as error:
                self._fail([request], error)

    def _fail(self, requests: Sequence[Request], error: BaseException) -> None:
        for request in requests:
            self._completion.fail(request, error)

    def _present(self, requests: Sequence[Request]) -> RowIndices | None:
        """Which of the samples are still wanted; None: all of them."""
        abandoned = [i for i, request in enumerate(requests) if request.future.abandoned]
        if not abandoned:
            return None
        for i in abandoned:
            self._completion.drop(requests[i])
        return np.delete(np.arange(len(requests)), abandoned)

    def _batch(self, requests: Sequence[Request]) -> Activations:
        """Single samples as a batch: what the first span takes, and the mask last where there is one."""
        each = zip(*(request.values for request in requests), strict=True)
        values = tuple(torch.cat(parts) for parts in each)  # a copy: they may be wanted once more
        return (*values, self._net.mask(values)) if self._masked else values

    def _serve(
        self, requests: list[Request], activations: Activations, at: int, point: int, begun: float
    ) -> None:
        """Run samples from the position they wait behind to their nearest exit point."""
        values, mask = (activations[:-1], activations[-1]) if self._masked else (activations, None)
        start = max(at, 0)
        if point > start:
            values = self._routes.span(start, point)(*values)
            self._completion.macs += len(requests) * self._planner.backbone(start, point)
        left, stay = self._run_exits(requests, values, mask, point)
        now = self.clock()
        for request in requests:
            request.served += now - begun
            request.values = []
        if stay is None or len(stay):
            staying = requests if stay is None else [requests[i] for i in stay]
            for request in staying:
                request.since = now
                if request.exit_point == point:
                    request.exit_point = request.route.following[point]
            index = None if stay is None else as_index(stay, values[0].device)
            self._stages[point].push(staying, (*values, mask) if self._masked else values, index)
        for rows, outputs, confidences in left:
            answered = [requests[i] for i in rows]
            self._completion.answer(answered, self._net.task.answer(outputs), confidences, point, now)

    def _run_exits(
        self, requests: Sequence[Request], values: Activations, mask: Tensor | None, point: int
    ) -> tuple[list[AnsweredRows], RowIndices | None]:
        """Who leaves at an exit point, and which samples stay (None: all)."""
        stays, left = np.ones(len(requests), bool), list[AnsweredRows]()
        for exit_, rows, thresholds in _groups(requests, point):
            part, part_mask = values, mask
            if rows is not None:
                index = as_index(rows, values[0].device)
                seen = values if point == 0 else values[:1]  # only exits at the input see more
                part = tuple(value.index_select(0, index) for value in seen)
                part_mask = None if mask is None else mask.index_select(0, index)
            outputs = exit_.exit_fn(part, part_mask)
            confidence = exit_.confidence_fn(outputs, part_mask).cpu()
            self._completion.macs += len(confidence) * exit_.macs
            leavers = np.flatnonzero(leaving(confidence, thresholds) | exit_.last)
            if len(leavers):
                outputs = outputs.index_select(0, as_index(leavers, outputs.device))
                left_rows = leavers if rows is None else rows[leavers]
                left.append((left_rows, outputs, confidence.numpy()[leavers].tolist()))
                stays[left_rows] = False
        return left, np.flatnonzero(stays) if left else None


def _told(error: BaseException) -> Exception:
    """What those who wait are told: an error that ends no thread of theirs."""
    if isinstance(error, Exception):
        return error
    told = OfframpError(f"the engine's thread ended with {error!r}; make a new engine")
    told.__cause__ = error
    return told


def _groups(requests: Sequence[Request], point: int) -> list[ExitGroup]:
    """The exits that samples run at an exit point."""
    first = requests[0].route
    if all(request.route is first for request in requests):
        return [(first.exits[point], None, first.exits[point].threshold)]
    rows: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        if request.exit_point == point:
            rows.setdefault(request.route.exits[point].column, []).append(i)
    found = list[ExitGroup]()
    for index in rows.values():
        exits = [requests[i].route.exits[point] for i in index]
        some = None if len(index) == len(requests) else np.array(index)
        found.append((exits[0], some, np.array([exit_.threshold for exit_ in exits], np.float32)))
    return found
