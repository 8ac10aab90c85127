"""Arguments and options that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Artifact = Annotated[Path, typer.Argument(help="Folder written by `offramp build` or `offramp demo`.")]
MaxCost = Annotated[
    float | None, typer.Option(help="The best within this fraction of the full cost, e.g. 0.5.")
]
MaxDrop = Annotated[
    float | None, typer.Option(help="The cheapest within this loss of quality: 0.005 is half a point.")
]
MinQuality = Annotated[float | None, typer.Option(help="The cheapest that reaches this mean quality.")]
Tradeoff = Annotated[
    float | None, typer.Option(help="The one found for this lambda, 0.5 (cheap) to 1 (best).")
]
Model = Annotated[
    str,
    typer.Argument(
        help="A trained model: timm:NAME, torchvision:NAME, hf:NAME_OR_DIR, or package.module:callable "
        "returning a torch module."
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        help="Data: imagefolder:DIR, npz:FILE, csv:FILE,text=COLUMN,label=COLUMN, or package.module:callable "
        'returning {"train": ..., "search": ..., "report": ...}.'
    ),
]
InputExit = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=MODEL: a model of its own as an exit at the input; or NAME=KIND of exit, trained there. "
        "May be given several times."
    ),
]
Device = Annotated[str | None, typer.Option(help="Where to run, such as cuda; as the model is unless given.")]
