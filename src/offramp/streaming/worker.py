"""The thread of a stream engine: takes samples from place to place until each is settled.

Whatever happens, a sample that was admitted is settled: an error of the model fails the samples of that
batch, an error in here all there are.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.core import CostTable
from offramp.errors import InputError
from offramp.network import ExitNetwork
from offramp.runtime import Activations, RowIndices, SpanProvider, as_index, keep
from offramp.streaming.buffer import StageQueue
from offramp.streaming.queue import AdmissionQueue
from offramp.streaming.request import Request
from offramp.streaming.routes import RouteExit, Routes
from offramp.streaming.scheduler import Pace, choose, has_room
from offramp.streaming.stats import Completion, StreamStats

Thresholds = float | npt.NDArray[np.float32]


class Left(NamedTuple):
    """Who leaves at an exit: rows of the batch (None: all), outputs, confidences."""

    rows: RowIndices | None
    outputs: Tensor
    confidence: npt.NDArray[np.float32]


class Worker:
    """Runs samples through a network, batch by batch.

    Args:
        net: the network.
        routes: of its configurations.
        runner: of the network.
        macs: what is counted.
        limits: samples in a full batch, and samples that may wait at the entrance.
        patience: seconds, or None to go by how long runs take.
    """

    def __init__(
        self,
        net: ExitNetwork,
        routes: Routes,
        runner: SpanProvider,
        macs: CostTable,
        limits: tuple[int, int],
        patience: float | None,
    ) -> None:
        self._net, self._routes, self._runner, self._macs = net, routes, runner, macs
        self._limit, self._patience, self._pace = limits[0], patience, Pace()
        self.entrance, self._ledger = AdmissionQueue(limits[1]), Completion(len(net.positions))
        self._last, self._sure = len(net.positions), net.confidence_of(len(net.positions))
        self._nobody: RowIndices | None = np.empty(0, np.int64)
        self._masked = net.mask_input is not None
        self._stations: dict[int, StageQueue] = {}
        self._stops: tuple[int, ...] = ()
        self._places: list[AdmissionQueue | StageQueue] = [self.entrance]
        self._dropping = False
        self.clock = time.perf_counter
        self._thread = threading.Thread(target=self._work, name="offramp-stream", daemon=True)

    def start(self) -> None:
        """Begin; the interpreter will not end before what was submitted is settled."""
        self._thread.start()
        atexit.register(self.close)

    def close(self, cancel: bool = False) -> None:
        """Let nobody in any more, settle what there is, and end.

        Raises:
            InputError: called by a future's callback, which would wait for itself.
        """
        self._refuse_own_thread("close")
        self._dropping = self._dropping or cancel
        self.entrance.close()
        self._thread.join()
        atexit.unregister(self.close)

    def drain(self, timeout: float | None) -> bool:
        """Wait until everything is settled; False where that took too long.

        Raises:
            InputError: called by a future's callback, which would wait for itself.
        """
        self._refuse_own_thread("drain")
        return self.entrance.drained(lambda: self._ledger.settled, timeout)

    def enqueue(self, request: Request, timeout: float | None) -> None:
        """Let a sample in; a callback, which runs in this thread, is never made to wait for itself."""
        own = threading.current_thread() is self._thread
        self.entrance.enqueue(request, 0 if own else timeout)

    def stats(self) -> StreamStats:
        """Counts since the start."""
        return self._ledger.stats(self.entrance.submitted, self.entrance.count, int(self._macs.full))

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
        except BaseException as error:  # nobody must be left waiting
            self.entrance.close()
            failed = error
            self._settle_all(lambda request: self._ledger.fail(request, failed))
            raise

    def _turn(self) -> bool:
        """One run, or sleep where there is nothing to run; False when there never will be."""
        if self._dropping:
            self._settle_all(self._ledger.drop)
        now = self.clock()
        for request in self.entrance.expired(now):
            self._ledger.expire(request)
        if self._stops is not self._routes.stops:
            self._extend()
        place = choose(self._places, now, self._limit, self._waits())
        if place is None:
            return self.entrance.wait()
        self._run(self._places[place])
        self.entrance.prune_deadlines(self.entrance.submitted - self._ledger.settled)
        return True

    def _waits(self) -> float:
        return self._pace.patience(len(self._places)) if self._patience is None else self._patience

    def _extend(self) -> None:
        """Stations for stops of configurations that are new."""
        self._stops = self._routes.stops
        for position in self._stops:
            if position not in self._stations:
                self._stations[position] = StageQueue(
                    position, self._routes.per_sample(position), self._limit
                )
        self._places = [self.entrance, *(self._stations[position] for position in self._stops)]

    def _settle_all(self, complete: Callable[[Request], None]) -> None:
        for request in self.entrance.take(self.entrance.count)[0]:
            complete(request)
        for station in self._stations.values():
            for request in station.clear():
                complete(request)

    def _run(self, place: AdmissionQueue | StageQueue) -> None:
        """Move the first samples of a place onward."""
        taken, activations = place.take(self._limit)
        rows = self._present(taken)
        requests = taken if rows is None else [taken[i] for i in rows]
        if not requests:
            return
        stop = min([request.stop for request in requests])
        station = self._stations[stop] if stop < self._last else None
        begun = self.clock()
        try:
            if station is not None and not has_room(station, self._limit):
                self._run(station)
                begun = self.clock()
            self._ledger.count(place.position, len(requests))
            if isinstance(place, AdmissionQueue):
                activations = self._enter(requests)
            elif rows is not None:
                activations = keep(activations, as_index(rows, activations[0].device), place.per_sample[1:])
            self._serve(requests, activations, place.position, stop, begun)
        except BaseException as error:
            for request in requests:
                self._ledger.fail(request, error)
            if not isinstance(error, Exception):
                raise
        self._pace.add(self.clock() - begun)

    def _present(self, requests: Sequence[Request]) -> RowIndices | None:
        """Which of the samples are still wanted; None: all of them."""
        gone = [i for i, request in enumerate(requests) if request.future.gone]
        if not gone:
            return None
        for i in gone:
            self._ledger.drop(requests[i])
        return np.delete(np.arange(len(requests)), gone)

    def _enter(self, requests: Sequence[Request]) -> Activations:
        """Single samples as a batch: what the first span takes, and the mask last where there is one."""
        each = zip(*(request.values for request in requests), strict=True)
        values = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in each]
        for request in requests:
            request.values = []
        activations = self._runner.enter(values)
        return (*activations, self._net.mask(values)) if self._masked else activations

    def _serve(
        self, requests: list[Request], activations: Activations, at: int, stop: int, begun: float
    ) -> None:
        """Run samples from the position they wait behind to their nearest stop."""
        values, mask = (activations[:-1], activations[-1]) if self._masked else (activations, None)
        start = max(at, 0)
        if stop > start:
            values = self._routes.span(start, stop)(*values)
            self._ledger.macs += len(requests) * float(self._macs.backbone[stop] - self._macs.backbone[start])
        if stop == self._last:
            outputs = self._runner.answer(values)
            confidence = self._sure(outputs, mask).cpu().numpy()
            left, rows = [Left(None, outputs.clone(), confidence)], self._nobody
        else:
            left, rows = self._ask(requests, values, mask, stop)
        now = self.clock()
        for request in requests:
            request.served += now - begun
        if rows is None or len(rows):
            self._land(requests, (*values, mask) if self._masked else values, rows, stop, now)
        for gone, outputs, confidence in left:
            leaving = requests if gone is None else [requests[i] for i in gone]
            self._ledger.answer(leaving, self._net.task.answer(outputs), confidence.tolist(), stop, now)

    def _ask(
        self, requests: Sequence[Request], values: Activations, mask: Tensor | None, stop: int
    ) -> tuple[list[Left], RowIndices | None]:
        """Who leaves at a stop, and which samples stay (None: all)."""
        stays, left = np.ones(len(requests), bool), list[Left]()
        for exit_, rows, threshold in _groups(requests, stop):
            part, part_mask = values, mask
            if rows is not None:
                index = as_index(rows, values[0].device)
                seen = (
                    values if stop == 0 else values[:1]
                )  # only exits at the input see more than the feature
                part = tuple(value.index_select(0, index) for value in seen)
                part_mask = None if mask is None else mask.index_select(0, index)
            outputs = exit_.exit_fn(part, part_mask)
            confidence = exit_.confidence_fn(outputs, part_mask).cpu().numpy()
            self._ledger.macs += len(confidence) * exit_.macs
            going = np.flatnonzero((confidence > threshold) & (confidence < math.inf))
            if len(going):
                gone = going if rows is None else rows[going]
                stays[gone] = False
                left.append(
                    Left(gone, outputs.index_select(0, as_index(going, outputs.device)), confidence[going])
                )
        return left, np.flatnonzero(stays) if left else None

    def _land(
        self,
        requests: list[Request],
        activations: Activations,
        rows: RowIndices | None,
        stop: int,
        now: float,
    ) -> None:
        """Let samples wait behind a stop; ``rows`` None: all of them."""
        staying = requests if rows is None else [requests[i] for i in rows]
        for request in staying:
            request.since = now
            if request.stop == stop:
                request.stop = request.route.onward[stop]
        index = None if rows is None else as_index(rows, activations[0].device)
        self._stations[stop].push(staying, activations, index)


def _groups(requests: Sequence[Request], stop: int) -> list[tuple[RouteExit, RowIndices | None, Thresholds]]:
    """The exits asked at a stop: each with the samples it is asked for (None: all) and their thresholds."""
    first = requests[0].route
    if all(request.route is first for request in requests):
        return [(first.exits[stop], None, first.exits[stop].threshold)]
    rows: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        if request.stop == stop:
            rows.setdefault(request.route.exits[stop].column, []).append(i)
    found = list[tuple[RouteExit, RowIndices | None, Thresholds]]()
    for index in rows.values():
        exits = [requests[i].route.exits[stop] for i in index]
        every = None if len(index) == len(requests) else np.array(index)
        found.append((exits[0], every, np.array([exit_.threshold for exit_ in exits], np.float32)))
    return found
