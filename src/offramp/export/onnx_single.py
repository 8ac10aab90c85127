"""A network to one ONNX graph for one sample, composed of the graphs of spans and exits from the inside out.

    span ─ If(on){head} ─ If(leaves){answer} else { span ─ If(on){head} ─ If(leaves){answer} else { ... } }

Names of values are unique over all levels: each graph gets a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from offramp.export.write import Target, write_folder
from offramp.network import ExitNetwork

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

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
    target = Target("onnx-single", _write, require_onnx(), samples=1)
    return write_folder(target, net, frontier, costs, path, classes, progress)


def _write(folder: Path, export: Export, pieces: Iterator[Piece], check: Check) -> Export:
    if (count := len({each.position for each in export.exits})) > MOST:
        raise InputError(
            f"export: one graph holds exits at {MOST} positions at most, the frontier uses {count}; export "
            "one configuration (--max-drop and the like), or search with max_exits"
        )
    signature, written = export.signature, [(piece, model_of(piece, dynamic=False)) for piece in pieces]
    whole = SpanGraph(
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
    composer = _Composer(export, whole, {piece.graph.file: model for piece, model in written})
    (folder / FILE).write_bytes(composer.model().SerializeToString())
    session = open_session(folder / FILE, session_options(1))
    check.single([piece for piece, _ in written], signature, session)
    return replace(export, spans=(whole,), exits=tuple(replace(each, file=FILE) for each in export.exits))


class _Composer:
    """Builds the graph ``whole`` out of the models of an export's spans and exits, by file."""

    def __init__(self, export: Export, whole: SpanGraph, models: Mapping[str, ModelProto]) -> None:
        self.whole, self.models, self.exits = whole, models, export.exits
        self.spans = {graph.start: graph for graph in export.spans}
        at_mask = export.signature.mask
        self.mask = "" if at_mask is None else export.signature.inputs[at_mask].name

    def model(self) -> ModelProto:
        """The whole graph, checked."""
        from onnx import GraphProto, checker, helper

        first = self.models[self.spans[0].file]
        graph = GraphProto(name="network")
        graph.input.extend(map(_one, self.whole.inputs))
        graph.output.extend(map(_one, self.whole.outputs))
        inputs = [port.name for port in self.whole.inputs[:-1]]
        self._from(graph, 0, inputs, [port.name for port in self.whole.outputs])
        model = helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)
        checker.check_model(model)
        return model

    def _from(
        self, graph: GraphProto, position: int, activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """Everything from a position on; outputs, position and confidence are called ``names``."""
        from onnx import GraphProto, helper

        exits = [each for each in self.exits if each.position == position]
        if not exits:
            self._continue(graph, position, activations, names)
            return
        at = f"at_{position}/"
        found = [f"{at}{name}" for name in ("outputs", "confidence", "sure")]
        self._exit(graph, exits, activations, found)
        leave, stay = GraphProto(name=f"{at}leave"), GraphProto(name=f"{at}stay")
        leaving, staying = ([f"{at}{branch}/{name}" for name in names] for branch in ("leave", "stay"))
        leave.node.append(helper.make_node("Identity", [found[0]], [leaving[0]]))
        leave.node.append(_constant(np.full(1, position, np.int32), leaving[1]))
        leave.node.append(helper.make_node("Identity", [found[1]], [leaving[2]]))
        leave.output.extend(map(_one, self.whole.outputs, leaving))
        self._continue(stay, position, activations, staying)
        stay.output.extend(map(_one, self.whole.outputs, staying))
        choice = helper.make_node("If", found[2:], names, then_branch=leave, else_branch=stay)
        graph.node.append(choice)

    def _continue(
        self, graph: GraphProto, position: int, activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """The span that begins at a position, and what comes after it."""
        span = self.spans[position]
        model = self.models[span.file]
        prefix = f"span_{span.start}_{span.stop}/"
        if span.stop == self.whole.stop:
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
        from onnx import GraphProto, helper, numpy_helper

        exit_, *others = exits
        index = self.exits.index(exit_)
        prefix = f"exit_{exit_.position}_{exit_.head}/"
        threshold, on, infinity = f"{prefix}threshold", f"{prefix}on", f"{prefix}infinity"
        # read here and not outside: every value from outside is handed through all levels, which takes time
        graph.initializer.append(numpy_helper.from_array(np.array([index]), f"{prefix}index"))
        graph.initializer.append(numpy_helper.from_array(np.array([np.inf], np.float32), infinity))
        graph.node.append(helper.make_node("Gather", ["thresholds", f"{prefix}index"], [threshold]))
        graph.node.append(helper.make_node("Less", [threshold, infinity], [on]))
        asked, off = GraphProto(name=f"{prefix}asked"), GraphProto(name=f"{prefix}off")
        found = [f"{prefix}{name}" for name in ("outputs", "confidence", "sure")]
        place(asked, self.models[exit_.file], exit_, activations, found[:2], prefix, self.mask)
        asked.node.extend(
            [
                helper.make_node("Greater", [found[1], threshold], [f"{prefix}above"]),
                helper.make_node("Less", [found[1], infinity], [f"{prefix}below"]),
                helper.make_node("And", [f"{prefix}above", f"{prefix}below"], [found[2]]),
            ]
        )
        nothing = [f"{prefix}off/{name}" for name in ("outputs", "confidence", "sure")]
        if others:
            self._exit(off, others, activations, nothing)
        else:
            off.node.extend(map(_constant, self._zeros(), nothing))
        self._yields(asked, found)
        self._yields(off, nothing)
        graph.node.append(helper.make_node("If", [on], names, then_branch=asked, else_branch=off))

    def _zeros(self) -> tuple[npt.NDArray[Any], ...]:
        """What an exit that is off answers: nobody leaves."""
        answer = self.whole.outputs[0]
        shape = [1, *(int(size) for size in answer.shape[1:])]
        return np.zeros(shape, answer.dtype), np.zeros(1, np.float32), np.zeros(1, bool)

    def _yields(self, graph: GraphProto, names: Sequence[str]) -> None:
        """What a branch of an exit returns."""
        ports = (self.whole.outputs[0], self.whole.outputs[2], Port("", (BATCH,), "bool"))
        graph.output.extend(_one(port, name) for port, name in zip(ports, names, strict=True))


def _constant(value: npt.NDArray[Any], name: str) -> NodeProto:
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _one(port: Port, name: str | None = None) -> ValueInfoProto:
    return value(port, name, batch=1)
