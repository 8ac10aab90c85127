"""Quality that carries over to unseen samples: a conditional expectation in place of single outcomes.

What one sample's answer was at one exit is mostly luck. What is kept of the full model's quality, as a
function of the exit's confidence, is not: it rises with confidence and is estimated from many samples. So

    quality of leaving = the full model's quality x kept(confidence),    kept rising, at most 1

with ``kept`` fitted by isotonic regression (pool adjacent violators; Barlow et al., 1972) and one imagined
failure above the surest sample, so that no exit is believed to be perfect (Laplace's rule of succession). An
exit gets no credit for being right where the full model is wrong: such gains are few, and a search that picks
thresholds finds the lucky ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from offramp.records import ExitRecords

Floats = npt.NDArray[np.float64]

_MOST_CELLS = 1024  # of neighbouring confidences; finer cells than this change nothing but the time


def shrunk(records: ExitRecords) -> ExitRecords:
    """Records whose quality is what leaving is expected to keep of the full model's.

    Args:
        records: P positions, C heads, N samples.

    Returns:
        The same records with ``quality`` (P, C, N) replaced; samples whose confidence is not finite keep
        theirs, they never leave.
    """
    quality = records.quality.copy()
    final = records.final_quality.astype(np.float64)
    for p, c in zip(*np.nonzero(records.exists), strict=True):
        finite = np.isfinite(records.confidence[p, c])
        if finite.any():
            kept = _kept(records.confidence[p, c, finite], quality[p, c, finite], final[finite])
            quality[p, c, finite] = final[finite] * kept
    return replace(records, quality=quality)


def _kept(confidence: npt.NDArray[np.float32], quality: npt.NDArray[np.float32], final: Floats) -> Floats:
    """Fraction of the full model's quality that is kept at each sample's confidence, (N,)."""
    cells = _cells(confidence)
    weight = np.bincount(cells, final)
    mass = np.bincount(cells, np.minimum(quality, final))
    # the imagined failure above the surest sample
    fitted = isotonic(np.append(mass, 0.0), np.append(weight, 1.0))
    return fitted[cells]


def _cells(confidence: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Rank of each confidence, equal ones together, neighbours joined where there are very many: (N,)."""
    _, rank = np.unique(confidence, return_inverse=True)
    count = int(rank.max()) + 1
    if count <= _MOST_CELLS:
        return np.asarray(rank, np.int64)
    return np.asarray(rank, np.int64) * _MOST_CELLS // count


def isotonic(mass: Floats, weight: Floats) -> Floats:
    """Rising weighted least-squares fit by pooling adjacent violators.

    Args:
        mass: (M,) weight times value of each cell.
        weight: (M,) at least 0; cells without weight take the value of the pool they fall in.

    Returns:
        (M,) fitted values, rising.

    >>> isotonic(np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4)).tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    pools: list[tuple[float, float, int]] = []  # mass, weight, cells
    for m, w in zip(mass.tolist(), weight.tolist(), strict=True):
        size = 1
        # compared by products: a pool may have no weight
        while pools and pools[-1][0] * w >= m * pools[-1][1]:
            before_mass, before_weight, before_size = pools.pop()
            m, w, size = m + before_mass, w + before_weight, size + before_size
        pools.append((m, w, size))
    values = [m / w if w > 0 else 0.0 for m, w, _ in pools]
    return np.repeat(values, [size for *_, size in pools])
