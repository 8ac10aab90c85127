"""A network to ONNX: one graph per span and exit, each compared with PyTorch before it is kept."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from offramp._progress import progress_bar
from offramp._version import __version__
from offramp.core import CostTable, Frontier
from offramp.errors import InputError, MissingExtraError
from offramp.export.adaptive_pooling import replace_pooling
from offramp.export.engine import Call
from offramp.export.manifest import (
    MASK,
    ExitGraph,
    Export,
    SpanGraph,
    check_replaceable,
    long_spans,
    write_export,
)
from offramp.export.onnx_graphs import WEIGHTS, Weights, fuse, graphs
from offramp.export.ort import load_graph, runtime, session_options
from offramp.export.pieces import Piece, check_exportable, pieces, signature_of
from offramp.export.verify import Check
from offramp.graph import evaluating
from offramp.network import ExitNetwork
from offramp.storage import atomic_folder

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OPSET = 18
"""Of the ONNX operators: what PyTorch's exporter writes without conversion, and every runtime knows."""

WRITING = "Writing graphs"


def to_onnx(
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Export:
    """Write a folder that ``offramp.export.ort.OrtEngine`` runs without PyTorch.

    Args:
        net: with trained heads, on the CPU; left as it is.
        frontier: its configurations; only exits that one of them uses are written.
        costs: of the network.
        path: of the folder; an export already there is replaced.
        classes: names of the K outputs.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        What was written.

    Raises:
        InputError: the network cannot be written as ONNX, or a graph does not give what PyTorch gives.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        StorageError: the folder cannot be written, or holds something else.
    """
    require_onnx()
    check_exportable(net)
    check_replaceable(Path(path))
    signature, found = signature_of(net, classes), list(pieces(net, frontier))
    with atomic_folder(Path(path)) as folder, progress_bar(WRITING, len(found), progress) as advance:
        writer = _Writer(folder)
        for done, piece in enumerate(found, start=1):
            writer.write(piece)
            advance(done)
        spans, exits = writer.graphs()
        export = Export("onnx", signature, frontier, costs, spans, exits)
        fused = tuple(writer.fuse(start, stop) for start, stop in long_spans(export))
        export = replace(export, fused=fused, check=writer.check.found())
        write_export(folder, export, made_with())
    return export


class _Writer:
    """Writes graphs into a folder and asks ONNX Runtime about each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.check = folder, Check(f"onnxruntime {runtime().__version__}")
        self._weights, self._options = Weights(folder / WEIGHTS), session_options(1)
        self._written: list[tuple[Piece, ModelProto]] = []

    def write(self, piece: Piece) -> None:
        """One span or exit."""
        piece = replace(piece, graph=replace(piece.graph, file=f"{piece.graph.file}.onnx"))
        model = model_of(piece)
        self._weights.take(model)
        self.check.piece(piece, self._saved(piece.graph, model))
        self._written.append((piece, model))

    def graphs(self) -> tuple[tuple[SpanGraph, ...], tuple[ExitGraph, ...]]:
        """Spans and exits written so far."""
        every = [piece.graph for piece, _ in self._written]
        spans = tuple(graph for graph in every if isinstance(graph, SpanGraph))
        return spans, tuple(graph for graph in every if isinstance(graph, ExitGraph))

    def fuse(self, start: int, stop: int) -> SpanGraph:
        """The spans between two positions as one."""
        parts, ends = [], list[Piece]()
        for piece, model in self._written:
            graph = piece.graph
            if isinstance(graph, SpanGraph) and start <= graph.start and graph.stop <= stop:
                parts.append((graph, model))
                ends.append(piece)
        graph, model = fuse(parts)
        mask = ends[-1].example[len(ends[-1].graph.inputs) - 1 :] if graph.inputs[-1].name == MASK else ()
        example = [value.numpy() for value in (*ends[0].example, *mask)]
        self.check.values(graph.file, graph.outputs, ends[-1].results, self._saved(graph, model)(example))
        return graph

    def _saved(self, graph: SpanGraph | ExitGraph, model: ModelProto) -> Call:
        path = self.folder / graph.file
        path.write_bytes(model.SerializeToString())
        return load_graph(path, graph, self._options)


def require_onnx() -> None:
    """Find out whether the exporter's packages are installed.

    Raises:
        MissingExtraError: they are not.
    """
    runtime()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            'writing ONNX needs onnx and onnxscript; run: pip install "offramp[onnx]"'
        ) from error


def made_with() -> dict[str, str]:
    """Versions, for those who look into a folder later."""
    return {"offramp": __version__, "torch": str(torch.__version__)}


def model_of(piece: Piece, *, dynamic: bool = True) -> ModelProto:
    """A piece as an ONNX model that says nothing about the machine it was made on.

    Args:
        piece: to write.
        dynamic: for any batch size; else for that of the piece's example.

    Raises:
        InputError: an operation has no counterpart, or the weights are too many for one file.
    """
    graph = piece.graph
    try:
        with contained_warnings():
            program = torch.onnx.export(
                exported(piece, dynamic=dynamic),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[port.name for port in graph.inputs],
                output_names=[port.name for port in graph.outputs],
            )
        assert program is not None  # it is only where a file is written at once
        model = program.model_proto
    except Exception as error:  # the exporter has many classes of them
        raise InputError(
            f"export: {graph.file} cannot be written as ONNX: {summary(error)}; cut the model elsewhere, or "
            "run it with offramp.Engine"
        ) from error
    _strip(model.graph)
    for function in model.functions:
        del function.metadata_props[:]
    del model.metadata_props[:]
    return model


def exported(piece: Piece, *, dynamic: bool) -> ExportedProgram:
    """A piece as PyTorch's own exported program."""
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
def contained_warnings() -> Iterator[None]:
    """PyTorch's exporter warns of its own deprecated calls and logs what it left as it was."""
    logs = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx", "torch.export")]
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


def _strip(graph: GraphProto) -> None:
    """Take out names of files and lines of the model's source, which the exporter notes everywhere."""
    for each in graphs(graph):
        for part in (each, *each.input, *each.output, *each.value_info, *each.initializer, *each.node):
            part.doc_string = ""
            del part.metadata_props[:]


def summary(error: BaseException) -> str:
    """The first line of what an error was caused by."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
