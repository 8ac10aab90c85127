"""The data that crosses borders between packages, and evaluation on it. Arrays only: torch is never imported.

ExitRecords + CostTable -> evaluate(ExitConfig) -> Outcome      Frontier: configurations, cheapest first
"""

from offramp.core import plots
from offramp.core.batch_costs import BatchCosts, best_parts, part_sizes
from offramp.core.certificate import Certificate, Expected, Guarantee
from offramp.core.config import ExitChoice, ExitConfig, config_to_dict
from offramp.core.costs import CostTable, check_match, single_exits
from offramp.core.display import (
    UNKNOWN,
    counted,
    data_frame,
    escaped,
    evenly,
    html_table,
    percent,
    points,
    points_interval,
    printable,
    short,
)
from offramp.core.evaluate import (
    JointOutcome,
    Outcome,
    ResolvedConfig,
    check_tradeoffs,
    evaluate,
    evaluate_together,
    expected,
    full_quality,
    leaves,
    names_of,
    resolve,
    simulate,
)
from offramp.core.fields import check_arguments, check_words, freeze, is_count, is_number
from offramp.core.frontier import Frontier, dial_curves, figures_come_from
from offramp.core.plan_cache import PlanCache
from offramp.core.ranking import auroc, rankings
from offramp.core.records import ExitRecords
from offramp.core.stats import EngineStats, RunStats, exact_cost

__all__ = [
    "UNKNOWN", "BatchCosts", "Certificate", "CostTable", "EngineStats", "ExitChoice", "ExitConfig",
    "ExitRecords", "Expected", "Frontier", "Guarantee", "JointOutcome", "Outcome", "PlanCache",
    "ResolvedConfig", "RunStats", "auroc", "best_parts", "check_arguments", "check_match", "check_tradeoffs",
    "check_words", "config_to_dict", "counted", "data_frame", "dial_curves", "escaped", "evaluate",
    "evaluate_together", "evenly",
    "exact_cost", "expected", "figures_come_from", "freeze", "full_quality", "html_table", "is_count",
    "is_number", "leaves", "names_of", "part_sizes", "percent", "plots", "points", "points_interval",
    "printable", "rankings", "resolve", "short", "simulate", "single_exits",
]  # fmt: skip
