"""What engines keep of configurations they have prepared: built once, then looked up without waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_MOST = 4096  # a controller that makes up thresholds must not fill the memory

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class PlanCache(Generic[Key, Value]):
    """Plans by key, the newest 4096; safe from any thread."""

    def __init__(self) -> None:
        self._known: dict[Key, Value] = {}
        self._building = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key, build: Callable[[], Value]) -> Value:
        """The plan of a key; built if there is none, by one thread only."""
        plan = self._known.get(key)
        if plan is not None:  # without the lock: a switch must not wait for another thread's building
            return plan
        with self._building:
            if key in self._known:  # another thread was first
                return self._known[key]
            plan = build()
            if len(self._known) >= _MOST:
                self._known.pop(next(iter(self._known)))  # the oldest; it can be prepared again
            self._known[key] = plan
            return plan
