"""Every reader of files, with a whole input, and inputs that a fault or an attacker may leave."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import offramp
import small
from mutations import mutated
from offramp.artifacts import load_records, read_manifest
from offramp.artifacts.artifact import read_stored
from offramp.errors import OfframpError
from offramp.storage.folder import MANIFEST, document_digest

Reader = Callable[[Path], str]
"""From the path of an input to a text that is another where an answer is."""


def written(folder: Path) -> dict[str, Path]:
    """Whole inputs, by kind."""
    net = small.network(heads=("linear",))
    costs, loader = offramp.measure_cost(net), small.loader(count=32)
    records = offramp.record_outputs(net, loader, progress=False)
    frontier = offramp.search(records, costs, progress=False, step=None)
    records.save(folder / "records")
    (folder / "frontier").write_text(frontier.to_json())
    (folder / "costs").write_text(costs.to_json())
    (folder / "config").write_text(frontier[0].to_json())
    offramp.save(folder / "artifact", net, frontier, costs, records={"search": records})
    offramp.save_tasks(folder / "tasks", {"one": net}, {"one": frontier}, {"one": costs})
    return {path.name: path for path in folder.iterdir()}


def _records(path: Path) -> str:
    found = offramp.ExitRecords.load(path)
    arrays = (found.confidence, found.quality, found.final_quality, found.exists)
    state = hashlib.sha256(repr((found.positions, found.heads, found.meta)).encode())
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def _artifact(path: Path) -> str:
    manifest = read_manifest(path)
    stored = read_stored(path, False)
    records = load_records(path, manifest, "search")
    tensors = {name: value.tolist() for name, value in sorted({**stored.heads, **stored.example}.items())}
    return repr((stored.frontier.to_json(), stored.costs.to_json(), tensors, records.confidence.tolist()))


def _loaded(path: Path) -> str:
    net, frontier, costs = offramp.load(path, small.model())
    return repr((net(small.inputs(count=3)).tolist(), frontier.to_json(), costs.to_json()))


def _tasks(path: Path) -> str:
    nets, frontiers, _ = offramp.load_tasks(path, small.model())
    return repr(
        {name: (net(small.inputs(count=3)).tolist(), frontiers[name].to_json()) for name, net in nets.items()}
    )


READERS: dict[str, tuple[str, Reader]] = {
    "records": ("records", _records),
    "frontier": (
        "frontier",
        lambda path: offramp.Frontier.from_json(path.read_text("utf-8", "replace")).to_json(),
    ),
    "costs": (
        "costs",
        lambda path: offramp.CostTable.from_json(path.read_text("utf-8", "replace")).to_json(),
    ),
    "config": (
        "config",
        lambda path: offramp.ExitConfig.from_json(path.read_text("utf-8", "replace")).to_json(),
    ),
    "artifact": ("artifact", _artifact),
    "artifact, attached": ("artifact", _loaded),
    "tasks": ("tasks", _tasks),
}
"""By name: the kind of input, and what reads it."""
CHECKSUMMED = ("records", "artifact", "artifact, attached", "tasks")


def spoiled(source: Path, target: Path, random: np.random.Generator) -> str:
    """A copy with bytes of one file flipped, cut, doubled or put in another place; says what was done."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        files = sorted(path for path in target.rglob("*") if path.is_file())
    else:
        shutil.copy(source, target)
        files = [target]
    path = files[random.integers(len(files))]
    content = bytearray(path.read_bytes())
    at, to = sorted(random.integers(len(content), size=2))
    kind = ("flip", "flip", "cut", "double", "move", "fill")[random.integers(6)]
    if kind == "flip":
        content[at] ^= 1 << int(random.integers(8))
    elif kind == "cut":
        del content[at:to]
    elif kind == "double":
        content[at:at] = content[at:to]
    elif kind == "move":
        content[at:to] = content[at:to][::-1]
    else:
        content[at : at + 8] = os.urandom(8)
    path.write_bytes(content)
    return f"{kind} {path.name} {at} {to}"


def resealed(source: Path, target: Path, random: np.random.Generator) -> str:
    """A copy of a folder, or of a document, with one value of JSON changed and all checksums right again."""
    if source.is_file():
        what, document = mutated(json.loads(source.read_text()), random)
        target.write_text(json.dumps(document))
        return what
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    name = (MANIFEST, MANIFEST, "frontier.json", "costs.json")[random.integers(4)]
    what, document = mutated(json.loads((target / name).read_text()), random)
    manifest = document if name == MANIFEST else json.loads((target / MANIFEST).read_text())
    if name != MANIFEST:
        content = json.dumps(document).encode()
        (target / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.pop("sha256", None)
    (target / MANIFEST).write_text(json.dumps({**manifest, "sha256": document_digest(manifest)}))
    return f"{name}: {what}"


def outcome(read: Reader, path: Path) -> str | None:
    """What a reader makes of an input; None where it is refused."""
    try:
        return read(path)
    except OfframpError:
        return None


def all_wholes(folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Whole inputs, and what each reader makes of its one."""
    inputs = written(folder)
    return inputs, {name: read(inputs[kind]) for name, (kind, read) in READERS.items()}
