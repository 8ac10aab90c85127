"""Search: records and costs in, a frontier of configurations out. Arrays only: torch is never imported.

search -> solve: constructive starts -> local search (exact line search) -> pruning
       -> dial -> cross_fit: judged on samples held out
"""

from offramp.solver.common_threshold import curve, threshold_between
from offramp.solver.search import lower_bound, search

__all__ = [
    "curve", "lower_bound", "search", "threshold_between",
]  # fmt: skip
