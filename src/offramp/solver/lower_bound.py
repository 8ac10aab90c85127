"""How far from the optimum a search can at most be: a lower bound on J.

The bound takes the best first exit and threshold with everything behind it as an oracle would have it: each
sample that goes on leaves wherever that is best for it, paying for no other head. With one position that is
the optimum itself; with many exits it is loose: among many guesses one is right.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from offramp.core import CostTable, ExitRecords, check_match, check_tradeoffs
from offramp.solver.candidates import CandidateSet, Objectives
from offramp.solver.line_search import best_line
from offramp.solver.problem import Problem


def lower_bound(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> dict[float, float]:
    """For each trade-off a value that J of no configuration is below.

    Args:
        records: P positions, C heads, N samples.
        costs: of the same P and C.
        tradeoffs: lambda values in [0, 1].

    Raises:
        InputError: records and costs do not match, or a trade-off is not in [0, 1].
    """
    check_match(records, costs)
    lambdas = check_tradeoffs(tradeoffs, "lower_bound(tradeoffs=...)")
    problem = Problem.of(records, costs)
    return {lam: _bound(problem, lam) for lam in lambdas}


def _bound(problem: Problem, tradeoff: float) -> float:
    objectives = Objectives(np.array([tradeoff]), np.zeros(1), len(problem.positions))
    rows = CandidateSet(problem).all_off(objectives)
    everyone = np.ones((1, problem.samples), bool)
    continue_cost = rows.finals()
    lowest = float(continue_cost.mean())
    for p, position in reversed(problem.used):
        line = best_line(rows, p, everyone, continue_cost)
        lowest = min(lowest, float(continue_cost.mean() - line.improvement[0]))
        leave = (1 - tradeoff) * (position.backbone + position.cost[:, None]) - tradeoff * position.quality
        continue_cost = np.minimum(continue_cost, leave.min(axis=0))
    return tradeoff * problem.full + lowest
