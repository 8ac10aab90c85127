"""Search: records and costs in, a frontier of configurations out. Arrays only: torch is never imported.

search -> solve: constructive starts -> local search (exact line search) -> pruning -> price -> fill
"""

from offramp.solver.common_threshold import curve, threshold_between
from offramp.solver.lower_bound import lower_bound
from offramp.solver.search import search

__all__ = [
    "curve", "lower_bound", "search", "threshold_between",
]  # fmt: skip
