"""One threshold for all exits: what every such threshold gives, in one pass.

A sample passes an exit for all thresholds from the highest confidence it has shown up to there. At that value
its quality and cost change to the next exit's, whether it stays there or not: steps at one threshold add up.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from offramp.solver.problem import most_confident_first

Singles = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


def curve(confidence: Singles, quality: Floats, cost: Floats) -> tuple[Singles, Floats, Floats]:
    """Mean quality and cost under every common threshold.

    Args:
        confidence: (E, N) of E exits, front to back; what is not finite never leaves.
        quality: (E + 1, N), the backbone's own output last.
        cost: (E + 1,) of leaving at each exit, all heads up to there included, and of the backbone's output.

    Returns:
        The T + 1 values between which thresholds make a difference, rising, from -inf on; quality (T,) and
        cost (T,) of a threshold at each value but the last, which nobody passes.

    >>> values, quality, cost = curve(
    ...     np.array([[0.2, 0.8]], np.float32), np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 3.0])
    ... )
    >>> values.tolist()[1:], quality.tolist(), cost.tolist()
    ([0.20000000298023224, 0.800000011920929], [0.5, 1.0], [1.0, 2.0])
    """
    n = confidence.shape[1]
    highest = np.maximum.accumulate(np.where(np.isfinite(confidence), confidence, -np.inf), axis=0).ravel()
    order = most_confident_first(highest[None].astype(np.float32))[0, ::-1]
    rising = highest[order]
    last = np.append(rising[1:] > rising[:-1], True)  # steps at one threshold add up
    reached = (quality[0].sum() + np.diff(quality, axis=0).ravel()[order].cumsum()[last]) / n
    spent = cost[0] + np.repeat(np.diff(cost), n)[order].cumsum()[last] / n
    values = rising[last]
    if values[0] == -np.inf:
        return values.astype(np.float32), reached[:-1], spent[:-1]
    start = np.append(quality[0].sum() / n, reached), np.append(cost[0], spent)
    return np.append(np.float32(-np.inf), values).astype(np.float32), start[0][:-1], start[1][:-1]


def threshold_between(lower: np.float32, upper: np.float32) -> float:
    """A float32 threshold that ``upper`` passes and ``lower`` does not."""
    if not np.isfinite(lower):
        return -math.inf
    middle = np.float32((float(lower) + float(upper)) / 2)
    return float(middle if lower <= middle < upper else lower)
