"""The command ``offramp bench``: what segments and exits cost on this machine, and the dial on that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.options import Artifact, InputExit, Json, Model
from offramp.cli.output import check_writable, open_artifact, print_json, show_measured
from offramp.errors import InputError

UNITS = ("seconds", "joules")


def bench(
    artifact: Artifact,
    model: Model,
    unit: Annotated[str, typer.Option(help="seconds, or joules where a counter can be read.")] = "seconds",
    batch_size: Annotated[int, typer.Option(help="Samples that arrive together.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Of PyTorch; as it is unless given.")] = None,
    compile_: Annotated[str | None, typer.Option("--compile", help="inductor or aot.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16.")] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Convolutions with channels last in memory.")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Linear layers in dynamic int8.")] = False,
    keep_memory: Annotated[
        bool, typer.Option("--keep-memory", help="Keep freed memory (glibc); faster at large batches.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write an artifact whose dial is in this unit; None: only print.")
    ] = None,
    input_exit: InputExit = None,
    json_: Json = False,
) -> None:
    """Measure what every segment and exit costs on this machine, and search the dial on that."""
    from offramp.artifacts import check_replaceable, load_records, read_manifest, save
    from offramp.core import counted, evaluate
    from offramp.measure import measure_cost
    from offramp.runtime import Execution, keep_memory as keep_freed_memory
    from offramp.solver import search as find_frontier

    if unit not in UNITS:
        raise InputError(f"--unit: expected {' or '.join(UNITS)}, got {unit!r}")
    most = 16 * (os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        raise InputError(f"--threads: expected 1 to {most} on this machine, got {threads}")
    execution = Execution(compile=compile_, dtype=dtype, channels_last=channels_last, int8=int8)
    if out is not None:
        check_writable(out)
        check_replaceable(out)
    if keep_memory and not keep_freed_memory():
        raise InputError("--keep-memory: this system's C library has no such setting; leave it out")
    manifest = read_manifest(artifact)
    names = [name for name in ("search", "report") if f"records-{name}.safetensors" in manifest["files"]]
    records = {name: load_records(artifact, manifest, name) for name in names}
    _, net, before, _ = open_artifact(artifact, model, input_exit, None)
    costs = measure_cost(net, unit=unit, batch_size=batch_size, threads=threads, execution=execution)  # type: ignore[arg-type]
    frontier = find_frontier(records["search"], costs, max_exits=before.max_exits)
    if out is not None:
        save(out, net, frontier, costs, records=records)
    split = names[-1]
    measured, eager = costs.meta, costs.eager
    assert measured is not None
    assert eager is not None
    if json_:
        rows = [
            {"quality": each.quality, "cost": each.cost, "relative_to_unmodified": each.cost / eager}
            for each in evaluate(records[split], costs, frontier)
        ]
        print_json({"unit": unit, "measured": dict(measured), "split": split, "configurations": rows})
        return
    show_measured(frontier, records[split], costs, split)
    figure = f"{1e3 * eager:.3g} ms" if unit == "seconds" else f"{eager:.3g} J"
    used = counted(measured["threads"], "thread")
    print(
        f"batches of {measured['batch_size']}, {used}, per sample: the unmodified "
        f"model takes {figure}; without exits the engine takes {costs.full / eager:.1%} of that"
    )
    if out is not None:
        print(f"wrote {out}")
