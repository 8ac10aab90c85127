"""The demo: real handwritten digits, from training a model to switching its cost live, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from offramp._progress import progress_bar
from offramp.artifacts import save
from offramp.cli.digits import Digits, augmented, batches, load_digits, train_backbone
from offramp.core import ExitConfig, counted, printable
from offramp.measure import LabelledInputs, read_batches, run_configs, time_model
from offramp.pipeline import BuildConfig, Built, build
from offramp.report import LEGEND, frontier_rows, frontier_table, require_matplotlib, write_report
from offramp.runtime import Engine
from offramp.sources import Splits

_EPOCHS = 50


def run_demo(out: Path, console: Console, *, progress: bool | None = None, seed: int = 0) -> dict[str, Any]:
    """Train, attach, search, switch, save and report; prints as it goes; returns the figures as plain data.

    ``out`` is the folder for the artifact and the report; ``progress`` None shows bars when standard error
    is a terminal; ``seed`` is of everything random. A ``MissingExtraError`` if scikit-learn or matplotlib is
    not installed, a ``StorageError`` if the folder cannot be written or is full.
    """
    require_matplotlib()
    digits = load_digits(seed)
    console.print("[bold]1[/]  Training a small residual network on real handwritten digits")
    with progress_bar("Training the backbone", _EPOCHS, progress) as advance:
        model = train_backbone(digits.train, epochs=_EPOCHS, seed=seed, advance=advance)
    splits = digit_splits(digits, seed)
    console.print("[bold]2[/]  Attaching exits to the frozen network, training and searching them")
    built = build(model, splits, BuildConfig(max_exits=3), progress=progress)
    exits, positions = len(built.training.exits), len(built.net.positions) - 1
    places = f"{counted(exits, 'candidate exit')} at {counted(positions, 'position')}"
    console.print(f"   {places}, at most 3 enabled at a time")
    found = counted(len(built.frontier), "configuration")
    console.print(f"   full model {built.costs.full / 1e6:.2f} M MACs, {found} found")
    records = built.records["report"]
    rows = frontier_rows(built.frontier, records, built.costs)
    console.print("\n[bold]3[/]  The dial, on the report split (500 digits nothing was chosen on)\n")
    console.print(frontier_table(rows, records, built.costs.unit))
    console.print(f"[dim]{LEGEND}[/]")
    console.print("\n[bold]4[/]  One engine, switched live on the same stream of batches of 64\n")
    engine = Engine(built.net, prepare=built.frontier)
    stream = read_batches(built.net.partition.spec, splits.report or ())
    live = _live(engine, built, stream, console)
    artifact, report = out / "artifact", out / "report.html"
    save(artifact, built.net, built.frontier, built.costs, records=built.records, include_backbone=True)
    write_report(report, built.frontier, records, built.costs, title="Offramp on handwritten digits")
    folder, page = (escape(printable(path)) for path in (artifact, report))
    console.print(f"\n[bold]5[/]  Saved {folder} and {page}", soft_wrap=True)
    console.print(
        f"\n   Next: open {page} in a browser\n"
        f"         offramp show {folder}      (the dial, and a plot of it)\n"
        f"         offramp eval {folder}      (the dial, on the report split)\n"
        f"         offramp search {folder}    (search again, with other options)\n"
        "         offramp build --help                      (the same for your own model)",
        highlight=False,
        soft_wrap=True,
    )
    return {"rows": rows, "live": live, "artifact": str(artifact), "report": str(report)}


def digit_splits(digits: Digits, seed: int) -> Splits:
    """Loaders over placed digits: four places of each to train and to search on, one to report on."""
    train, search = augmented(digits.train, 4, seed + 1), augmented(digits.search, 4, seed + 2)
    report = augmented(digits.report, 1, seed + 3)  # one each: intervals want independent samples
    digit = torch.arange(len(digits.search[0])).repeat(4)  # the four places of one digit belong together
    return Splits(
        train=batches(train),
        search=batches(search),
        report=batches(report, 64),
        example=train[0][:2],
        groups={"search": digit.numpy()},
    )


def _live(
    engine: Engine, built: Built, stream: list[LabelledInputs], console: Console
) -> list[dict[str, Any]]:
    good, low = built.frontier.at(max_drop=0.005), built.frontier[0].expected
    assert good.expected is not None
    assert low is not None
    budget = max(good.expected.relative_cost / 2, low.relative_cost)
    picked = {"full model": ExitConfig(), "0.5 points less, promised": good}
    picked["half the cost of that"] = built.frontier.at(max_cost=budget)
    results = run_configs(engine, stream, [*picked.values()])
    unmodified = time_model(engine, stream)
    rows: list[dict[str, Any]] = [
        {
            "setting": label,
            "quality": result.quality,
            "relative_macs": result.relative_macs,
            "milliseconds": result.milliseconds,
            "unmodified_milliseconds": unmodified,
        }
        for label, result in zip(picked, results, strict=True)
    ]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("setting", "accuracy", "MACs", "ms per batch", "time / eager model"):
        table.add_column(name, justify="left" if name == "setting" else "right", no_wrap=True)
    for row in rows:
        label, quality, macs, milliseconds, _ = row.values()
        share = f"{milliseconds / unmodified:.2f}"
        table.add_row(label, f"{quality:.2%}", f"{macs:.1%}", f"{milliseconds:.2f}", share)
    console.print(table)
    return rows
