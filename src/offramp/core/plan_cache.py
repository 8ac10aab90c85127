"""What engines keep of configurations they have prepared: built once, then looked up without waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_MOST = 4096  # a controller that makes up thresholds must not fill the memory

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class PlanCache(Generic[Key, Value]):
    """Plans by key, the newest 4096; safe from any thread, and one slow build holds up nobody else's key."""

    def __init__(self) -> None:
        self._known: dict[Key, Value] = {}
        self._building: dict[Key, threading.Event] = {}
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key, build: Callable[[], Value]) -> Value:
        """The plan of a key; built if there is none, by one thread while others that want it wait."""
        while True:
            plan = self._known.get(key)
            if plan is not None:
                return plan
            with self._changing:
                others = self._building.get(key)
                if others is None and key not in self._known:
                    built = self._building[key] = threading.Event()
                    break
            if others is not None:
                others.wait()  # where that build fails, the loop builds it here
        try:
            plan = build()
            with self._changing:
                if len(self._known) >= _MOST:
                    self._known.pop(next(iter(self._known)))  # the oldest; it can be prepared again
                self._known[key] = plan
            return plan
        finally:
            with self._changing:
                del self._building[key]
            built.set()
