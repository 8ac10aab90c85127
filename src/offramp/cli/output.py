"""What the commands share: opening artifacts, picking a configuration, printing tables and JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from offramp.errors import InputError, StorageError

if TYPE_CHECKING:
    from offramp.core import CostTable, ExitConfig, ExitRecords, Frontier
    from offramp.network import ExitNetwork
    from offramp.sources import DataSummary, SourceModel

_LONGEST_NAME = 255  # bytes, on the file systems in use
_BESIDE = len("..01234567.tmp")  # what the name of a folder gets while it is written


def open_artifact(
    artifact: Path, model: str, input_exit: list[str] | None, device: str | None
) -> tuple[SourceModel, ExitNetwork, Frontier, CostTable]:
    """A model by name, and the artifact's network on it with its frontier and costs."""
    from offramp.artifacts import load
    from offramp.sources import load_input_exits, load_source_model

    source = load_source_model(model, device)
    exits = load_input_exits(input_exit or (), source, device)
    modules = {name: each for name, each in exits.items() if not isinstance(each, str)}
    return source, *load(artifact, source.model, input_exits=modules)


def pick(
    frontier: Frontier,
    max_cost: float | None,
    max_drop: float | None,
    min_quality: float | None,
    tradeoff: float | None,
) -> ExitConfig | None:
    """The configuration that the given option picks; None where none is given."""
    if max_cost is None and max_drop is None and min_quality is None and tradeoff is None:
        return None
    return frontier.at(max_cost=max_cost, max_drop=max_drop, min_quality=min_quality, tradeoff=tradeoff)


def say(message: str) -> None:
    """A message on standard error; characters that would steer the terminal are replaced."""
    from offramp.core import printable

    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr)


def show_found(summary: DataSummary | None, net: ExitNetwork) -> None:
    """Print what was found in model and data, and where exits can sit."""
    from offramp.core import counted, printable

    for name, fact in (summary.facts() if summary else {}).items():
        print(f"{name + ':':10}{fact}")
    names = ", ".join(map(printable, net.positions[1:]))
    print(f"positions: {counted(len(net.positions) - 1, 'position')} after {names}", flush=True)


def show_artifact(folder: Path, frontier: Frontier, as_json: bool) -> None:
    """Print what configurations do on the artifact's report records, or its search records without any."""
    from offramp.artifacts import load_costs, load_records, read_manifest
    from offramp.report import frontier_rows

    manifest = read_manifest(folder)
    name = "report" if "records-report.safetensors" in manifest["files"] else "search"
    records, costs = load_records(folder, manifest, name), load_costs(folder, manifest)
    if as_json:
        rows = frontier_rows(frontier, records, costs)
        print_json({"split": name, "samples": records.samples, "configurations": rows})
    else:
        show_measured(frontier, records, costs, name)


def show_measured(frontier: Frontier, records: ExitRecords, costs: CostTable, split: str) -> None:
    """Print a table of what configurations do on a split."""
    from offramp.core import counted
    from offramp.report import LEGEND, doubt_about, frontier_rows, frontier_table

    console, doubt = Console(highlight=False), doubt_about(records)
    console.print(
        f"{counted(len(frontier), 'configuration')}, figures on the {split} split "
        f"({counted(records.samples, 'sample')})"
    )
    if split == "search":
        console.print(
            "[yellow]these samples were searched on: expect less on new ones; give a report split[/]"
        )
    console.print(frontier_table(frontier_rows(frontier, records, costs), records, costs.unit))
    console.print(LEGEND)
    if doubt is not None:
        console.print(str(doubt), markup=False, soft_wrap=True)


def calibration_records(artifact: Path, split: str | None, file: Path | None) -> tuple[ExitRecords, str]:
    """Records to certify on, and what to call them.

    An ``InputError`` if both are given, if the split was trained or searched on, or if the file is of another
    network; an ``ArtifactError`` if there are no such records, or they are damaged.
    """
    from offramp.artifacts import load_records, read_manifest
    from offramp.core import ExitRecords

    if split is not None and file is not None:
        raise InputError("expected --split or --records, got both; choose one")
    manifest = read_manifest(artifact)
    if file is None:
        split = split or "report"
        if split in ("train", "search"):
            raise InputError(
                f"--split {split}: exits or configurations were chosen on these samples, so they cannot "
                "certify any; use report, or --records with a file of new ones"
            )
        return load_records(artifact, manifest, split), f"{split} split"
    records, described = ExitRecords.load(file), manifest["network"]
    if (records.positions[1:], records.heads) != (tuple(described["cuts"]), tuple(described["heads"])):
        raise InputError(
            f"{file}: these records are of another network; record this artifact's network on new samples"
        )
    return records, str(file)


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def price_of(text: str) -> str | float | None:
    """The value of ``--regularise``; an ``InputError`` if it is neither a word it knows nor a number."""
    try:
        return {"auto": "auto", "none": None}[text] if text in ("auto", "none") else float(text)
    except ValueError:
        raise InputError(f"--regularise: expected 'auto', 'none' or a number, got {text!r}") from None


def _check_length(name: str, more: int) -> None:
    if len(os.fsencode(name)) + more > _LONGEST_NAME:
        raise StorageError(
            f"cannot write {name[:40]}...: its name is too long, expected at most "
            f"{_LONGEST_NAME - more} bytes, got {len(os.fsencode(name))}; choose a shorter one"
        )


def check_writable(folder: Path) -> None:
    """Refuse, before the work and with a ``StorageError``, a folder that cannot be made or written."""
    from offramp.storage import storage_errors

    nearest = folder.absolute()
    _check_length(nearest.name, _BESIDE)
    for part in nearest.parts[:-1]:
        _check_length(part, 0)
    with storage_errors(folder):
        while not nearest.exists():
            nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise StorageError(
            f"cannot write {folder}: {nearest} is not a folder you may write to; choose another"
        )


def print_json(document: Any) -> None:
    """One document on standard output."""
    print(json.dumps(document, indent=1, allow_nan=False))
