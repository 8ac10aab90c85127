"""What configurations are compared by: the objective of the search, and figures on a split. Arrays only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp import CostTable, ExitConfig, ExitRecords, Outcome, evaluate
from offramp.core.evaluate import full_quality
from offramp.guarantees.certify import answers_under


def objective(records: ExitRecords, costs: CostTable, config: ExitConfig, tradeoff: float) -> float:
    """J of a configuration: relative loss of quality and relative cost, weighed by the trade-off."""
    return objective_of(evaluate(records, costs, config), full_quality(records), tradeoff)


def objective_of(outcome: Outcome, full: float, tradeoff: float) -> float:
    """J of an outcome of ``evaluate``; ``full`` is the quality of the full model."""
    lost = (full - outcome.quality) / (full or 1.0)
    return float(tradeoff * lost + (1 - tradeoff) * outcome.relative_cost)


def only(records: ExitRecords, keep: Callable[[str, str], bool]) -> ExitRecords:
    """The same records with those exits alone for which ``keep(position, head)`` is true."""
    kept = [[keep(position, head) for head in records.heads] for position in records.positions]
    return replace(records, exists=records.exists & np.array(kept))


def figures(
    records: ExitRecords,
    costs: CostTable,
    config: ExitConfig,
    reference: npt.NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """Figures of a configuration on a split.

    Args:
        records: of the split.
        costs: of the same exits.
        config: to run.
        reference: (N,) quality of the model that the drop is counted from; the full model of the records by
            default.

    Returns:
        "accuracy", "drop" and half of its 95 % "interval", "macs" (cost as a share of the full model's),
        "exit_shares", "exits".
    """
    outcome = evaluate(records, costs, config)
    reference = records.final_quality if reference is None else reference
    lost = reference - answers_under(records, config).quality
    return {
        "accuracy": outcome.quality,
        "drop": float(lost.mean()),
        "interval": float(1.96 * lost.std(ddof=1) / np.sqrt(len(lost))),
        "macs": outcome.relative_cost,
        "exit_shares": outcome.exit_shares.round(4).tolist(),
        "exits": [f"{choice.position} {choice.head} > {choice.threshold:.4f}" for choice in config.choices],
    }
