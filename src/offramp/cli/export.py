"""The command ``offramp export``: an artifact to the files of another runtime."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.options import Artifact, InputExit, Json, MaxCost, MaxDrop, MinQuality, Model, Tradeoff
from offramp.cli.output import check_writable, names, open_artifact, pick, print_json
from offramp.errors import InputError

KINDS = {
    "onnx": ("onnx", "to_onnx", "ort", "OrtEngine"),
    "onnx-single": ("onnx_single", "to_onnx_single", "ort", "OrtSingle"),
    "executorch": ("executorch", "to_executorch", "executorch", "EtEngine"),
}
"""What ``--to`` takes: modules of ``offramp.export`` and what is in them, to write and to run."""


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
    from offramp.core import Frontier, counted
    from offramp.export.manifest import check_replaceable

    if to not in KINDS:
        raise InputError(f"--to: expected one of {', '.join(KINDS)}, got {to!r}")
    check_writable(out)
    check_replaceable(out)
    _, net, frontier, costs = open_artifact(artifact, model, input_exit, "cpu")
    chosen = pick(frontier, max_cost, max_drop, min_quality, tradeoff)
    taken = frontier if chosen is None else Frontier([chosen])
    module, writer, runtime, engine = KINDS[to]
    write = getattr(import_module(f"offramp.export.{module}"), writer)
    written = write(net, taken, costs, out, classes=None if classes is None else names(classes))
    sizes, check = {file.name: file.stat().st_size for file in sorted(out.iterdir())}, written.check
    if json_:
        print_json(
            {
                "kind": written.kind,
                "spans": len(written.spans),
                "exits": len(written.exits),
                "configuration_count": len(taken),
                "bytes": sizes,
                "check": None if check is None else dict(check),
            }
        )
        return
    compared = "not compared with PyTorch: the runtime is not installed here"
    if check is not None:
        difference = f"largest difference {check['largest_difference']:.1e}"
        compared = f"compared with PyTorch on {check['runtime']}: {difference}"
    print(
        f"wrote {out}: {counted(len(written.spans), 'span')}, {counted(len(written.exits), 'exit')}, "
        f"{counted(len(taken), 'configuration')}, "
        f"{sum(sizes.values()) / 1e6:.1f} MB\n{compared}\n"
        f'next: from offramp.export.{runtime} import {engine}; engine = {engine}("{out}")'
    )
