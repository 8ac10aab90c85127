"""ONNX graphs of spans and exits to one graph for one sample, from the inside out.

    span ─ If(on){head} ─ If(sure){answer} else { span ─ If(on){head} ─ If(sure){answer} else { ... } }

Names of values are unique over all levels: each graph gets a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offramp.export.manifest import BATCH, ExitGraph, Port, Signature, SpanGraph
from offramp.export.onnx_graphs import place, value

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

    Part = tuple[SpanGraph | ExitGraph, ModelProto]
    Exit = tuple[int, ExitGraph, ModelProto]  # index of its threshold, what it is, its graph
from dataclasses import replace
from pathlib import Path

from offramp._progress import progress_bar
from offramp.core import CostTable, Frontier
from offramp.errors import InputError
from offramp.export.manifest import ExitGraph, Export, SpanGraph, check_replaceable, write_export
from offramp.export.onnx import WRITING, made_with, model_of, require_onnx
from offramp.export.ort import open_session, runtime, session_options
from offramp.export.pieces import check_exportable, pieces, signature_of
from offramp.export.verify import Check
from offramp.network import ExitNetwork
from offramp.storage import atomic_folder

MOST = 28
"""Positions with exits: ONNX files are read to a depth of 100 messages, and each position takes three."""


def compose(parts: Sequence[Part], signature: Signature) -> ModelProto:
    """One model of inputs and thresholds to outputs, position and confidence, for a batch of one.

    Args:
        parts: spans and exits with their graphs, in any order; thresholds are in the order of the exits.
        signature: of the network.
    """
    return _Composer(parts, signature).model()


class _Composer:
    def __init__(self, parts: Sequence[Part], signature: Signature) -> None:
        self.signature, self.last = signature, len(signature.positions)
        self.mask = "" if signature.mask is None else signature.inputs[signature.mask].name
        self.spans = {graph.start: (graph, model) for graph, model in parts if isinstance(graph, SpanGraph)}
        exits = [(graph, model) for graph, model in parts if isinstance(graph, ExitGraph)]
        self.exits: list[Exit] = [(index, graph, model) for index, (graph, model) in enumerate(exits)]
        self.answers = (
            signature.answer,
            Port("position", (BATCH,), "int32"),
            Port("confidence", (BATCH,), "float32"),
        )

    def model(self) -> ModelProto:
        """The whole graph, checked."""
        from onnx import GraphProto, checker, helper

        first, names = self.spans[0][1], [port.name for port in self.answers]
        graph = GraphProto(name="network")
        thresholds = Port("thresholds", (len(self.exits),), "float32")
        graph.input.extend(map(_one, (*self.signature.inputs, thresholds)))
        graph.output.extend(map(_one, self.answers))
        self._from(graph, 0, [port.name for port in self.signature.inputs], names)
        model = helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)
        checker.check_model(model)
        return model

    def _from(
        self, graph: GraphProto, position: int, activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """Everything from a position on; the answer is called ``names``."""
        from onnx import GraphProto, helper

        exits = [each for each in self.exits if each[1].position == position]
        if not exits:
            self._onward(graph, position, activations, names)
            return
        at = f"at_{position}/"
        asked = [f"{at}{name}" for name in ("outputs", "confidence", "sure")]
        self._ask(graph, exits, activations, asked)
        branches = []
        for branch in ("leave", "stay"):
            inner, inside = GraphProto(name=f"{at}{branch}"), [f"{at}{branch}/{name}" for name in names]
            if branch == "leave":
                self._leave(inner, position, asked, inside)
            else:
                self._onward(inner, position, activations, inside)
            inner.output.extend(map(_one, self.answers, inside))
            branches.append(inner)
        choice = helper.make_node("If", asked[2:], names, then_branch=branches[0], else_branch=branches[1])
        graph.node.append(choice)

    def _onward(
        self, graph: GraphProto, position: int, activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """The span that begins at a position, and what comes after it."""
        span, model = self.spans[position]
        prefix = f"span_{span.start}_{span.stop}/"
        if span.stop == self.last:
            place(graph, model, span, activations, [names[0], names[2]], prefix, self.mask)
            graph.node.append(_constant(np.full(1, self.last, np.int32), names[1]))
            return
        found = [f"{prefix}{port.name}" for port in span.outputs]
        place(graph, model, span, activations, found, prefix, self.mask)
        self._from(graph, span.stop, found, names)

    def _ask(
        self, graph: GraphProto, exits: Sequence[Exit], activations: Sequence[str], names: Sequence[str]
    ) -> None:
        """The first of these exits that is on: (outputs, confidence, whether it is sure)."""
        from onnx import GraphProto, helper, numpy_helper

        (index, exit_, model), *others = exits
        prefix = f"exit_{exit_.position}_{exit_.head}/"
        threshold, on, infinity = f"{prefix}threshold", f"{prefix}on", f"{prefix}infinity"
        # read here and not outside: every value from outside is handed through all levels, which takes time
        graph.initializer.append(numpy_helper.from_array(np.array([index]), f"{prefix}index"))
        graph.initializer.append(numpy_helper.from_array(np.array([np.inf], np.float32), infinity))
        graph.node.append(helper.make_node("Gather", ["thresholds", f"{prefix}index"], [threshold]))
        graph.node.append(helper.make_node("Less", [threshold, infinity], [on]))
        asked, off = GraphProto(name=f"{prefix}asked"), GraphProto(name=f"{prefix}off")
        found = [f"{prefix}{name}" for name in ("outputs", "confidence", "sure")]
        place(asked, model, exit_, activations, found[:2], prefix, self.mask)
        asked.node.extend(
            [
                helper.make_node("Greater", [found[1], threshold], [f"{prefix}above"]),
                helper.make_node("Less", [found[1], infinity], [f"{prefix}below"]),
                helper.make_node("And", [f"{prefix}above", f"{prefix}below"], [found[2]]),
            ]
        )
        nothing = [f"{prefix}off/{name}" for name in ("outputs", "confidence", "sure")]
        if others:
            self._ask(off, others, activations, nothing)
        else:
            off.node.extend(map(_constant, self._zeros(), nothing))
        self._yields(asked, found)
        self._yields(off, nothing)
        graph.node.append(helper.make_node("If", [on], names, then_branch=asked, else_branch=off))

    def _zeros(self) -> tuple[npt.NDArray[Any], ...]:
        """What an exit that is off answers: nobody leaves."""
        answer = self.signature.answer
        shape = [1, *(int(size) for size in answer.shape[1:])]
        return np.zeros(shape, answer.dtype), np.zeros(1, np.float32), np.zeros(1, bool)

    def _leave(self, graph: GraphProto, position: int, found: Sequence[str], names: Sequence[str]) -> None:
        """The exit's answer."""
        from onnx import helper

        graph.node.append(helper.make_node("Identity", [found[0]], [names[0]]))
        graph.node.append(_constant(np.full(1, position, np.int32), names[1]))
        graph.node.append(helper.make_node("Identity", [found[1]], [names[2]]))

    def _yields(self, graph: GraphProto, names: Sequence[str]) -> None:
        """What a branch of an exit returns."""
        ports = (self.answers[0], self.answers[2], Port("", (BATCH,), "bool"))
        graph.output.extend(_one(port, name) for port, name in zip(ports, names, strict=True))


def _constant(value: npt.NDArray[Any], name: str) -> NodeProto:
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _one(port: Port, name: str | None = None) -> ValueInfoProto:
    return value(port, name, batch=1)


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
    with atomic_folder(Path(path)) as folder:
        (folder / FILE).write_bytes(content)
        check.single(found, signature, open_session(folder / FILE, session_options(1)))
        export = Export("onnx-single", signature, frontier, costs, (graph,), exits, check=check.found())
        write_export(folder, export, made_with())
    return export
