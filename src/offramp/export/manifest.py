"""The folder of an exported network: its manifest, and what is checked before anything in it is used.

manifest.json      what the network takes and answers, its graphs, frontier and costs, SHA-256 of each file
span-0-3.onnx      from position 0 (the input) to position 3; the last span answers
exit-3-1.onnx      the head of column 1 at position 3

Nothing here needs PyTorch. A shape that begins with "batch" has one row per sample.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.core import CostTable, ExitConfig, Frontier, resolve
from offramp.errors import ArtifactError, StorageError
from offramp.storage import canonical, dump_document, file_digest, parse_document, read_text, storage_errors

EXPORT_FORMAT = "offramp.export"
VERSION = 1
MANIFEST = "manifest.json"
KINDS = ("onnx", "onnx-single", "executorch")
BATCH = "batch"
MASK = "mask"


@dataclass(frozen=True)
class Port:
    """A tensor that enters or leaves a graph.

    Args:
        name: in the graph.
        shape: (B, ...) with "batch" for B; plain numbers where there is not one row per sample.
        dtype: by NumPy's name.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def per_sample(self) -> bool:
        """Whether it has one row per sample."""
        return self.shape[:1] == (BATCH,)


@dataclass(frozen=True)
class SpanGraph:
    """The operations between two positions.

    Args:
        file: in the folder.
        start: position it begins at.
        stop: position it ends at; P for the model's output, where it returns outputs and confidence.
        inputs: what was handed over at ``start``, and the mask last where its name is "mask".
        outputs: what is handed over at ``stop``.
    """

    file: str
    start: int
    stop: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class ExitGraph:
    """A head with its confidence.

    Args:
        file: in the folder.
        position: where it sits.
        head: its column.
        inputs: the first of what is handed over there, and the mask last where its name is "mask".
        outputs: outputs and confidence.
    """

    file: str
    position: int
    head: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Signature:
    """What an exported network is.

    Args:
        positions: P names, "input" first.
        heads: C names.
        task: by name.
        confidence: by name.
        names: of the model's inputs.
        inputs: the same as tensors of the graphs.
        keyword: whether the model is called with a dict.
        mask: index of the input that is 0 at padding, or None.
        answer: one sample's outputs as a tensor of the graphs.
        classes: names of the K outputs, if known.
    """

    positions: tuple[str, ...]
    heads: tuple[str, ...]
    task: str
    confidence: str
    names: tuple[str, ...]
    inputs: tuple[Port, ...]
    keyword: bool
    mask: int | None
    answer: Port
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Export:
    """An exported network, read and checked.

    Args:
        kind: "onnx", "onnx-single" or "executorch".
        signature: what it takes and answers.
        frontier: its configurations.
        costs: its costs.
        spans: in order; they chain from position 0 to P. A single graph is one.
        exits: in order of position and column; of a single graph, the order of its thresholds.
        fused: longer spans, which save a runtime the work at the borders that a configuration does not use.
        check: what was compared when it was made; plain JSON values.
    """

    kind: str
    signature: Signature
    frontier: Frontier
    costs: CostTable
    spans: tuple[SpanGraph, ...]
    exits: tuple[ExitGraph, ...]
    fused: tuple[SpanGraph, ...] = ()
    check: Mapping[str, Any] | None = None

    @property
    def exists(self) -> npt.NDArray[np.bool_]:
        """(P, C), whether an exit was exported."""
        there = np.zeros((len(self.signature.positions), len(self.signature.heads)), bool)
        for exit_ in self.exits:
            there[exit_.position, exit_.head] = True
        return there

    def resolve(self, config: ExitConfig) -> list[tuple[int, int, np.float32]]:
        """(position, column, threshold) of each choice.

        Raises:
            InputError: a choice names an exit that was not exported.
        """
        return resolve(self.signature.positions, self.signature.heads, self.exists, config)


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


def thresholds_of(export: Export) -> list[list[float | str]]:
    """For each configuration of the frontier, the threshold of each exit; "inf" where it is off."""
    table = []
    for config in export.frontier:
        chosen = {(position, head): threshold for position, head, threshold in export.resolve(config)}
        row = [float(chosen.get((each.position, each.head), np.inf)) for each in export.exits]
        table.append([value if math.isfinite(value) else str(value) for value in row])
    return table


def write_export(folder: Path, export: Export, made_with: Mapping[str, str]) -> None:
    """Describe a folder and every other file in it."""
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST)
    document: dict[str, Any] = {
        "format": EXPORT_FORMAT,
        "version": VERSION,
        "kind": export.kind,
        **_signature_to_dict(export.signature),
        "spans": [*map(_span_to_dict, export.spans)],
        "fused": [*map(_span_to_dict, export.fused)],
        "exits": [
            {"file": e.file, "position": e.position, "head": e.head, **_ports_to_dict(e.inputs, e.outputs)}
            for e in export.exits
        ],
        "frontier": json.loads(export.frontier.to_json()),
        "costs": json.loads(export.costs.to_json()),
        "thresholds": thresholds_of(export),
        "check": None if export.check is None else dict(export.check),
        "made_with": dict(made_with),
        "files": {f.name: {"bytes": f.stat().st_size, "sha256": file_digest(f)} for f in files},
    }
    document["sha256"] = _digest(document)
    (folder / MANIFEST).write_text(dump_document(document), encoding="utf-8")


def read_export(path: str | Path, kind: str) -> Export:
    """Read and check a folder.

    Raises:
        ArtifactError: missing, damaged, of another kind or of a newer version.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"expected an exported network at {folder}, found no {MANIFEST}; check the path, or write one "
            "with `offramp export`"
        )
    try:
        document = parse_document(read_text(folder / MANIFEST), EXPORT_FORMAT, VERSION)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / MANIFEST}: {error}") from error
    claimed = document.pop("sha256", None)
    if _digest(document) != claimed:
        raise ArtifactError(
            f"{folder / MANIFEST}: does not match its checksum; it was changed, copy the folder again"
        )
    if document.get("kind") != kind:
        raise ArtifactError(
            f"{folder}: expected an export of kind {kind!r}, got {document.get('kind')!r}; "
            f"write one with `offramp export --to {kind}`"
        )
    try:
        for name, entry in document["files"].items():
            _check_file(folder, name, entry)
        return _read(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST}: damaged, {type(error).__name__}: {error}; export it again"
        ) from error


def check_replaceable(path: Path) -> None:
    """Find out whether an export may take a path; worth asking before long work.

    Raises:
        StorageError: something else than an export is there.
    """
    with storage_errors(path):
        if not path.exists():
            return
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    if names is None or (names and not _ours(path, names)):
        raise StorageError(f"{path} exists and is not an export alone; choose another folder or remove it")


def _ours(folder: Path, names: set[str]) -> bool:
    try:
        document = parse_document(read_text(folder / MANIFEST), EXPORT_FORMAT, VERSION)
        return names <= {MANIFEST, *document["files"]}
    except (ArtifactError, KeyError, TypeError):
        return False


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(f"{folder}: {name!r} is missing; copy the whole folder again")
    wanted, got = entry["bytes"], path.stat().st_size
    if wanted != got:
        raise ArtifactError(f"{path}: expected {wanted} bytes, got {got}; it is not whole, copy it again")
    if file_digest(path) != entry["sha256"]:
        raise ArtifactError(f"{path}: does not match its checksum; it was changed or damaged, copy it again")


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def _signature_to_dict(signature: Signature) -> dict[str, Any]:
    inputs = [
        {"name": name, **_port_to_dict(port, "graph_name")}
        for name, port in zip(signature.names, signature.inputs, strict=True)
    ]
    return {
        "positions": list(signature.positions),
        "heads": list(signature.heads),
        "task": signature.task,
        "confidence": signature.confidence,
        "inputs": inputs,
        "keyword": signature.keyword,
        "mask_input": signature.mask,
        "answer": _port_to_dict(signature.answer),
        "classes": None if signature.classes is None else list(signature.classes),
    }


def _span_to_dict(span: SpanGraph) -> dict[str, Any]:
    ports = _ports_to_dict(span.inputs, span.outputs)
    return {"file": span.file, "from": span.start, "to": span.stop, **ports}


def _port_to_dict(port: Port, called: str = "name") -> dict[str, Any]:
    return {called: port.name, "shape": list(port.shape), "dtype": port.dtype}


def _ports_to_dict(inputs: Iterable[Port], outputs: Iterable[Port]) -> dict[str, Any]:
    return {"inputs": [*map(_port_to_dict, inputs)], "outputs": [*map(_port_to_dict, outputs)]}


def _read(document: Mapping[str, Any]) -> Export:
    spans, fused = (
        tuple(
            SpanGraph(s["file"], s["from"], s["to"], _ports(s["inputs"]), _ports(s["outputs"]))
            for s in document[key]
        )
        for key in ("spans", "fused")
    )
    exits = tuple(
        ExitGraph(e["file"], e["position"], e["head"], _ports(e["inputs"]), _ports(e["outputs"]))
        for e in document["exits"]
    )
    inputs, classes = document["inputs"], document["classes"]
    signature = Signature(
        positions=tuple(document["positions"]),
        heads=tuple(document["heads"]),
        task=document["task"],
        confidence=document["confidence"],
        names=tuple(each["name"] for each in inputs),
        inputs=_ports(inputs, "graph_name"),
        keyword=document["keyword"],
        mask=document["mask_input"],
        answer=_ports([document["answer"]])[0],
        classes=None if classes is None else tuple(classes),
    )
    stops = [0, *(span.stop for span in spans)]
    if [span.start for span in spans] != stops[:-1] or stops[-1] != len(signature.positions):
        raise ValueError(f"its spans do not lead from position 0 to {len(signature.positions)}")
    frontier = Frontier.from_json(json.dumps(document["frontier"]))
    costs = CostTable.from_json(json.dumps(document["costs"]))
    return Export(document["kind"], signature, frontier, costs, spans, exits, fused, document["check"])


def _ports(items: Sequence[Mapping[str, Any]], called: str = "name") -> tuple[Port, ...]:
    return tuple(Port(each[called], tuple(each["shape"]), each["dtype"]) for each in items)
