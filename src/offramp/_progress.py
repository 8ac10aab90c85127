"""Progress bars on standard error: shown where a person looks, silent elsewhere.

In a notebook a bar is one line of text that is written anew, for which no widgets need to be installed.
"""

from __future__ import annotations

import math
import sys
import time
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
        show: None shows it in a notebook, and when standard error is a terminal.
    """
    notebook = _in_notebook()
    visible = notebook or sys.stderr.isatty() if show is None else show
    if not visible:
        yield lambda done: None
        return
    if notebook:
        with _line(label, total) as advance:
            yield advance
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


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def _line(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """One line, written at most twice a second, and at the end."""
    began, written, last = time.monotonic(), -math.inf, 0

    def write() -> None:
        of = f"/{total}" if total else ""
        share = f" {last / total:4.0%}" if total else ""
        print(
            f"\r{label}{share} {last}{of}, {time.monotonic() - began:.0f} s ",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def advance(done: int) -> None:
        nonlocal written, last
        last = done
        if time.monotonic() - written >= 0.5:
            written = time.monotonic()
            write()

    try:
        yield advance
    finally:
        write()
        print(file=sys.stderr)
