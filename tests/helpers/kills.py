"""A save in a child process that is killed with SIGKILL at one of its calls to the system."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import offramp
from offramp.storage import atomic

NEW = 0.0625
"""The threshold of the configuration that is saved."""

_EVENTS = ("open", "os.", "shutil.", "fcntl.", "exchange")


def moments(count: int, most: int = 52) -> list[int]:
    """Numbers of calls to be killed at, spread over a save, which has about ``most`` of them."""
    return np.unique(np.linspace(0, most, count).round().astype(int)).tolist()


def killed_save(made: Any, path: Path, at: int) -> bool:
    """Replace an artifact in a forked child that is killed before its call number ``at``; whether it was."""
    config = made.frontier[0]
    choice = replace(config.choices[0], threshold=NEW)
    frontier = offramp.Frontier([replace(config, choices=(choice,))])
    child = os.fork()
    if child == 0:  # pragma: no cover (in the child)
        try:
            _kill_self_at(at, path)
            offramp.save(path, made.net, frontier, made.costs)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == -signal.SIGKILL


def _kill_self_at(at: int, path: Path) -> None:
    calls = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if not event.startswith(_EVENTS) or (event == "open" and str(path.parent) not in str(arguments[0])):
            return
        calls += 1
        if calls - 1 == at:
            os.kill(os.getpid(), signal.SIGKILL)

    exchange, synced = atomic.exchange, os.fsync

    def counted_exchange(one: Path, other: Path) -> bool:
        count("exchange", ())
        found = exchange(one, other)
        count("exchange", ())
        return found

    def counted_sync(descriptor: int) -> None:
        count("os.fsync", ())
        synced(descriptor)

    atomic.exchange, os.fsync = counted_exchange, counted_sync
    sys.addaudithook(count)
