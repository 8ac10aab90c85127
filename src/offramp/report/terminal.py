"""The dial in a terminal: a table of what is expected of the configurations, and a small plot of it.

Plain characters, and no colour that says anything: the same in a pipe. The plot needs plotext (extra
``terminal``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from offramp.core import ExitConfig, Expected, Frontier, config_to_dict, dial_curves, evenly, printable
from offramp.errors import needs_extra

HEIGHT = 14  # of the plot, in lines
NARROWEST = 40  # columns that a plot needs


def dial_rows(frontier: Frontier, chosen: ExitConfig | None = None) -> list[dict[str, Any]]:
    """One entry per configuration, cheapest first, with its expected figures as plain data.

    A ``chosen`` one that is no member of the frontier (of equally good ones the more expensive, or one found
    for a lambda) has an entry without an index, in the order of cost.
    """
    configs = list(frontier)
    members: list[tuple[int | None, ExitConfig]] = list(enumerate(configs))
    if chosen is not None and chosen not in configs:
        members.append((None, chosen))
        members.sort(key=lambda each: _figures(each[1]).cost)
    return [
        {
            "index": index,
            "chosen": config == chosen,
            "relative_cost": _figures(config).relative_cost,
            "drop": _figures(config).drop,
            "in_sample_drop": _figures(config).in_sample_drop,
            **config_to_dict(config),
        }
        for index, config in members
    ]


def dial_table(rows: list[dict[str, Any]], in_sample: bool, most: int | None = 16, width: int = 80) -> Table:
    """A table of ``dial_rows``, evenly spread ones if more than ``most``; the chosen one is marked ">".

    Where ``width`` columns are too few, the places of the exits and then the intervals are left out.
    """
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "#": _number,
        "cost": lambda row: f"{row['relative_cost']:.1%}",
        f"quality\n{'in-sample' if in_sample else 'promised'}": lambda row: (
            f"{row['expected']['quality']:.2%}"
        ),
        "drop": lambda row: _points(row["drop"]),
        "95% interval": lambda row: " to ".join(map(_points, row["expected"].get("drop_interval", ()))),
        "exits": lambda row: str(len(row["choices"])),
    }
    if in_sample or width < 56:
        del columns["95% interval"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    if width >= 72:
        table.add_column("where", vertical="bottom")  # the one that gives way
    at = next((number for number, row in enumerate(rows) if row["chosen"]), None)
    for number in evenly(len(rows), len(rows) if most is None else most, at):
        row = rows[number]
        where = Text(", ".join(printable(choice["position"]) for choice in row["choices"]))
        where.no_wrap, where.overflow = True, "ellipsis"
        cells: list[str | Text] = [text(row) for text in columns.values()]
        cells += [where] * (width >= 72)
        table.add_row(*cells, style="bold" if row["chosen"] else None)
    return table


def _number(row: dict[str, Any]) -> str:
    index = "between" if row["index"] is None else str(row["index"])
    return f"> {index}" if row["chosen"] else index


def dial_plot(frontier: Frontier, chosen: ExitConfig | None, width: int) -> str:
    """Quality over relative cost, both in percent, in ``width`` columns; what the marks mean comes last.

    Raises:
        MissingExtraError: plotext is not installed.
    """
    with needs_extra("terminal", "a plot in the terminal needs plotext; install it"):
        import plotext
    curves, full = dial_curves(frontier), _figures(frontier[0])
    figure = plotext.figure
    plotext.terminal.limit(False, False)  # the width is given
    figure.clear()
    figure.plot_size(width, HEIGHT)
    marks = ["* full model"]
    known = curves["interval"][:, 0] == curves["interval"][:, 0]
    if known.any():
        marks.append(". 95% interval")
        for end in curves["interval"][known].T:
            figure.draw(figure.signal(curves["cost"][known].tolist(), end.tolist(), marker="."))
    figure.draw(figure.signal(curves["cost"].tolist(), curves["quality"].tolist()).lines())
    figure.draw(figure.signal([100.0], [100 * full.full_quality], marker="*"))
    if chosen is not None:
        own = _figures(chosen)
        marks.append("O chosen")
        figure.draw(figure.signal([100 * own.relative_cost], [100 * own.quality], marker="O"))
    text = str(figure.build().string(colorless=True))
    figure.clear()
    plotext.terminal.limit(True, True)
    kind = "in-sample" if frontier.in_sample else "promised"
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join([f"quality (%), {kind}, over cost (%)", *lines, "   ".join(marks)])


def _figures(config: ExitConfig) -> Expected:
    assert config.expected is not None  # a frontier holds no other, and plots none
    return config.expected


def _points(fraction: float) -> str:
    """Hundredths, never "-0.00"."""
    return f"{round(100 * fraction, 2) + 0.0:.2f}"
