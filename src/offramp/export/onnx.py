"""A network to ONNX: one graph per span and exit, each compared with PyTorch before it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from offramp.core import CostTable, Frontier
from offramp.errors import needs_extra
from offramp.export.engine import Call
from offramp.export.manifest import ExitGraph, Export, SpanGraph, long_spans
from offramp.export.onnx_graphs import WEIGHTS, Weights, fuse, graphs
from offramp.export.ort import load_graph, runtime, session_options
from offramp.export.pieces import Piece
from offramp.export.verify import Check
from offramp.export.write import compiling, exported, write_folder
from offramp.network import ExitNetwork

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
"""Of the ONNX operators: what PyTorch's exporter writes without conversion, and every runtime knows."""


def to_onnx(
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Export:
    """Write one ONNX graph per span and exit, which ``offramp.export.ort.OrtEngine`` runs without PyTorch.

    The network, on the CPU and with trained heads, stays as it is; only exits that a configuration of the
    frontier uses are written; an export already at ``path`` is replaced. ``classes`` are names of the K
    outputs; ``progress`` None shows a bar when standard error is a terminal.

    Raises:
        InputError: the network cannot be written as ONNX, or a graph does not give what PyTorch gives.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        StorageError: the folder cannot be written, or holds something else.
    """
    given = (net, frontier, costs, path, classes, progress)
    return write_folder(*given, kind="onnx", write=_write, runtime=require_onnx(), ending=".onnx")


def _write(folder: Path, export: Export, pieces: Iterator[Piece], check: Check) -> Export:
    weights, options = Weights(folder / WEIGHTS), session_options(1)

    def load(graph: SpanGraph | ExitGraph, model: ModelProto) -> Call:
        (folder / graph.file).write_bytes(model.SerializeToString())
        return load_graph(folder / graph.file, graph, options)

    spans: list[tuple[SpanGraph, Piece, ModelProto]] = []
    for piece in pieces:
        model = model_of(piece)
        weights.take(model)
        check.piece(piece, load(piece.graph, model))
        if isinstance(piece.graph, SpanGraph):
            spans.append((piece.graph, piece, model))
    fused = []
    for start, stop in long_spans(export):
        parts = [each for each in spans if start <= each[0].start and each[0].stop <= stop]
        first, last = parts[0][1], parts[-1][1]
        graph, model = fuse([(span, model) for span, _, model in parts])
        mask = last.example[-1:] if graph.masked else ()
        example = [value.numpy() for value in (*first.example, *mask)]
        check.values(graph, last.results, load(graph, model)(example))
        fused.append(graph)
    return replace(export, fused=tuple(fused))


def require_onnx() -> str:
    """Name and version of the runtime; a ``MissingExtraError`` if it or the exporter is not installed."""
    name = f"onnxruntime {runtime().__version__}"
    with needs_extra("onnx", "writing ONNX needs onnx and onnxscript; run"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    return name


def model_of(piece: Piece, *, dynamic: bool = True) -> ModelProto:
    """A piece as an ONNX model that says nothing about the machine it was made on.

    It takes any batch size if ``dynamic``, else that of the piece's example. An operation without a
    counterpart, or weights too large for one file, is an ``InputError``.
    """
    with compiling(piece, "as ONNX", "run it with offramp.Engine"):
        program = torch.onnx.export(
            exported(piece, dynamic=dynamic),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[port.name for port in piece.graph.inputs],
            output_names=[port.name for port in piece.graph.outputs],
        )
        assert program is not None  # it is only where a file is written at once
        model = program.model_proto
    for graph in graphs(model.graph):  # the exporter notes files and lines of the model's source everywhere
        inside = (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node)
        for part in (graph, *inside):
            part.doc_string = ""
            del part.metadata_props[:]
    for each in (model, *model.functions):
        del each.metadata_props[:]
    return model
