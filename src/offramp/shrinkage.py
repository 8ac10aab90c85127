"""Quality that carries over to unseen samples: a conditional expectation in place of single outcomes.

What one sample's answer was at one exit is mostly luck. How often an exit is right at a confidence is not: it
rises with confidence and is estimated from many samples. With f the full model's quality on a sample,

    quality of leaving = f x kept(confidence) + (1 - f) x won(confidence)

both fitted by isotonic regression (pool adjacent violators; Barlow et al., 1972). ``kept`` is given an
imagined failure above the surest sample, so that no exit is believed to be perfect (Laplace's rule of
succession). ``won``, what an exit gains where the full model fails, rests on few samples, and a search that
picks thresholds finds the lucky ones: it is believed three standard errors below its estimate.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from offramp.records import ExitRecords

Floats = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]

_MOST_CELLS = 1024  # of neighbouring confidences; finer cells than this change nothing but the time
_DOUBT = 3.0  # standard errors


def shrunk(records: ExitRecords) -> ExitRecords:
    """Records whose quality is what leaving can be expected to give.

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
            confidence, answer = records.confidence[p, c, finite], quality[p, c, finite]
            quality[p, c, finite] = _expected(confidence, answer, final[finite])
    return replace(records, quality=quality)


def _expected(confidence: npt.NDArray[np.float32], quality: npt.NDArray[np.float32], final: Floats) -> Floats:
    """Expected quality of leaving, (N,)."""
    cells = _cells(confidence)
    kept, _ = _rising(cells, np.minimum(quality, final), final)
    won, samples = _rising(cells, np.maximum(quality - final, 0), 1 - final)
    doubt = _DOUBT * np.sqrt(won * (1 - won) / (samples + 1))
    return np.asarray(final * kept + (1 - final) * np.maximum(won - doubt, 0))


def _rising(cells: Cells, mass: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """(fraction of ``weight`` that is ``mass``, weight it rests on) at each confidence, (N,) each."""
    # the imagined failure above the surest sample
    masses, weights = np.append(np.bincount(cells, mass), 0.0), np.append(np.bincount(cells, weight), 1.0)
    value, rests_on = isotonic(masses, weights)
    return value[cells], rests_on[cells]


def _cells(confidence: npt.NDArray[np.float32]) -> Cells:
    """Rank of each confidence, equal ones together, neighbours joined where there are very many: (N,)."""
    _, rank = np.unique(confidence, return_inverse=True)
    count = int(rank.max()) + 1
    if count <= _MOST_CELLS:
        return np.asarray(rank, np.int64)
    return np.asarray(rank, np.int64) * _MOST_CELLS // count


def isotonic(mass: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Rising weighted least-squares fit by pooling adjacent violators.

    Args:
        mass: (M,) weight times value of each cell.
        weight: (M,) at least 0; cells without weight take the value of the pool they fall in.

    Returns:
        (M,) fitted values, rising; (M,) weight of the pool that each cell is in.

    >>> [fit.tolist() for fit in isotonic(np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))]
    [[0.0, 0.5, 0.5, 1.0], [1.0, 2.0, 2.0, 1.0]]
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
    sizes = [size for *_, size in pools]
    return np.repeat(values, sizes), np.repeat([w for _, w, _ in pools], sizes)
