"""A network as one ONNX graph for one sample: thresholds are inputs, and what is not needed is not computed.

    x0, thresholds ─ span ─ If(on){head} ─ If(sure){answer} else { span ─ If(on){head} ─ If(sure) ... }

For devices that answer one sample at a time, and for browsers. An exit whose threshold is +inf is off: its
head is not computed either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from offramp._progress import progress_bar
from offramp.core import CostTable, Frontier
from offramp.errors import InputError
from offramp.export.check import Check
from offramp.export.graphs import check_exportable, pieces, signature_of
from offramp.export.layout import BATCH, ExitGraph, Export, Port, SpanGraph, check_replaceable, write_export
from offramp.export.onnx import WRITING, made_with, model_of, require_onnx
from offramp.export.ort import open_session, runtime, session_options
from offramp.network import ExitNetwork
from offramp.storage import whole_folder

FILE = "model.onnx"


def to_onnx_single(
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Export:
    """Write a folder that ``offramp.export.ort.OrtSingle`` runs, and ONNX Runtime in a browser.

    Args:
        net: with trained heads, on the CPU; left as it is.
        frontier: its configurations; only exits that one of them uses are in the graph.
        costs: of the network.
        path: of the folder; an export already there is replaced.
        classes: names of the K outputs.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        What was written.

    Raises:
        InputError: the network cannot be written as ONNX, or the graph does not give what PyTorch gives.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        StorageError: the folder cannot be written, or holds something else.
    """
    require_onnx()
    from offramp.export.nested import MOST, compose

    check_exportable(net)
    check_replaceable(Path(path))
    check, signature = Check(f"onnxruntime {runtime().__version__}"), signature_of(net, classes)
    found = list(pieces(net, frontier, samples=1))
    exits = tuple(replace(each.graph, file=FILE) for each in found if isinstance(each.graph, ExitGraph))
    if (count := len({each.position for each in exits})) > MOST:
        raise InputError(
            f"export: one graph holds exits at {MOST} positions at most, the frontier uses {count}; export "
            "one configuration (--max-drop and the like), or search with max_exits"
        )
    parts = []
    with progress_bar(WRITING, len(found), progress) as advance:
        for done, piece in enumerate(found, start=1):
            parts.append((piece.graph, model_of(piece, dynamic=False)))
            advance(done)
    content = compose(parts, signature).SerializeToString()
    ports = (*signature.inputs, Port("thresholds", (len(exits),), "float32"))
    answers = (signature.answer, Port("position", (BATCH,), "int32"), Port("confidence", (BATCH,), "float32"))
    graph = SpanGraph(FILE, 0, len(net.positions), ports, answers)
    with whole_folder(Path(path)) as folder:
        (folder / FILE).write_bytes(content)
        check.single(found, signature, open_session(folder / FILE, session_options(1)))
        export = Export("onnx-single", signature, frontier, costs, (graph,), exits, check=check.found())
        write_export(folder, export, made_with())
    return export
