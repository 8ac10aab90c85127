"""A network to one ONNX graph for one sample, composed of the graphs of spans and exits from the inside out.

    span ─ If(on){head} ─ If(leaves){answer} else { span ─ If(on){head} ─ If(leaves){answer} else { ... } }

Names of values are unique over all levels: each graph gets a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offramp.core import CostTable, Frontier
from offramp.errors import InputError
from offramp.export.manifest import BATCH, ExitGraph, Export, Port, SpanGraph
from offramp.export.onnx import model_of, require_onnx
from offramp.export.onnx_graphs import place, value
from offramp.export.ort import open_session, session_options
from offramp.export.pieces import Piece
from offramp.export.verify import Check
from offramp.export.write import write_folder
from offramp.network import ExitNetwork

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

    Fill = Callable[[GraphProto, Sequence[str]], None]

FILE = "model.onnx"
MOST = 28
"""Positions with exits: ONNX files are read to a depth of 100 messages, and each position takes three."""


def to_onnx_single(
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Export:
    """Write one ONNX graph, which ``offramp.export.ort.OrtSingle`` runs, and ONNX Runtime in a browser.

    The network, on the CPU and with trained heads, stays as it is; only exits that a configuration of the
    frontier uses are in the graph; an export already at ``path`` is replaced. ``classes`` are names of the K
    outputs; ``progress`` None shows a bar when standard error is a terminal.

    Raises:
        InputError: the network cannot be written as ONNX, or the graph does not give what PyTorch gives.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        StorageError: the folder cannot be written, or holds something else.
    """
    given = (net, frontier, costs, path, classes, progress)
    return write_folder(*given, kind="onnx-single", write=_write, runtime=require_onnx(), samples=1)


def _write(folder: Path, export: Export, pieces: Iterator[Piece], check: Check) -> Export:
    if (count := len({each.position for each in export.exits})) > MOST:
        raise InputError(
            f"export: one graph holds exits at {MOST} positions at most, the frontier uses {count}; export "
            "one configuration (--max-drop and the like), or search with max_exits"
        )
    signature, written = export.signature, [(piece, model_of(piece, dynamic=False)) for piece in pieces]
    single = SpanGraph(
        file=FILE,
        inputs=(*signature.inputs, Port("thresholds", (len(export.exits),), "float32")),
        outputs=(
            signature.answer,
            Port("position", (BATCH,), "int32"),
            Port("confidence", (BATCH,), "float32"),
        ),
        start=0,
        stop=len(signature.positions),
    )
    composer = _Composer(export, single, {piece.graph.file: model for piece, model in written})
    (folder / FILE).write_bytes(composer.model().SerializeToString())
    session = open_session(folder / FILE, session_options(1))
    check.single([piece for piece, _ in written], signature, session)
    return replace(export, spans=(single,), exits=tuple(replace(each, file=FILE) for each in export.exits))


class _Composer:
    """Builds the graph ``whole`` out of the models of an export's spans and exits, by file."""

    def __init__(self, export: Export, single: SpanGraph, models: Mapping[str, ModelProto]) -> None:
        self.single, self.models, self.exits = single, models, export.exits
        self.spans = {graph.start: graph for graph in export.spans}
        at_mask = export.signature.mask_input
        self.mask = "" if at_mask is None else export.signature.inputs[at_mask].name

    def model(self) -> ModelProto:
        """The whole graph, checked."""
        from onnx import GraphProto, checker, helper

        first = self.models[self.spans[0].file]
        graph = GraphProto(name="network")
        graph.input.extend(map(_one, self.single.inputs))
        graph.output.extend(map(_one, self.single.outputs))
        inputs = [port.name for port in self.single.inputs[:-1]]
        self._from(graph, 0, inputs, [port.name for port in self.single.outputs])
        model = helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)
        checker.check_model(model)
        return model

    def _from(
        self, graph: GraphProto, position: int, activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """Everything from a position on; outputs, position and confidence are called ``names``."""
        from onnx import helper

        exits = [each for each in self.exits if each.position == position]
        if not exits:
            self._continue(graph, position, activations, names)
            return

        def leave(inner: GraphProto, answer: Sequence[str]) -> None:
            inner.node.append(helper.make_node("Identity", [outputs], [answer[0]]))
            inner.node.append(_constant(np.full(1, position, np.int32), answer[1]))
            inner.node.append(helper.make_node("Identity", [confidence], [answer[2]]))

        def stay(inner: GraphProto, answer: Sequence[str]) -> None:
            self._continue(inner, position, activations, answer)

        at = f"at_{position}/"
        outputs, confidence, leaves = (f"{at}{name}" for name in ("outputs", "confidence", "leaves"))
        self._exit(graph, exits, activations, (outputs, confidence, leaves))
        graph.node.append(_if(leaves, names, self.single.outputs, at, (leave, stay)))

    def _continue(
        self, graph: GraphProto, position: int, activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """The span that begins at a position, and what comes after it."""
        span = self.spans[position]
        model, prefix = self.models[span.file], f"span_{span.start}_{span.stop}/"
        if span.stop == self.single.stop:
            place(graph, model, span, activations, [names[0], names[2]], prefix, self.mask)
            graph.node.append(_constant(np.full(1, span.stop, np.int32), names[1]))
            return
        found = [f"{prefix}{port.name}" for port in span.outputs]
        place(graph, model, span, activations, found, prefix, self.mask)
        self._from(graph, span.stop, found, names)

    def _exit(
        self, graph: GraphProto, exits: Sequence[ExitGraph], activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """The first of these exits that is on: (outputs, confidence, whether the sample leaves)."""
        from onnx import helper, numpy_helper

        first, *others = exits
        prefix = f"exit_{first.position}_{first.head}/"
        index, threshold, infinity, enabled = (
            f"{prefix}{name}" for name in ("index", "threshold", "infinity", "enabled")
        )
        # read here and not outside: every value from outside passes through all levels, which takes time
        graph.initializer.append(numpy_helper.from_array(np.array([self.exits.index(first)]), index))
        graph.initializer.append(numpy_helper.from_array(np.array([np.inf], np.float32), infinity))
        graph.node.append(helper.make_node("Gather", ["thresholds", index], [threshold]))
        graph.node.append(helper.make_node("Less", [threshold, infinity], [enabled]))
        answer, _, confidence = self.single.outputs

        def on(inner: GraphProto, found: Sequence[str]) -> None:
            place(inner, self.models[first.file], first, activations, found[:2], prefix, self.mask)
            above, finite = f"{prefix}above", f"{prefix}finite"
            inner.node.append(helper.make_node("Greater", [found[1], threshold], [above]))
            inner.node.append(helper.make_node("Less", [found[1], infinity], [finite]))
            inner.node.append(helper.make_node("And", [above, finite], [found[2]]))

        def off(inner: GraphProto, found: Sequence[str]) -> None:
            if others:
                self._exit(inner, others, activations, found)
                return
            shape = [1, *(int(size) for size in answer.shape[1:])]
            nobody = (np.zeros(shape, answer.dtype), np.zeros(1, np.float32), np.zeros(1, bool))
            inner.node.extend(map(_constant, nobody, found))

        ports = (answer, confidence, Port("leaves", (BATCH,), "bool"))
        graph.node.append(_if(enabled, names, ports, prefix, (on, off)))


def _if(
    condition: str, names: Sequence[str], ports: Sequence[Port], prefix: str, fills: tuple[Fill, Fill]
) -> NodeProto:
    """A choice between two graphs called as the functions that fill them, given graph and results' names."""
    from onnx import GraphProto, helper

    made = {}
    for branch, fill in zip(("then_branch", "else_branch"), fills, strict=True):
        label = f"{prefix}{fill.__name__}"
        made[branch] = GraphProto(name=label)
        found = [f"{label}/{port.name}" for port in ports]
        fill(made[branch], found)
        made[branch].output.extend(map(_one, ports, found))
    return helper.make_node("If", [condition], names, **made)


def _constant(value: npt.NDArray[Any], name: str) -> NodeProto:
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _one(port: Port, name: str | None = None) -> ValueInfoProto:
    return value(port, name, batch=1)
