"""The command ``offramp export``: an artifact to the files of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.options import Artifact, InputExit, Json, MaxCost, MaxDrop, MinQuality, Model, Tradeoff
from offramp.cli.output import check_writable, names, open_artifact, pick, print_json
from offramp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from offramp.export.manifest import Export

KINDS = ("onnx", "onnx-single", "executorch")


def export(
    artifact: Artifact,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder to write; an older export there is replaced.")],
    to: Annotated[
        str,
        typer.Option(
            help="onnx: a graph per span and exit; onnx-single: one graph for one sample, thresholds as "
            "inputs; executorch: a .pte per span and exit."
        ),
    ] = "onnx",
    max_cost: MaxCost = None,
    max_drop: MaxDrop = None,
    min_quality: MinQuality = None,
    tradeoff: Tradeoff = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the outputs, separated by commas, to go with it.")
    ] = None,
    input_exit: InputExit = None,
    json_: Json = False,
) -> None:
    """Write the network for another runtime, with every configuration or with the one you pick."""
    from offramp.core import Frontier
    from offramp.export.manifest import check_replaceable

    if to not in KINDS:
        raise InputError(f"--to: expected one of {', '.join(KINDS)}, got {to!r}")
    check_writable(out)
    check_replaceable(out)
    _, net, frontier, costs = open_artifact(artifact, model, input_exit, "cpu")
    chosen = pick(frontier, max_cost, max_drop, min_quality, tradeoff)
    taken = frontier if chosen is None else Frontier([chosen])
    named = None if classes is None else names(classes)
    written = _writer(to)(net, taken, costs, out, classes=named)
    if json_:
        print_json(_figures(written, out))
        return
    size = sum(file.stat().st_size for file in out.iterdir())
    print(
        f"wrote {out}: {len(written.spans)} spans, {len(written.exits)} exits, {len(taken)} configurations, "
        f"{size / 1e6:.1f} MB"
    )
    print(_compared(written))
    print(f"next: {_next(to, out)}")


def _writer(kind: str) -> Callable[..., Export]:
    if kind == "onnx":
        from offramp.export.onnx import to_onnx

        return to_onnx
    if kind == "onnx-single":
        from offramp.export.onnx_single import to_onnx_single

        return to_onnx_single
    from offramp.export.executorch import to_executorch

    return to_executorch


def _figures(written: Export, out: Path) -> dict[str, object]:
    return {
        "kind": written.kind,
        "spans": len(written.spans),
        "exits": len(written.exits),
        "configurations": len(written.frontier),
        "bytes": {file.name: file.stat().st_size for file in sorted(out.iterdir())},
        "check": None if written.check is None else dict(written.check),
    }


def _compared(written: Export) -> str:
    if written.check is None:
        return "not compared with PyTorch: the runtime is not installed here"
    return (
        f"compared with PyTorch on {written.check['runtime']}: largest difference "
        f"{written.check['largest_difference']:.1e}"
    )


def _next(to: str, out: Path) -> str:
    module, engine = {
        "onnx": ("ort", "OrtEngine"),
        "onnx-single": ("ort", "OrtSingle"),
        "executorch": ("executorch", "EtEngine"),
    }[to]
    return f'from offramp.export.{module} import {engine}; engine = {engine}("{out}")'
