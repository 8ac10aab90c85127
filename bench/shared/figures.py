"""Figures of results: one look for all, drawn without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from offramp.report.figures import PALETTE


@contextmanager
def panels(
    path: Path,
    shape: tuple[int, int],
    size: tuple[float, float],
    *,
    settings: dict[str, Any] = PALETTE,
    dpi: int = 100,
    tight: bool = True,
    **options: Any,
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (rows, columns), saved when the block ends.

    Args:
        path: of the PNG.
        shape: rows and columns of panels.
        size: width and height in inches.
        settings: of matplotlib; empty leaves its defaults.
        dpi: dots per inch.
        tight: whether to lay the panels out at the end; without it the block does so.
        options: of ``plt.subplots``.
    """
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(*shape, figsize=size, dpi=dpi, squeeze=False, **options)
        yield figure, axes
        if tight:
            figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


def percent_axis(axis: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic axis x of shares, labelled in percent at the ticks alone."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
