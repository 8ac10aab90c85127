"""Evaluation: records + costs + a configuration -> quality, cost, shares. Arrays in, data out; no model.

A sample leaves at the first enabled position with confidence > threshold, else at the backbone's output. It
pays the backbone up to there plus every enabled head it passed, taken or not (DyCE, arXiv 2403.01695). Of
several tasks over one backbone, answered in one call, the segments are paid once, as deep as the task that
needs a sample deepest; each task's answers are those it would give alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from offramp.core.batch_costs import mean_cost
from offramp.core.certificate import Expected
from offramp.core.config import ExitConfig
from offramp.core.costs import CostTable, check_match
from offramp.core.display import html_table, percent
from offramp.core.fields import check_arguments, freeze
from offramp.core.frontier import Frontier
from offramp.core.records import ExitRecords
from offramp.errors import InputError

ResolvedConfig = list[tuple[int, int, np.float32]]
"""A configuration by indices: (position, head, threshold), positions rising."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a configuration does on a set of samples; means over N samples.

    Args:
        quality: mean quality in [0, 1].
        cost: mean cost per sample, in the cost table's unit; by a table with ``by_batch``, of samples that
            arrive in batches as large as it was measured for.
        relative_quality: quality over the full model's (NaN where the full model's is 0 and quality is not).
        relative_cost: cost over the full model's.
        exit_shares: (P+1,) fraction that leaves at each position; the last is the backbone's output.
        position: (N,) int64, the position each sample leaves at; P for the backbone's output.
    """

    quality: float
    cost: float
    relative_quality: float
    relative_cost: float
    exit_shares: npt.NDArray[np.float64]
    position: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        return (
            f"Outcome(quality {self.quality:.4f}, cost {self.relative_cost:.1%} of the full model's, "
            f"{self.position.size} samples, {1 - self.exit_shares[-1]:.1%} leave early)"
        )

    def _repr_html_(self) -> str:
        last = len(self.exit_shares) - 1
        left = {f"left at position {at}": share for at, share in enumerate(self.exit_shares[:-1]) if share}
        figures = {
            "quality": percent(self.quality),
            "quality / full model's": percent(self.relative_quality),
            "cost": f"{self.cost:.4g}",
            "cost / full model's": percent(self.relative_cost),
            **{label: percent(share) for label, share in left.items()},
            f"left at the output ({last})": percent(self.exit_shares[-1]),
        }
        return html_table(f"Outcome on {self.position.size:,} samples", ("figure", "mean"), figures.items())


@overload
def evaluate(records: ExitRecords, costs: CostTable, config: ExitConfig) -> Outcome: ...
@overload
def evaluate(records: ExitRecords, costs: CostTable, config: Frontier) -> tuple[Outcome, ...]: ...
def evaluate(
    records: ExitRecords, costs: CostTable, config: ExitConfig | Frontier
) -> Outcome | tuple[Outcome, ...]:
    """Simulate a configuration, or every configuration of a frontier, on records.

    Args:
        records: P positions, C heads, N samples; N at least 1.
        costs: of the same P and C.
        config: a configuration whose positions and heads the records know.

    Raises:
        InputError: no samples, costs of another shape, or a choice that ``resolve`` refuses.
    """
    if not isinstance(config, (ExitConfig, Frontier, ExitRecords, CostTable)):
        raise InputError(f"expected an ExitConfig or a Frontier, got a {type(config).__name__}")
    given = {"records": (records, ExitRecords), "costs": (costs, CostTable)}
    check_arguments("evaluate", {**given, "config": (config, (ExitConfig, Frontier))})
    check_match(records, costs)
    if isinstance(config, Frontier):
        return tuple(evaluate(records, costs, each) for each in config)
    ran = simulate(records, config)
    counts = np.bincount(ran.position, minlength=len(costs.backbone))
    if costs.by_batch is None:
        spent = costs.backbone + heads_passed(costs, ran.exits)
        cost = float(counts @ spent) / records.samples
    else:
        cost = mean_cost(costs.by_batch, [(at, head) for at, head, _ in ran.exits], ran.reached)
    quality, full = float(ran.quality.mean()), full_quality(records)
    relative = quality / full if full > 0 else (1.0 if quality == 0 else math.nan)
    return Outcome(
        quality=quality,
        cost=cost,
        relative_quality=relative,
        relative_cost=cost / costs.full,
        exit_shares=counts / records.samples,
        position=ran.position,
    )


@dataclass(frozen=True, eq=False)
class Simulation:
    """What happens to N samples: the position each leaves at (N,), P for the output, and its quality (N,).

    ``reached`` are the shares of the samples that reach each of the ``exits`` and, last, the output.
    """

    exits: ResolvedConfig
    position: npt.NDArray[np.int64]
    quality: npt.NDArray[np.float64]
    reached: tuple[float, ...]


def simulate(records: ExitRecords, config: ExitConfig) -> Simulation:
    """Send every sample through the enabled exits; InputError for a choice that ``resolve`` refuses."""
    exits = resolve(records.positions, records.heads, records.exists, config)
    n = records.samples
    position = np.full(n, len(records.positions), np.int64)
    quality = records.final_quality.astype(np.float64)
    waiting = np.arange(n)
    reached = []
    for at, head, threshold in exits:
        reached.append(len(waiting) / n)
        left = leaves(records.confidence[at, head, waiting], threshold)
        leavers = waiting[left]
        position[leavers] = at
        quality[leavers] = records.quality[at, head, leavers]
        waiting = waiting[~left]
    return Simulation(exits, position, quality, (*reached, len(waiting) / n))


def leaves(confidence: npt.NDArray[np.float32], threshold: np.float32) -> npt.NDArray[np.bool_]:
    """Which samples leave: finite confidence strictly above the threshold, compared in float32."""
    return np.asarray((confidence > threshold) & np.isfinite(confidence))


def heads_passed(costs: CostTable, exits: ResolvedConfig) -> npt.NDArray[np.float64]:
    """(P+1,) cost of all enabled heads that a sample has passed when it leaves at each position."""
    passed = np.zeros(len(costs.backbone))
    for at, head, _ in exits:
        passed[at:] += costs.heads[at, head]
    return passed


def full_quality(records: ExitRecords) -> float:
    """Mean quality of the full model, in double precision."""
    return float(records.final_quality.astype(np.float64).mean())


def expected(records: ExitRecords, costs: CostTable, config: ExitConfig) -> Expected:
    """The figures that a configuration carries with it, from these records."""
    outcome = evaluate(records, costs, config)
    return Expected(
        quality=outcome.quality,
        cost=outcome.cost,
        full_quality=full_quality(records),
        full_cost=costs.full,
        samples=records.samples,
    )


def resolve(
    positions: Sequence[str], heads: Sequence[str], exists: npt.NDArray[np.bool_], config: ExitConfig
) -> ResolvedConfig:
    """The choices of a configuration by indices, for P position names, C head names and ``exists`` (P, C).

    Raises:
        InputError: a position or head is unknown or absent there, or the order is not by position.
    """
    plan: ResolvedConfig = []
    for choice in config.choices:
        if choice.position not in positions:
            raise InputError(f"unknown position {choice.position!r}; known: {', '.join(positions)}")
        if choice.head not in heads:
            raise InputError(f"unknown head {choice.head!r}; known: {', '.join(heads)}")
        at, head = positions.index(choice.position), heads.index(choice.head)
        if not exists[at, head]:
            here = [name for name, there in zip(heads, exists[at], strict=True) if there]
            known = ", ".join(here) or "none"
            raise InputError(f"no head {choice.head!r} at {choice.position!r}; it has: {known}")
        if plan and at <= plan[-1][0]:
            raise InputError(f"choices must be in order of position; {choice.position!r} comes too late")
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            plan.append((at, head, np.float32(choice.threshold)))
    return plan


def check_tradeoffs(tradeoffs: Iterable[float], argument: str) -> list[float]:
    """Lambda values in [0, 1], at least one, in their order; an InputError calls them ``argument``."""
    try:
        lambdas = [float(value) for value in tradeoffs]
    except (TypeError, ValueError):
        raise InputError(
            f"{argument}: expected several numbers in [0, 1], got {tradeoffs!r}; "
            "give a list such as [0.8, 0.9]"
        ) from None
    wrong = [value for value in lambdas if not 0 <= value <= 1]  # NaN is neither
    if wrong or not lambdas:
        raise InputError(
            f"{argument}: expected at least one value, all in [0, 1], got {wrong or 'none'}; "
            "near 1 buys quality, near 0 buys speed"
        )
    return lambdas


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

    def __post_init__(self) -> None:
        freeze(self, tasks=MappingProxyType(dict(self.tasks)))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles, which cannot hold its read-only mapping."""
        parts = (dict(self.tasks), self.cost, self.separate_cost, self.relative_cost, self.position)
        return type(self), parts

    @property
    def share(self) -> float:
        """``cost`` over ``separate_cost``: what one call for all costs, of what one call for each does."""
        return self.cost / self.separate_cost if self.separate_cost else 1.0

    def __repr__(self) -> str:
        return (
            f"JointOutcome(tasks {', '.join(self.tasks)}, cost {self.relative_cost:.1%} of the full model's, "
            f"{self.share:.1%} of one call per task, {self.position.size} samples)"
        )


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
        tasks=outcomes,
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
