"""Several tasks over one backbone, answered in one call: what it costs.

A sample runs as deep as the task that needs it deepest; segments are paid once, and every task pays the heads
that its own configuration passes. Each task's answers are those it would give alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from offramp.core.config import ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import Outcome, evaluate, heads_passed, resolve
from offramp.core.records import ExitRecords
from offramp.errors import InputError


@dataclass(frozen=True, eq=False)
class JointOutcome:
    """What one configuration per task does on N samples when one call answers all; means over samples.

    Args:
        tasks: what each task's configuration does, as if it ran alone.
        cost: of one call for all tasks, in the cost tables' unit.
        separate_cost: of one call per task, one after the other: the sum of the tasks' own costs.
        relative_cost: ``cost`` over the full model's, run once.
        position: (N,) int64, how deep each sample runs; P for the backbone's output.
    """

    tasks: Mapping[str, Outcome]
    cost: float
    separate_cost: float
    relative_cost: float
    position: npt.NDArray[np.int64]

    @property
    def share(self) -> float:
        """``cost`` over ``separate_cost``: what one call for all costs, of what one call for each does."""
        return self.cost / self.separate_cost if self.separate_cost else 1.0


def evaluate_together(
    records: Mapping[str, ExitRecords], costs: Mapping[str, CostTable], configs: Mapping[str, ExitConfig]
) -> JointOutcome:
    """Simulate one call that answers several tasks, on records.

    Args:
        records: by task, of the same N samples in the same order, from networks over one backbone.
        costs: by task.
        configs: by task; the tasks named here are answered.

    Raises:
        InputError: no task, one without records or costs, records of other samples or another backbone, or
            what ``evaluate`` refuses.
    """
    _check_tasks(records, costs, configs)
    outcomes = {name: evaluate(records[name], costs[name], config) for name, config in configs.items()}
    backbone = next(costs[name].backbone for name in configs)
    position = np.max([outcome.position for outcome in outcomes.values()], axis=0).astype(np.int64)
    cost = float(backbone[position].mean())
    for name, config in configs.items():
        known = records[name]
        exits = resolve(known.positions, known.heads, known.exists, config)
        cost += float(outcomes[name].exit_shares @ heads_passed(costs[name], exits))
    return JointOutcome(
        tasks=MappingProxyType(outcomes),
        cost=cost,
        separate_cost=sum(outcome.cost for outcome in outcomes.values()),
        relative_cost=cost / float(backbone[-1]),
        position=position,
    )


def _check_tasks(
    records: Mapping[str, ExitRecords], costs: Mapping[str, CostTable], configs: Mapping[str, ExitConfig]
) -> None:
    if not configs:
        raise InputError("evaluate_together: expected a configuration for at least one task, got none")
    for kind, given in (("records", records), ("costs", costs)):
        missing = [name for name in configs if name not in given]
        if missing:
            raise InputError(
                f"evaluate_together: task {missing[0]!r} has a configuration but no {kind}; "
                f"there are {kind} of {names_of(given)}"
            )
    first, *others = configs
    for name in others:
        one, other = costs[first], costs[name]
        same_costs = one.unit == other.unit and np.array_equal(one.backbone, other.backbone)
        if records[name].positions != records[first].positions or not same_costs:
            raise InputError(
                f"evaluate_together: {name!r} and {first!r} have other positions or backbone costs; "
                "attach both with attach_tasks"
            )
        if records[name].samples != records[first].samples:
            raise InputError(
                f"evaluate_together: expected records of the same samples, got {records[first].samples} of "
                f"{first!r} and {records[name].samples} of {name!r}"
            )


def names_of(tasks: Iterable[str]) -> str:
    """Tasks as an error lists them."""
    return ", ".join(map(repr, tasks)) or "none"
