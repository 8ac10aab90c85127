"""What others do, on the same records and costs: single rules and published searches; each a ``Frontier``."""

from offramp.baselines.published import brent_iterative, brent_single_pass, greedy_grid
from offramp.baselines.rules import entropy_thresholds, patience, same_threshold, single_exit

__all__ = [
    "brent_iterative", "brent_single_pass", "entropy_thresholds", "greedy_grid", "patience",
    "same_threshold", "single_exit",
]  # fmt: skip
