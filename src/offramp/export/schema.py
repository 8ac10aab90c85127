"""What the manifest of an exported network must say, checked whole before anything of it is used.

Types first (``check_types``), then what the parts say of one another: every graph is a file that the manifest
lists, spans give what the next one takes, exits take what is there at their position, configurations name
exits that were exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from offramp.core import is_count
from offramp.export.parts import BATCH, Export, Graph, Port

Rule = tuple[str, Callable[[Any], bool]]
"""What is expected, in words, and whether a value is that."""

_DTYPES = (
    "float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64",
)  # fmt: skip


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_name, value)) and len(set(value)) == len(value)


def _is_shape(value: Any) -> bool:
    sizes = value[value[:1] == [BATCH] :] if isinstance(value, list) else [None]
    return all(type(size) is int and size >= 0 for size in sizes)


_NAME: Rule = ("a name", _is_name)
_NAMES: Rule = ("a list of distinct names", _are_names)
_INDEX: Rule = ("a whole number of at least 0", is_count)
_PORT: dict[str, Rule] = {
    "name": _NAME,
    "shape": ('a list of sizes, "batch" first where there is one row per sample', _is_shape),
    "dtype": ("a type of NumPy", lambda value: value in _DTYPES),
}
_GRAPH = {"file": _NAME, "inputs": [_PORT], "outputs": [_PORT]}
_SPAN = {**_GRAPH, "from": _INDEX, "to": _INDEX}
_MANIFEST: dict[str, Any] = {
    "kind": _NAME,
    "positions": ('a list of distinct names, "input" first', lambda v: _are_names(v) and v[:1] == ["input"]),
    "heads": _NAMES,
    "task": _NAME,
    "confidence": _NAME,
    "inputs": [{**_PORT, "graph_name": _NAME}],
    "keyword": ("true or false", lambda value: isinstance(value, bool)),
    "mask_input": ("a whole number or null", lambda value: value is None or is_count(value)),
    "answer": _PORT,
    "classes": (
        "a list of names or null",
        lambda value: value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value)),
    ),
    "spans": [_SPAN],
    "fused": [_SPAN],
    "exits": [{**_GRAPH, "position": _INDEX, "head": _INDEX}],
    "frontier": ("an object", lambda value: isinstance(value, dict)),
    "costs": ("an object", lambda value: isinstance(value, dict)),
    "thresholds": ("a list", lambda value: isinstance(value, list)),
    "check": ("an object or null", lambda value: value is None or isinstance(value, dict)),
}


def check_types(document: Mapping[str, Any]) -> None:
    """Refuse, with a ``ValueError`` that names it, a field that is missing or wrong."""
    _check(document, _MANIFEST, "")


def _check(value: Any, schema: Any, where: str) -> None:
    if isinstance(schema, dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected an object, got {_short(value)}")
        for key, inner in schema.items():
            name = f"{where}.{key}" if where else key
            if key not in value:
                raise ValueError(f"{name} is missing")
            _check(value[key], inner, name)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {_short(value)}")
        for i, each in enumerate(value):
            _check(each, schema[0], f"{where}[{i}]")
    else:
        words, valid = schema
        try:
            fits = valid(value)
        except TypeError:  # what cannot be hashed, or compared
            fits = False
        if not fits:
            raise ValueError(f"{where}: expected {words}, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_parts(export: Export, document: Mapping[str, Any]) -> None:
    """Refuse, with a ``ValueError``, parts of a ``document`` that do not belong together."""
    files, thresholds = document["files"], document["thresholds"]
    _check_signature(export)
    at_mask = export.signature.mask_input
    named = None if at_mask is None else export.signature.names[at_mask]
    _require(document.get("mask", named) == named, f"mask: expected {named!r}, as mask_input says")
    single = export.kind == "onnx-single"
    _check_spans(export, single)
    _check_exits(export, single)
    _check_files(export, files, single)
    _check_configs(export, thresholds)


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise ValueError(message)


def _check_signature(export: Export) -> None:
    signature = export.signature
    names = [port.name for port in signature.inputs]
    _require(
        bool(names) and len(set(names)) == len(names) == len(set(signature.names)),
        "inputs: expected at least one, with distinct names",
    )
    for port in (*signature.inputs, signature.answer):
        _require(port.per_sample, f"{port.name}: expected one row per sample")
    _require(
        signature.mask_input is None or signature.mask_input < len(names),
        f"mask_input: expected an index below {len(names)}, got {signature.mask_input}",
    )
    _require(len(signature.answer.shape) in (2, 3), "answer.shape: expected 2 or 3 sizes")
    outputs = signature.answer.shape[-1]
    _require(
        signature.classes is None or len(signature.classes) == outputs,
        f"classes: expected {outputs} names, one per output",
    )
    shape = len(signature.positions), len(signature.heads)
    _require(
        export.costs.heads.shape == shape,
        f"costs: expected {shape[0]} positions and {shape[1]} heads, got {export.costs.heads.shape}",
    )


def _answers(export: Export, outputs: Sequence[Port], single: bool = False) -> bool:
    """Whether a graph gives an answer, of whatever type the head has, and its confidence."""
    wanted = [("outputs", export.signature.answer.shape, outputs[0].dtype if outputs else "")]
    wanted += [("position", (BATCH,), "int32")] if single else []
    wanted.append(("confidence", (BATCH,), "float32"))
    return [(port.name, port.shape, port.dtype) for port in outputs] == wanted


def _check_spans(export: Export, single: bool) -> None:
    last, spans = len(export.signature.positions), export.spans
    stops = [0, *(span.stop for span in spans)]
    _require(
        [span.start for span in spans] == stops[:-1] and stops[-1] == last and stops == sorted(set(stops)),
        f"its spans do not lead from position 0 to {last}",
    )
    if single:
        *inputs, thresholds = spans[0].inputs or (None,)
        _require(
            len(spans) == 1
            and not export.fused
            and tuple(inputs) == export.signature.inputs
            and thresholds == Port("thresholds", (len(export.exits),), "float32"),
            "spans: expected one graph that takes the inputs and a threshold for each exit",
        )
        _require(_answers(export, spans[0].outputs, True), "spans: the graph does not give an answer")
        return
    here, places = activations(export), [(span.start, span.stop) for span in (*spans, *export.fused)]
    _require(len(set(places)) == len(places), "fused: expected no span that is there already")
    for span in (*spans, *export.fused):
        _require(
            {span.start, span.stop} <= here.keys() and span.start < span.stop,
            f"{span.file}: expected a span between positions of spans, got {span.start} to {span.stop}",
        )
        _check_inputs(export, span, here[span.start], every=True)
        given = _answers(export, span.outputs) if span.stop == last else span.outputs == here[span.stop]
        _require(given, f"{span.file}: its outputs are not what is wanted at position {span.stop}")


def activations(export: Export) -> dict[int, tuple[Port, ...]]:
    """What is there at each position that a span begins or ends at, from what the spans before it give."""
    ends = {span.stop: span.outputs for span in export.spans}
    return {0: export.signature.inputs, **ends}


def _check_inputs(export: Export, graph: Graph, there: Sequence[Port], every: bool) -> None:
    """Refuse a graph that takes anything but what is there (``every`` or the first of it) and the mask."""
    at_mask, inputs = export.signature.mask_input, list(graph.inputs)
    if inputs and graph.masked and at_mask is not None:
        mask = inputs.pop()
        port = export.signature.inputs[at_mask]
        same = (mask.shape, mask.dtype) == (port.shape, port.dtype)
        _require(same, f"{graph.file}: its mask is not like the input {at_mask}")
    wanted = list(there if every else there[: len(inputs)])
    _require(bool(inputs) and inputs == wanted, f"{graph.file}: its inputs are not what is there")


def _check_exits(export: Export, single: bool) -> None:
    places = [(graph.position, graph.head) for graph in export.exits]
    _require(places == sorted(set(places)), "exits: expected them in order of position and head, each once")
    positions, heads = len(export.signature.positions), len(export.signature.heads)
    here = activations(export)
    for graph in export.exits:
        _require(graph.position < positions, f"{graph.file}: there is no position {graph.position}")
        _require(graph.head < heads, f"{graph.file}: there is no head {graph.head}")
        _require(_answers(export, graph.outputs), f"{graph.file}: it does not give an answer")
        if not single:
            _require(graph.position in here, f"{graph.file}: no span ends at position {graph.position}")
            _check_inputs(export, graph, here[graph.position], every=False)


def _check_files(export: Export, files: Mapping[str, Any], single: bool) -> None:
    graphs: tuple[Graph, ...] = (*export.spans, *export.fused, *export.exits)
    for graph in graphs:
        _require(graph.file in files, f"{_short(graph.file)} is not in its list of files")
    if single:
        return
    named: list[tuple[Graph, str]] = [
        *((graph, f"span-{graph.start}-{graph.stop}") for graph in (*export.spans, *export.fused)),
        *((graph, f"exit-{graph.position}-{graph.head}") for graph in export.exits),
    ]
    for graph, stem in named:
        _require(graph.file.partition(".")[0] == stem, f"{_short(graph.file)}: expected a file called {stem}")


def _check_configs(export: Export, thresholds: Sequence[Any]) -> None:
    _require(
        list(thresholds) == export.thresholds(),
        "thresholds: expected those of its frontier, for each configuration one per exit",
    )
    for config in (*export.frontier.between, *export.frontier.by_tradeoff.values()):
        export.resolve(config)
