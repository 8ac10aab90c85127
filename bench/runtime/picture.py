"""Accuracy over the median latency of a call (above) and over throughput (below), batch 1 and 64, one thread.

The line of ours joins the configurations that no other beats in both; dots are single lines of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.shared.figures import panels
from offramp.report.figures import PALETTE

Rows = Sequence[Mapping[str, Any]]
CASE, SHOWN = "fashion", ("batch 1, 1 thread", "batch 64, 1 thread")
AXES = (("p50", "median latency of a call, ms", -1), ("throughput", "images per second", 1))
"""Field, label, and 1 where more is better."""
LOWEST = 0.895  # accuracy; what is worse is of no use here
LINES = {  # execution -> colour and mark of ours, and of the static models
    "eager": ("#1f5fbf", "o"),
    "channels last": ("#0b8a5c", "s"),
    "bfloat16": ("#8a6bb8", "D"),
    "inductor": ("#b6465f", "v"),
    "onnx runtime": ("#e0862b", "^"),
}
OTHERS = {"naive": ("#777777", "x"), "hooks": ("#b0306a", "+"), "earlyon": ("#5b4636", "1")}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The picture of the race; settings that were not run are left out."""
    shown = [name for name in SHOWN if f"{CASE}, {name}" in results]
    if not shown:
        return
    style, size = {**PALETTE, "font.size": 8.5, "axes.titlesize": 9.5}, (6 * len(shown), 7.2)
    with panels(path, (2, len(shown)), size, settings=style, tight=False, sharey=True) as (figure, axes):
        for column, name in enumerate(shown):
            rows = [row for row in results[f"{CASE}, {name}"]["rows"] if row["accuracy"] >= LOWEST]
            for axis, (field, label, better) in zip(axes[:, column], AXES, strict=True):
                _panel(axis, rows, field, better)
                axis.set_xlabel(label)
            axes[0, column].set_title(name, loc="left")
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy on 10,000 test images, %")
        told = {label: handle for axis in axes.flat for handle, label in _labelled(axis)}
        figure.legend(told.values(), told.keys(), loc="lower center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0.035 * math.ceil(len(told) / 4), 1, 1))


def _labelled(axis: Axes) -> Iterator[tuple[Any, str]]:
    yield from zip(*axis.get_legend_handles_labels(), strict=True)


def _panel(axis: Axes, rows: Rows, field: str, better: int) -> None:
    for execution, (colour, mark) in LINES.items():
        mine = _points(rows, "ours", execution, field)
        if mine:
            edge = _front(mine, better)
            x, y = zip(*edge, strict=True)
            axis.plot(x, y, mark + "-", color=colour, ms=4, lw=1.6, label=f"ours, {execution}")
            rest = [point for point in mine if point not in edge]
            axis.plot([x for x, _ in rest], [y for _, y in rest], mark, color=colour, ms=3, alpha=0.35)
        static = _points(rows, "static", execution, field)
        if static:
            told = f"without exits, {execution}"
            x, y = zip(*sorted(static), strict=True)
            axis.plot(x, y, mark + "--", color=colour, ms=5, lw=0.8, mfc="none", label=told)
    for name, (colour, mark) in OTHERS.items():
        found = [row for row in rows if row["name"].startswith(name)]
        if found:
            x, y = [row[field] for row in found], [100 * row["accuracy"] for row in found]
            axis.plot(x, y, mark, color=colour, ms=7, label=name)
    _name_models(axis, rows, field)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _points(rows: Rows, kind: str, execution: str, field: str) -> list[tuple[float, float]]:
    """(value, accuracy in percent) of one kind's lines, the pieces of static models left out."""
    return [
        (row[field], 100 * row["accuracy"])
        for row in rows
        if row["kind"] == kind and row["execution"] == execution and ", by " not in row["name"]
    ]


def _front(points: list[tuple[float, float]], better: int) -> list[tuple[float, float]]:
    """Those that no other beats both ways, in order."""
    best, found = -1.0, []
    for x, y in sorted(points, key=lambda point: (-better * point[0], -point[1])):
        if y > best:
            best = y
            found.append((x, y))
    return found


def _name_models(axis: Axes, rows: Rows, field: str) -> None:
    for row in rows:
        if row["kind"] == "static" and row["name"].count(",") == 0:
            told = "ResNet-56" if row["name"] == "full model" else row["name"]
            at = (row[field], 100 * row["accuracy"])
            axis.annotate(told, at, (4, -10), textcoords="offset points", color="#333333", fontsize=7.5)
