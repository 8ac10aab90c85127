"""Save and load: a folder of weights, frontier, costs and records, refused whole if anything differs."""

from offramp.artifacts.artifact import load, replace_frontier, save
from offramp.artifacts.manifest import (
    check_replaceable,
    load_costs,
    load_frontier,
    load_records,
    load_summary,
    read_manifest,
)
from offramp.artifacts.multitask import load_tasks, save_tasks

__all__ = [
    "check_replaceable", "load", "load_costs", "load_frontier", "load_records", "load_summary", "load_tasks",
    "read_manifest", "replace_frontier", "save", "save_tasks",
]  # fmt: skip
