"""What all exporters share: the order of the checks, the exported programs, the folder and its manifest."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from offramp._progress import progress_bar
from offramp._version import __version__
from offramp.core import CostTable, Frontier, check_arguments
from offramp.errors import InputError
from offramp.export.adaptive_pooling import replace_pooling
from offramp.export.manifest import ExitGraph, Export, SpanGraph, check_replaceable, write_export
from offramp.export.pieces import Piece, check_exportable, pieces, signature_of
from offramp.export.verify import Check
from offramp.graph import evaluating
from offramp.network import ExitNetwork
from offramp.storage import atomic_folder

WriteGraphs = Callable[[Path, Export, Iterator[Piece], Check], Export]
"""Writes every piece into a folder and compares it with PyTorch; the export, with what it changed in it."""


def write_folder(
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    path: str | Path,
    classes: Sequence[str] | None,
    progress: bool | None,
    *,
    kind: str,
    write: WriteGraphs,
    runtime: str,
    ending: str = "",
    samples: int | None = None,
    made_with: Mapping[str, str] | None = None,
) -> Export:
    """Write an exported network, whole or not at all: what the exporters of all runtimes have in common.

    ``runtime`` is name and version of what the graphs are compared on, ``ending`` of the files' names; graphs
    are made with ``samples`` of the example, None for all; ``made_with`` are further versions to note.
    """
    check_exportable(net)
    check_arguments(
        "export",
        {
            "net": (net, ExitNetwork),
            "frontier": (frontier, Frontier),
            "costs": (costs, CostTable),
            "path": (path, (str, Path)),
        },
    )
    check_replaceable(Path(path))
    signature, check = signature_of(net, classes), Check(runtime)
    found = list(pieces(net, frontier, ending, samples))
    graphs = [piece.graph for piece in found]
    export = Export(
        kind=kind,
        signature=signature,
        frontier=frontier,
        costs=costs,
        spans=tuple(graph for graph in graphs if isinstance(graph, SpanGraph)),
        exits=tuple(graph for graph in graphs if isinstance(graph, ExitGraph)),
    )
    versions = {"offramp": __version__, "torch": str(torch.__version__), **(made_with or {})}
    with atomic_folder(Path(path)) as folder, progress_bar("Writing graphs", len(found), progress) as advance:
        export = write(folder, export, _advancing(found, advance), check)
        write_export(folder, replace(export, check=check.found()), versions)
    return replace(export, check=check.found())


def _advancing(found: Sequence[Piece], advance: Callable[[int], None]) -> Iterator[Piece]:
    for done, piece in enumerate(found, start=1):
        yield piece
        advance(done)


def exported(piece: Piece, *, dynamic: bool) -> ExportedProgram:
    """A piece as PyTorch's own exported program, for any batch size or for that of the piece's example."""
    dims = None
    if dynamic:
        batch = Dim("batch", min=1)
        dims = (tuple({0: batch} if port.per_sample else None for port in piece.graph.inputs),)
    example = tuple(value.clone() for value in piece.example)
    with evaluating(piece.module):
        program = torch.export.export(piece.module, example, dynamic_shapes=dims, strict=False)
        module = program.module(check_guards=False)
        if isinstance(module, GraphModule) and replace_pooling(module):
            flat = None if dims is None else dims[0]  # its forward has a parameter for each value
            program = torch.export.export(module, example, dynamic_shapes=flat, strict=False)
    return program


@contextmanager
def compiling(piece: Piece, target: str, instead: str, *loggers: str) -> Iterator[None]:
    """Quiet a compiler; its errors become an ``InputError`` that names the piece and what to do instead."""
    try:
        with quiet(*loggers):
            yield
    except Exception as error:  # the exporters have many classes of them
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        summary = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
        raise InputError(
            f"export: {piece.graph.file} cannot be written {target}: {summary}; cut the model elsewhere, or "
            f"{instead}"
        ) from error


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Exporters warn of their own deprecated calls, and log what they left as it was or could not load."""
    names = ("onnx_ir", "onnxscript", "torch.onnx", "torch.export", *loggers)
    logs = [logging.getLogger(name) for name in names]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
