"""The demo: real handwritten digits, from training a model to switching its cost live, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from offramp._progress import progress_bar
from offramp.artifact import save
from offramp.config import ExitConfig
from offramp.digits import Digits, augmented, batches, load_digits, train_backbone
from offramp.engine import Engine
from offramp.evaluate import evaluate
from offramp.pipeline import Built, build
from offramp.plots import require_matplotlib
from offramp.project import Splits
from offramp.report import write_report
from offramp.stream import StreamResult, read_batches, run_stream, time_model
from offramp.tables import frontier_rows, frontier_table

BORDER = (
    1e-5  # confidences this close to a threshold may fall on either side: batch size moves their last bits
)


def run_demo(out: Path, console: Console, *, progress: bool | None = None, seed: int = 0) -> dict[str, Any]:
    """Train, attach, search, switch, save and report; prints as it goes.

    Args:
        out: folder for the artifact and the report.
        console: where to print.
        progress: None shows bars when standard error is a terminal.
        seed: of everything random.

    Returns:
        The figures, as plain data.

    Raises:
        MissingExtraError: scikit-learn or matplotlib is not installed.
        StorageError: the folder cannot be written or is full.
    """
    require_matplotlib()
    digits = load_digits(seed)
    console.print(
        "[bold]1[/]  Training a small residual network on real handwritten digits, placed at random"
    )
    epochs = 50
    with progress_bar("Training the backbone", epochs, progress) as advance:
        model = train_backbone(digits.train, epochs=epochs, seed=seed, advance=advance)
    splits = digit_splits(digits, seed)
    console.print(
        "[bold]2[/]  Attaching exits to the frozen network, training them, searching configurations"
    )
    built = build(model, splits, progress=progress)
    _describe(built, console)
    rows = frontier_rows(built.frontier, built.records["report"], built.costs)
    console.print("\n[bold]3[/]  The dial, on the report split (500 digits nothing was chosen on)\n")
    console.print(frontier_table(rows, built.records["report"], built.costs.unit))
    console.print("[dim]   * better than every cheaper row on this split[/]")
    console.print(
        "\n[bold]4[/]  One engine, switched live between three configurations on the same stream of batches\n"
    )
    engine = Engine(built.net, prepare=built.frontier)
    live = _live(engine, built, splits, console)
    agreement = _agreement(engine, built, splits)
    console.print(_agreement_line(agreement))
    artifact, report = out / "artifact", out / "report.html"
    save(artifact, built.net, built.frontier, built.costs, records=built.records, include_backbone=True)
    write_report(
        report, built.frontier, built.records["report"], built.costs, title="Offramp on handwritten digits"
    )
    console.print(f"\n[bold]5[/]  Saved the artifact to {artifact} and the report to {report}")
    _next(console, artifact, report)
    return {
        "rows": rows,
        "live": live,
        "agreement": agreement,
        "artifact": str(artifact),
        "report": str(report),
    }


def digit_splits(digits: Digits, seed: int) -> Splits:
    """Loaders over placed digits: four places of each to train and to search on, one to report on."""
    train, search = augmented(digits.train, 4, seed + 1), augmented(digits.search, 4, seed + 2)
    report = augmented(digits.report, 1, seed + 3)  # one each: intervals want independent samples
    return Splits(batches(train), batches(search), batches(report, 64), train[0][:2])


def pick_three(built: Built) -> list[tuple[str, ExitConfig]]:
    """The full model, the cheapest that is as good as it, and one at half the cost of that (by search figures)."""
    good = built.frontier.at(max_drop=0)
    low = built.frontier[0].expected
    assert good.expected is not None
    assert low is not None
    budget = max(good.expected.relative_cost / 2, low.relative_cost)
    return [
        ("full model", ExitConfig()),
        ("as good, on the search split", good),
        ("half the cost of that", built.frontier.at(max_cost=budget)),
    ]


def _describe(built: Built, console: Console) -> None:
    exits, positions = len(built.training.exits), len(built.net.positions) - 1
    console.print(
        f"   {exits} candidate exits at {positions} positions; full model {built.costs.full / 1e6:.2f} M MACs; "
        f"{len(built.frontier)} configurations on the frontier"
    )


def _live(engine: Engine, built: Built, splits: Splits, console: Console) -> list[dict[str, Any]]:
    stream = read_batches(built.net.partition.spec, splits.report or [])
    picked = pick_three(built)
    results = run_stream(engine, stream, [config for _, config in picked])
    plain = time_model(engine, stream)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("setting", "accuracy", "MACs", "ms per batch of 64", "time against the plain model"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for (label, _), result in zip(picked, results, strict=True):
        table.add_row(label, f"{result.quality:.2%}", f"{result.relative_macs:.1%}",
                      f"{result.milliseconds:.2f}", f"{result.milliseconds / plain:.2f} x")  # fmt: skip
    console.print(table)
    return [_as_dict(label, result, plain) for (label, _), result in zip(picked, results, strict=True)]


def _as_dict(label: str, result: StreamResult, plain: float) -> dict[str, Any]:
    return {
        "setting": label,
        "quality": result.quality,
        "relative_macs": result.relative_macs,
        "milliseconds": result.milliseconds,
        "plain_milliseconds": plain,
    }


def _agreement(engine: Engine, built: Built, splits: Splits) -> dict[str, int]:
    """Compare engine and ``evaluate`` on every report sample under every configuration."""
    records, costs = built.records["report"], built.costs
    stream = read_batches(built.net.partition.spec, splits.report or [])
    totals = {"configurations": 0, "decisions": 0, "set_aside": 0, "different": 0, "macs_differ": 0}
    for config in built.frontier:
        engine.use(config)
        engine.reset_stats()
        positions = [p for inputs, _ in stream for p in engine(inputs).position.tolist()]
        outcome = evaluate(records, costs, config)
        border = [False] * records.samples
        for choice in config.choices:
            p, c = records.positions.index(choice.position), records.heads.index(choice.head)
            near = abs(records.confidence[p, c] - choice.threshold) < BORDER
            border = [a or bool(b) for a, b in zip(border, near, strict=True)]
        wrong = [
            a != b and not set_aside
            for a, b, set_aside in zip(positions, outcome.position, border, strict=True)
        ]
        totals["configurations"] += 1
        totals["decisions"] += records.samples
        totals["set_aside"] += sum(border)
        totals["different"] += sum(wrong)
        same = positions == outcome.position.tolist()
        totals["macs_differ"] += same and engine.stats().macs != round(outcome.cost * records.samples)
    return totals


def _agreement_line(totals: dict[str, int]) -> str:
    return (
        f"\n   Engine against the simulation the search used: {totals['different']} of {totals['decisions']} decisions "
        f"differ, over {totals['configurations']} configurations ({totals['set_aside']} within {BORDER:g} of a "
        f"threshold set aside); MACs counted differ in {totals['macs_differ']}"
    )


def _next(console: Console, artifact: Path, report: Path) -> None:
    console.print(
        f"\n   Next: open {report} in a browser\n"
        f"         offramp eval {artifact}                     the dial again, from the artifact\n"
        f"         offramp search {artifact} --max-exits 3     fewer exits, cheaper to check\n"
        "         offramp build --help                         the same for your own model\n",
        highlight=False,
    )
