"""The folder of an exported network: its manifest, and what is checked before anything in it is used.

manifest.json      what the network takes and answers, its graphs, frontier and costs, SHA-256 of each file
span-0-3.onnx      from position 0 (the input) to position 3; the last span answers
exit-3-1.onnx      the head of column 1 at position 3

Nothing here needs PyTorch. A shape that begins with "batch" has one row per sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from offramp.core import CostTable, ExitConfig, Frontier, ResolvedConfig, resolve
from offramp.errors import ArtifactError
from offramp.storage import FolderFormat

EXPORT = FolderFormat(what="an exported network", name="offramp.export", version=1, made_by="offramp export")
BATCH = "batch"
MASK = "mask"

check_replaceable = EXPORT.check_replaceable

G = TypeVar("G", bound="Graph")


@dataclass(frozen=True)
class Port:
    """A tensor that enters or leaves a graph: name there, shape (B, ...) and NumPy's name of the dtype.

    The shape has "batch" for B, and only plain numbers where there is not one row per sample.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def per_sample(self) -> bool:
        """Whether it has one row per sample."""
        return self.shape[:1] == (BATCH,)


@dataclass(frozen=True)
class Graph:
    """A file that a runtime executes.

    ``inputs`` are activations where it begins (for a head the first of them), and the mask last where its
    name is "mask"; ``outputs`` are activations where it ends, for an answer outputs and confidence.
    """

    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def masked(self) -> bool:
        """Whether the last input is the mask."""
        return self.inputs[-1].name == MASK


@dataclass(frozen=True)
class SpanGraph(Graph):
    """The operations between two positions, ``start`` and ``stop``; P is the model's output."""

    start: int
    stop: int


@dataclass(frozen=True)
class ExitGraph(Graph):
    """The head of column ``head`` at a position, with its confidence."""

    position: int
    head: int


_PLACES: dict[type[Graph], dict[str, str]] = {
    SpanGraph: {"from": "start", "to": "stop"},
    ExitGraph: {"position": "position", "head": "head"},
}
"""What the manifest calls the fields that say where a graph belongs."""


@dataclass(frozen=True)
class Signature:
    """What an exported network is: P positions, "input" first, C heads, task and confidence by name.

    The model calls its inputs ``names``, the graphs ``inputs``; it is called with a dict if ``keyword``;
    ``mask_input``, if any, is 0 at padding. ``answer`` is one sample's outputs; ``classes`` K names or None.
    """

    positions: tuple[str, ...]
    heads: tuple[str, ...]
    task: str
    confidence: str
    names: tuple[str, ...]
    inputs: tuple[Port, ...]
    keyword: bool
    mask_input: int | None
    answer: Port
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Export:
    """An exported network, read and checked; ``kind`` is "onnx", "onnx-single" or "executorch".

    ``spans`` chain from position 0 to P, or are the single graph; ``exits`` are in order of position and
    column, in a single graph that of its thresholds. ``fused`` are longer spans, which save a runtime the
    work at borders that a configuration does not use; ``check`` is what was compared when it was made, in
    plain JSON values.
    """

    kind: str
    signature: Signature
    frontier: Frontier
    costs: CostTable
    spans: tuple[SpanGraph, ...]
    exits: tuple[ExitGraph, ...]
    fused: tuple[SpanGraph, ...] = ()
    check: Mapping[str, Any] | None = None

    def resolve(self, config: ExitConfig) -> ResolvedConfig:
        """(position, column, threshold) of each choice; an ``InputError`` if one was not exported."""
        exists = np.zeros((len(self.signature.positions), len(self.signature.heads)), bool)
        for graph in self.exits:
            exists[graph.position, graph.head] = True
        return resolve(self.signature.positions, self.signature.heads, exists, config)


def every_config(frontier: Frontier) -> list[ExitConfig]:
    """Every configuration that ``frontier.at`` can return."""
    return [*frontier, *frontier.between, *frontier.by_tradeoff.values()]


def long_spans(export: Export) -> list[tuple[int, int]]:
    """(start, stop) of what configurations run between two of their exits, where it is more than one span."""
    last, short = len(export.signature.positions), {(span.start, span.stop) for span in export.spans}
    found = {(0, last)}
    for config in every_config(export.frontier):
        stops = [0, *(position for position, _, _ in export.resolve(config)), last]
        found |= {(start, stop) for start, stop in pairwise(stops) if stop > start}
    return sorted(found - short)


def write_export(folder: Path, export: Export, made_with: Mapping[str, str]) -> None:
    """Describe a folder and every other file in it."""
    thresholds = []  # of each exit; "inf" where it is off
    for config in export.frontier:
        chosen = {(position, head): float(value) for position, head, value in export.resolve(config)}
        row = [chosen.get((each.position, each.head), math.inf) for each in export.exits]
        thresholds.append([value if math.isfinite(value) else str(value) for value in row])
    signature = asdict(export.signature)
    named = zip(signature.pop("names"), signature["inputs"], strict=True)
    signature["inputs"] = [{"name": name, "graph_name": port.pop("name"), **port} for name, port in named]
    description = {
        "kind": export.kind,
        **signature,
        "spans": [*map(_graph_to_dict, export.spans)],
        "fused": [*map(_graph_to_dict, export.fused)],
        "exits": [*map(_graph_to_dict, export.exits)],
        "frontier": json.loads(export.frontier.to_json()),
        "costs": json.loads(export.costs.to_json()),
        "thresholds": thresholds,
        "check": export.check,
        "made_with": made_with,
    }
    EXPORT.write(folder, description)


def read_export(folder: Path, kind: str) -> Export:
    """Read and check a folder: ``ArtifactError`` if missing, damaged, of another kind or a newer version."""
    document = EXPORT.read(folder)
    if document.get("kind") != kind:
        raise ArtifactError(
            f"{folder}: expected an export of kind {kind!r}, got {document.get('kind')!r}; "
            f"write one with `offramp export --to {kind}`"
        )
    try:
        return _read(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{folder}: its manifest is damaged, {type(error).__name__}: {error}; export it again"
        ) from error


def _graph_to_dict(graph: Graph) -> dict[str, Any]:
    place = {key: getattr(graph, field) for key, field in _PLACES[type(graph)].items()}
    ports = {"inputs": [*map(asdict, graph.inputs)], "outputs": [*map(asdict, graph.outputs)]}
    return {"file": graph.file, **place, **ports}


def _read(document: Mapping[str, Any]) -> Export:
    spans, fused = ([_graph(SpanGraph, each) for each in document[name]] for name in ("spans", "fused"))
    stops = [0, *(span.stop for span in spans)]
    if [span.start for span in spans] != stops[:-1] or stops[-1] != len(document["positions"]):
        raise ValueError(f"its spans do not lead from position 0 to {len(document['positions'])}")
    inputs, classes = document["inputs"], document["classes"]
    signature = Signature(
        **{name: document[name] for name in ("task", "confidence", "keyword", "mask_input")},
        positions=tuple(document["positions"]),
        heads=tuple(document["heads"]),
        names=tuple(each["name"] for each in inputs),
        inputs=_ports(inputs, "graph_name"),
        answer=_ports([document["answer"]])[0],
        classes=None if classes is None else tuple(classes),
    )
    return Export(
        kind=document["kind"],
        signature=signature,
        frontier=Frontier.from_json(json.dumps(document["frontier"])),
        costs=CostTable.from_json(json.dumps(document["costs"])),
        spans=tuple(spans),
        exits=tuple(_graph(ExitGraph, each) for each in document["exits"]),
        fused=tuple(fused),
        check=document["check"],
    )


def _graph(kind: type[G], entry: Mapping[str, Any]) -> G:
    place = {field: entry[key] for key, field in _PLACES[kind].items()}
    inputs, outputs = _ports(entry["inputs"]), _ports(entry["outputs"])
    return kind(file=entry["file"], inputs=inputs, outputs=outputs, **place)


def _ports(items: Sequence[Mapping[str, Any]], called: str = "name") -> tuple[Port, ...]:
    return tuple(Port(each[called], tuple(each["shape"]), each["dtype"]) for each in items)
