"""From a network with exits to an artifact that keeps its records, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import offramp
from offramp.artifacts.manifest import load_records, read_manifest


def make(
    folder: Path,
    net: offramp.ExitNetwork,
    train: Any,
    parts: Mapping[str, Any],
    config: offramp.TrainConfig,
    *,
    work: Path | None = None,
    **options: Any,
) -> dict[str, offramp.ExitRecords]:
    """Train the heads, record every split, search on "search" by MACs, save.

    Args:
        folder: of the artifact.
        net: with heads that are not trained.
        train: batches that the heads are trained on.
        parts: batches of each split; "search" is one of them.
        config: of the training.
        work: folder from which a run that was stopped continues.
        options: of ``search``.
    """
    offramp.train_exits(net, train, config=config, work_dir=work)
    records = {name: offramp.record_outputs(net, part, work_dir=work) for name, part in parts.items()}
    costs = offramp.measure_cost(net)
    frontier = offramp.search(records["search"], costs, **options)
    offramp.save(folder, net, frontier, costs, records=records)
    return records


def load(
    folder: Path, model: nn.Module
) -> tuple[offramp.ExitNetwork, offramp.Frontier, offramp.CostTable, dict[str, offramp.ExitRecords]]:
    """Read what ``make`` saved for this backbone: network, frontier, costs, records of "search" and "report".

    Raises:
        ArtifactError: there is none, or it is of another model.
    """
    parts, manifest = offramp.load(folder, model), read_manifest(folder)
    return *parts, {name: load_records(folder, manifest, name) for name in ("search", "report")}
