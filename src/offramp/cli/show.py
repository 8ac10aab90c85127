"""``offramp show``: the dial of an artifact in the terminal, from what the search expects of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from offramp.cli import options
from offramp.cli.output import pick, print_json

if TYPE_CHECKING:
    from offramp.core import ExitConfig, Frontier


def show(
    artifact: options.Artifact,
    max_cost: options.MaxCost = None,
    max_drop: options.MaxDrop = None,
    min_quality: options.MinQuality = None,
    tradeoff: options.Tradeoff = None,
    every: Annotated[bool, typer.Option("--all", help="List every configuration.")] = False,
    json_: options.Json = False,
) -> None:
    """Show the dial of an artifact: what is expected of each configuration, as a table and a small plot.

    With one of the four options, the configuration that it chooses is marked. The figures are promised for
    new samples, or called in-sample; `offramp eval` shows those of the report split.
    """
    from offramp.artifacts import load_costs, load_frontier, load_summary, read_manifest
    from offramp.report import amount, dial_rows, dial_table

    manifest = read_manifest(artifact)
    frontier, costs = load_frontier(artifact, manifest), load_costs(artifact, manifest)
    chosen = pick(frontier, max_cost, max_drop, min_quality, tradeoff)
    rows, summary = dial_rows(frontier, chosen), load_summary(artifact, manifest)
    if json_:
        data = None if summary is None else summary.to_dict()
        print_json({**_document(artifact, frontier, costs.unit, rows), "data": data})
        return
    console = Console(highlight=False)
    for line in _header(artifact, manifest, frontier, amount(costs.full, costs.unit)):
        console.print(line, markup=False, soft_wrap=True)
    for name, fact in (summary.facts() if summary is not None else {}).items():
        console.print(f"{name}: {fact}", markup=False, soft_wrap=True)
    console.print()
    console.print(dial_table(rows, frontier.in_sample, None if every else 16, console.width))
    if len(rows) > 16 and not every:
        console.print(f"16 of {len(rows)}, evenly spread; --all lists every one")
    _plot(console, frontier, chosen)


def _header(artifact: Path, manifest: Any, frontier: Frontier, full_cost: str) -> list[str]:
    from offramp.core import counted, figures_come_from, percent, printable

    figures, described = frontier.full_model.expected, manifest["network"]
    assert figures is not None  # the full model of a frontier has figures
    return [
        f"{artifact}: {counted(len(frontier), 'configuration')} of exits for a "
        f"{printable(manifest['backbone']['class'])}, "
        f"{described['task']}",
        f"figures {figures_come_from(frontier)}; drop in points",
        f"full model: quality {percent(figures.full_quality)}, cost {full_cost}",
    ]


def _document(artifact: Path, frontier: Frontier, unit: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    figures = frontier.full_model.expected
    assert figures is not None  # the full model of a frontier has figures
    return {
        "artifact": str(artifact),
        "samples": figures.samples,
        "in_sample": frontier.in_sample,
        "full_quality": figures.full_quality,
        "full_cost": figures.full_cost,
        "unit": unit,
        "chosen": next((row for row in rows if row["chosen"]), None),
        "configurations": rows,
    }


def _plot(console: Console, frontier: Frontier, chosen: ExitConfig | None) -> None:
    """The plot where there is room and the characters for it, or how to get it."""
    from offramp.errors import MissingExtraError
    from offramp.report import NARROWEST, dial_plot

    if console.width < NARROWEST or not console.encoding.lower().startswith("utf"):
        return
    try:
        plot = dial_plot(frontier, chosen, min(console.width, 100))
    except MissingExtraError as error:
        console.print(f"\n{error}", markup=False, soft_wrap=True)
        return
    console.print(f"\n{plot}", markup=False, soft_wrap=True)
