"""How well a confidence ranks: arrays in, numbers out; no torch.

The area under the ROC curve of being right is what a threshold needs, not calibration (arXiv 2508.21495).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from offramp.core.records import ExitRecords

Floats = npt.NDArray[np.float64]


def auroc(confidence: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Probability that of two samples of different quality the more confident is the better; ties count half.

    Args:
        confidence: (N,); not finite counts as least confident.
        quality: (N,) in [0, 1]; fractions are weighed: a sample is good by ``quality``, bad by the rest.

    Returns:
        In [0, 1]; NaN where all samples are right, or none is.

    >>> auroc([0.9, 0.8, 0.3], [1, 0, 0])
    1.0
    """
    ranked = np.nan_to_num(np.asarray(confidence, np.float64), nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
    good = np.asarray(quality, np.float64)
    _, where = np.unique(ranked, return_inverse=True)
    right = np.bincount(where, good)
    wrong = np.bincount(where, 1 - good)
    pairs = right.sum() * wrong.sum() - (good * (1 - good)).sum()  # not a sample with itself
    if not pairs > 1e-9:
        return float("nan")
    below = np.cumsum(wrong) - wrong
    own = np.bincount(where, good * (1 - good))
    return float((right @ below + ((right * wrong) - own).sum() / 2) / pairs)


def rankings(records: ExitRecords) -> Floats:
    """``auroc`` of every exit, (P, C); NaN where there is no head, or all or no samples are right."""
    found = np.full(records.exists.shape, np.nan)
    for p, c in np.argwhere(records.exists):
        found[p, c] = auroc(records.confidence[p, c], records.quality[p, c])
    return found
