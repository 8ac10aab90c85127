"""The paper's experiment: exits for three ImageNet models, and the MACs they save at < 0.5 % accuracy.

    python examples/imagenet/run.py --data /data/imagenet --workers 8 --device cuda

DIR holds train/ and val/ with one folder for each of the 1,000 classes. Needs `pip install "offramp[timm]"`
and the models' weights, from the hub or its cache. What is used for what:

    exits are trained    on images of train/, 25 of each class unless --train says otherwise
    exits are searched   on one half of val/, drawn class by class
    figures are of       the other half of val/, which nothing was chosen on

Not on train/: the models were trained there and are more confident on these images than on new ones, so
thresholds found on them are too generous. The paper reports on all of val/; a half of it is 25,000 images.
A run that was stopped goes on where it was; a model that is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import offramp
from offramp import OfframpError, TrainConfig
from offramp.pipeline import BuildConfig, Built, build
from offramp.sources.project import load_project

PAPER = {"resnet152": 0.262, "convnextv2_tiny": 0.266, "davit_base": 0.320}
"""MACs saved at less than 0.5 % accuracy reduction (arXiv 2403.01695, abstract)."""

MAX_DROP = 0.005


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--models", nargs="+", default=list(PAPER), help="of timm")
    parser.add_argument("--out", type=Path, default=Path("imagenet-results"), help="folder for everything")
    parser.add_argument("--train", type=int, default=25_000, help="images that exits are trained on")
    parser.add_argument("--limit", type=int, help="at most this many images to search and to report on")
    parser.add_argument("--size", type=int, help="pixels; the model's own unless given")
    parser.add_argument("--random-weights", action="store_true", help="to try the command without a hub")
    parser.add_argument("--heads", default="linear-meanmax,mlp-2x2", help="kinds of exit, or 'auto'")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--max-exits", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--device", help="such as cuda")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def specs(name: str, options: argparse.Namespace) -> tuple[str, str]:
    """MODEL and DATA as the command line of offramp takes them."""
    model = f"timm:{name}"
    if options.size is not None:
        model += f",size={options.size}"
    if options.random_weights:
        model += ",pretrained=false"
    few = 10**9 if options.limit is None else options.limit
    data = f"imagefolder:{options.data},limit={options.train}/{few}/{few},seed={options.seed}"
    return model, f"{data},batch={options.batch},workers={options.workers}"


def run_model(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, search and report one model, or read what an earlier run with the same options found."""
    model, data = specs(name, options)
    recipe = {
        "model": model,
        "data": f"limit {options.train}/{options.limit}, seed {options.seed}",
        "heads": options.heads,
        "epochs": options.epochs,
        "max_exits": options.max_exits,
    }
    result = options.out / f"{name}.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        if found["recipe"] == recipe:
            return found
    project = load_project(model, data, device=options.device)
    config = BuildConfig(
        heads="auto" if options.heads == "auto" else tuple(options.heads.split(",")),
        max_exits=options.max_exits,
        train=TrainConfig(epochs=options.epochs, seed=options.seed, cache_dtype="float16"),
    )
    work = options.out / f"{name}.work"
    built = build(project.model, project.splits, config, work_dir=work)
    offramp.save(options.out / name, built.net, built.frontier, built.costs, records=built.records)
    figures = {"name": name, "recipe": recipe, **measured(built), "paper_saved": PAPER.get(name)}
    result.write_text(json.dumps(figures, indent=1))
    shutil.rmtree(work, ignore_errors=True)  # the cached features
    return figures


def measured(built: Built) -> dict[str, Any]:
    """On the report split: the configuration that is expected to lose at most half a point."""
    records, config = built.records["report"], built.frontier.at(max_drop=MAX_DROP)
    outcome = offramp.evaluate(records, built.costs, config)
    lost = records.final_quality.astype(float) - answers(records, config, outcome)
    return {
        "positions": len(built.net.positions) - 1,
        "full_macs": built.costs.full,
        "full_accuracy": float(records.final_quality.mean()),
        "saved": 1 - outcome.relative_cost,
        "drop": float(lost.mean()),
        "drop_error": float(1.96 * lost.std() / np.sqrt(len(lost))),
        "samples": {split: each.samples for split, each in built.records.items()},
        "exits": [[choice.position, choice.head, choice.threshold] for choice in config.choices],
    }


def answers(records: offramp.ExitRecords, config: offramp.ExitConfig, outcome: offramp.Outcome) -> Any:
    """Quality (N,) of what each sample was answered."""
    quality = records.final_quality.astype(float)
    for choice in config.choices:
        p, c = records.positions.index(choice.position), records.heads.index(choice.head)
        quality = np.where(outcome.position == p, records.quality[p, c], quality)
    return quality


def table(rows: list[dict[str, Any]]) -> Table:
    """Ours beside the paper's."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    names = ("model", "places", "GMACs", "full", "exits", "MACs", "points", "paper")
    for name in names:
        shown.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in rows:
        paper = row["paper_saved"]
        shown.add_row(
            row["name"],
            str(row["positions"]),
            f"{row['full_macs'] / 1e9:.2f}",
            f"{row['full_accuracy']:.2%}",
            str(len(row["exits"])),
            f"{-row['saved']:+.1%}",
            f"{-100 * row['drop']:+.2f} ± {100 * row['drop_error']:.2f}",
            "" if paper is None else f"{-paper:+.1%}",
        )
    return shown


def main(given: list[str] | None = None) -> int:
    options, console = arguments(given), Console()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.models:
        try:
            rows.append(run_model(name, options))
        except OfframpError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
        console.print(f"{name}: done, {options.out / name}", soft_wrap=True)
    console.print(table(rows))
    console.print(
        "places: where an exit could be; points: change of accuracy, ± 95 % over its images;\n"
        "paper: change of MACs at less than 0.5 points lost"
    )
    (options.out / "results.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
