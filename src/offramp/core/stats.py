"""What every engine counts: samples, where they left, what was spent, what the full model would have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from offramp.core.fields import freeze

Exits = TypeVar("Exits")


@dataclass(frozen=True, kw_only=True)
class RunStats(Generic[Exits]):
    """What an engine has done since it was made or reset.

    Costs are in the unit of the engine's cost table, multiply-accumulates unless it was given another one;
    whole numbers are of type int.

    Args:
        samples: answered.
        exits: samples that left at each position; P + 1 counts, the last is the model's output.
        macs: cost of what was executed, heads included.
        full_macs: what the full model would have cost on the same samples.
    """

    samples: int
    exits: Exits
    macs: float
    full_macs: float

    def __post_init__(self) -> None:
        freeze(self, macs=exact_cost(self.macs), full_macs=exact_cost(self.full_macs))

    @property
    def share(self) -> float:
        """Cost of what was executed as a fraction of the full model's; NaN before the first sample."""
        return self.macs / self.full_macs if self.full_macs else math.nan


EngineStats = RunStats[tuple[int, ...]]
"""What an engine for one task has done; ``exits`` by position."""


def exact_cost(cost: float) -> float:
    """A cost as an int where it is a whole number, so that sums of such costs are exact.

    >>> exact_cost(3.0), exact_cost(0.25)
    (3, 0.25)
    """
    return int(cost) if float(cost).is_integer() else float(cost)
