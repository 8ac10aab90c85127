"""Progress bars on standard error: shown where a person looks, silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress_bar(label: str, total: int | None, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of steps done so far.

    Args:
        label: what is being done.
        total: number of steps; None where it is not known.
        show: None shows it when standard error is a terminal.
    """
    visible = sys.stderr.isatty() if show is None else show
    if not visible:
        yield lambda done: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
