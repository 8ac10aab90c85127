"""ONNX graphs put one behind the other, and weights that several of them share in one file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offramp.export.manifest import BATCH, MASK, WEIGHTS as WEIGHTS, Graph, Port, SpanGraph

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

_LEAST = 1024  # bytes; smaller values stay where they are, for runtimes read shapes from some of them
_ALIGNED = 64


class Weights:
    """Moves weights of models into one file, which they refer to by name; equal ones are stored once."""

    def __init__(self, path: Path) -> None:
        self._path, self._known, self._size = path, dict[bytes, int](), 0
        path.touch()

    def take(self, model: ModelProto) -> None:
        """Move the large weights of a model, in place."""
        with self._path.open("ab") as file:
            for graph in graphs(model.graph):
                for tensor in graph.initializer:
                    content = _content(tensor)
                    if len(content) < _LEAST:
                        continue
                    digest = hashlib.sha256(content).digest()
                    if digest not in self._known:
                        gap = -self._size % _ALIGNED
                        self._known[digest] = self._size + gap
                        self._size += file.write(bytes(gap) + content)
                    _refer(tensor, self._path.name, self._known[digest], len(content))


def fuse(parts: Sequence[tuple[SpanGraph, ModelProto]]) -> tuple[SpanGraph, ModelProto]:
    """Two spans or more that follow one another as one."""
    from onnx import GraphProto, helper

    (first, model), (last, _) = parts[0], parts[-1]
    inputs = (*first.inputs, *last.inputs[-1:]) if last.masked else first.inputs
    graph, names = GraphProto(name="span"), [port.name for port in first.inputs]
    for part, each in parts:
        found = [port.name for port in part.outputs]
        place(graph, each, part, names, found, f"span_{part.start}_{part.stop}/")
        names = found
    graph.input.extend(map(value, inputs))
    graph.output.extend(map(value, last.outputs))
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    span = SpanGraph(
        file=f"span-{first.start}-{last.stop}.onnx",
        inputs=inputs,
        outputs=last.outputs,
        start=first.start,
        stop=last.stop,
    )
    return span, made


def place(
    graph: GraphProto,
    model: ModelProto,
    piece: Graph,
    activations: Sequence[str],
    found: Sequence[str],
    prefix: str,
    mask: str = MASK,
) -> None:
    """Add a model's operations and weights to a graph, whose values ``activations`` and ``mask`` it takes.

    Its results are called ``found`` in the graph; all its other names get a prefix.
    """
    from onnx import GraphProto

    given = [port.name for port in piece.inputs if port.name != MASK]
    names = {MASK: mask, **dict(zip(given, activations, strict=False))}
    names |= dict(zip((port.name for port in piece.outputs), found, strict=True))

    def to(name: str) -> str:
        return names.get(name, prefix + name)

    inner = GraphProto()
    inner.CopyFrom(model.graph)
    for each in graphs(inner):  # also those inside; "" says that an input is left out
        for node in each.node:
            node.name = to(node.name)
            node.input[:] = [name and to(name) for name in node.input]
            node.output[:] = [name and to(name) for name in node.output]
        for named in (*each.input, *each.output, *each.initializer):
            named.name = to(named.name)
        del each.value_info[:]
    graph.node.extend(inner.node)
    graph.initializer.extend(inner.initializer)


def value(port: Port, name: str | None = None, batch: int | str = BATCH) -> ValueInfoProto:
    """A port as ONNX describes values."""
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))
    shape = [batch if size == BATCH else size for size in port.shape]
    return helper.make_tensor_value_info(name or port.name, kind, shape)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its operations."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def _content(tensor: TensorProto) -> bytes:
    """A tensor's bytes; none for text, which a file of numbers cannot hold."""
    from onnx import TensorProto, numpy_helper

    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return b"" if tensor.data_type == TensorProto.STRING else numpy_helper.to_array(tensor).tobytes()


def _refer(tensor: TensorProto, file: str, offset: int, length: int) -> None:
    """Make a tensor say where its content is instead of holding it."""
    from onnx import TensorProto

    kept = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    for key, entry in (("location", file), ("offset", offset), ("length", length)):
        kept.external_data.add(key=key, value=str(entry))
    kept.data_location = TensorProto.EXTERNAL
    tensor.CopyFrom(kept)
