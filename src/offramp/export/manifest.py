"""The folder of an exported network: its manifest, and what is checked before anything in it is used.

manifest.json      what the network takes and answers, its graphs, frontier and costs, SHA-256 of each file
span-0-3.onnx      from position 0 (the input) to position 3; the last span answers
exit-3-1.onnx      the head of column 1 at position 3

Nothing here needs PyTorch. A shape that begins with "batch" has one row per sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from offramp.core import CostTable, ExitConfig, Frontier
from offramp.errors import ArtifactError
from offramp.export.parts import (
    BATCH as BATCH,
    MASK as MASK,
    ExitGraph as ExitGraph,
    Export as Export,
    Graph as Graph,
    Port as Port,
    Signature as Signature,
    SpanGraph as SpanGraph,
)
from offramp.export.schema import check_parts, check_types
from offramp.storage import FolderFormat

EXPORT = FolderFormat(what="an exported network", name="offramp.export", version=1, made_by="offramp export")
WEIGHTS = "weights.bin"
"""What ONNX graphs of one folder share."""
_GRAPHS = (".onnx", ".pte")

check_replaceable = EXPORT.check_replaceable

G = TypeVar("G", bound="Graph")


_PLACES: dict[type[Graph], dict[str, str]] = {
    SpanGraph: {"from": "start", "to": "stop"},
    ExitGraph: {"position": "position", "head": "head"},
}
"""What the manifest calls the fields that say where a graph belongs."""


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
    signature, at_mask = asdict(export.signature), export.signature.mask_input
    named = zip(signature.pop("names"), signature["inputs"], strict=True)
    signature["inputs"] = [{"name": name, "graph_name": port.pop("name"), **port} for name, port in named]
    description = {
        "kind": export.kind,
        **signature,
        "mask": None if at_mask is None else export.signature.names[at_mask],
        "spans": [*map(_graph_to_dict, export.spans)],
        "fused": [*map(_graph_to_dict, export.fused)],
        "exits": [*map(_graph_to_dict, export.exits)],
        "frontier": json.loads(export.frontier.to_json()),
        "costs": json.loads(export.costs.to_json()),
        "thresholds": export.thresholds(),
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
        check_types(document)
        export = _read(document)
        check_parts(export, document)
    except (ArtifactError, ValueError) as error:  # an InputError is a ValueError
        raise ArtifactError(f"{folder}: its manifest is damaged, {error}; export it again") from error
    _check_links(folder, document["files"])
    return export


def stamp(folder: Path) -> object:
    """What is another where graphs or their weights are replaced: which files they are, and of when."""
    try:
        return [
            (entry.name, entry.stat().st_ino, entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in sorted(folder.iterdir())
            if entry.name == WEIGHTS or entry.suffix in _GRAPHS
        ]
    except (OSError, ValueError):  # nothing there: reading says so
        return None


def _check_links(folder: Path, files: Mapping[str, Any]) -> None:
    """Refuse what the runtime would read and no checksum covers."""
    if (folder / WEIGHTS).exists() and WEIGHTS not in files:
        raise ArtifactError(f"{folder}: {WEIGHTS} is not in its list of files; export it again")
    for name in files:
        path = folder / name
        if path.is_symlink() and path.resolve().parent != folder.resolve():
            raise ArtifactError(f"{path}: is a link out of the folder; put the file itself there")


def _graph_to_dict(graph: Graph) -> dict[str, Any]:
    place = {key: getattr(graph, field) for key, field in _PLACES[type(graph)].items()}
    ports = {"inputs": [*map(asdict, graph.inputs)], "outputs": [*map(asdict, graph.outputs)]}
    return {"file": graph.file, **place, **ports}


def _read(document: Mapping[str, Any]) -> Export:
    spans, fused = ([_graph(SpanGraph, each) for each in document[name]] for name in ("spans", "fused"))
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
