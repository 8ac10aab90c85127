"""The admission queue of a stream engine: bounded, filled by any thread and emptied by one."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from offramp.errors import InputError, QueueFull
from offramp.streaming.request import Request, Waiting

_SPARE = 256  # completed requests that may stay among the deadlines before they are cleared out


class AdmissionQueue(Waiting):
    """Where at most ``limit`` samples wait for their first batch."""

    position = -1

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.submitted = 0
        self.closed = False
        self._limit = limit
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; the number breaks ties
        self._numbers = itertools.count()
        self.ended_by: BaseException | None = None  # what the engine's thread died of
        # one that may be entered again: an engine may be collected, and so closed, anywhere
        self._lock = threading.RLock()
        self._arrived, self._freed, self._empty = (threading.Condition(self._lock) for _ in range(3))
        self._asleep = False
        self._blocked = 0  # threads that wait for a place

    def enqueue(self, request: Request, timeout: float | None) -> None:
        """Take a sample in, after at most ``timeout`` seconds (None: no limit), or raise QueueFull."""
        with self._lock:
            if len(self.requests) >= self._limit and not self.closed:
                self._wait_for_place(timeout)
            if self.closed:
                cause = "" if self.ended_by is None else f": its thread ended with {self.ended_by!r}"
                raise InputError(f"submit: the engine is closed{cause}; make a new one")
            self.requests.append(request)
            self.submitted += 1
            if request.deadline is not None:
                heapq.heappush(self._deadlines, (request.deadline, next(self._numbers), request))
            if self._asleep:
                self._asleep = False
                self._arrived.notify()

    def _wait_for_place(self, timeout: float | None) -> None:
        self._blocked += 1
        try:
            found = timeout != 0 and self._freed.wait_for(
                lambda: len(self.requests) < self._limit or self.closed, timeout
            )
        finally:
            self._blocked -= 1
        if not found:
            raise QueueFull(
                f"{self._limit} samples wait already; wait longer (timeout=), submit less, or give an engine "
                "a larger queue_limit"
            )

    def take(self, most: int) -> tuple[list[Request], tuple[()]]:
        """The first samples, at most ``most``; they have no activations yet."""
        with self._lock:
            taken = [self.requests.popleft() for _ in range(min(most, len(self.requests)))]
            if self._blocked:
                self._freed.notify(len(taken))
        return taken, ()

    def expired(self, now: float) -> list[Request]:
        """Samples anywhere in the engine whose deadline has passed, each once."""
        heap, passed = self._deadlines, list[Request]()
        if heap and heap[0][0] <= now:
            with self._lock:
                while heap and heap[0][0] <= now:
                    passed.append(heapq.heappop(heap)[2])
        return passed

    def prune_deadlines(self, incomplete: int) -> None:
        """Clear completed samples out of the deadlines, now and then: a deadline may be far away."""
        if len(self._deadlines) > 2 * incomplete + _SPARE:
            with self._lock:
                self._deadlines = [each for each in self._deadlines if not each[2].completed]
                heapq.heapify(self._deadlines)

    def wait(self) -> bool:
        """Sleep until a sample comes; nothing is left to answer meanwhile. False when closed."""
        with self._lock:
            if not self.requests:
                self._empty.notify_all()
            while not self.requests and not self.closed:
                self._asleep = True
                self._arrived.wait()
            self._asleep = False
            return bool(self.requests)

    def all_completed(self) -> None:
        """Tell those who wait for that."""
        with self._lock:
            self._empty.notify_all()

    def drained(self, completed: Callable[[], int], timeout: float | None) -> bool:
        """Wait until as many are completed as were submitted; False where that took too long."""
        with self._lock:
            return self._empty.wait_for(lambda: completed() == self.submitted, timeout)

    def close(self, ended_by: BaseException | None = None) -> None:
        """Take no more samples; ``ended_by`` is what the engine's thread died of, if it did."""
        with self._lock:
            self.closed, self.ended_by = True, ended_by or self.ended_by
            self._arrived.notify_all()
            self._freed.notify_all()
