"""What a progress bar would have shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest


def steps_shown(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[tuple[int, int | None]]:
    """(steps done, steps in all) of every update of the bars that ``module`` opens from now on."""
    seen: list[tuple[int, int | None]] = []

    @contextmanager
    def bar(_label: str, total: int | None, _show: bool | None) -> Iterator[Callable[[int], None]]:
        yield lambda done: seen.append((done, total))

    monkeypatch.setattr(module, "progress_bar", bar)
    return seen
