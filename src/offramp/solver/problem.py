"""Records and costs prepared for search: sorted once, scaled once.

Letters: P positions, C heads at a position, N samples. A prefix of k means "the k most confident samples
leave".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from offramp.core import CostTable, ExitRecords, full_quality
from offramp.solver.effort import EFFORT
from offramp.solver.kernels import NEVER, Sorted

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

T = TypeVar("T")

FEW = 8
"""Up to so many values of quality the kernels work by value."""


@dataclass(frozen=True, eq=False)
class SortedPosition:
    """The C heads of one position, sorted; qualities and costs are over the full model's."""

    heads: tuple[int, ...]  # C indices into the records' heads; none where there is no head
    confidence: Singles  # (C, N), -inf where it is not finite
    order: Ints  # (C * N,) flat index into (C, N), most confident first within each head
    rank: npt.NDArray[np.int32]  # (C, N) place of each sample in that order
    # (C, N) in that order: 0 where a threshold fits right after the sample, NEVER elsewhere (inside a tie, or
    # from the first confidence that is not finite on); None where every entry is 0
    ends: Ints | None
    quality: Floats  # (C, N)
    backbone: float  # cost up to here
    cost: Floats  # (C,) of the heads

    def ordered(self, head: int) -> Ints:
        """(N,) the samples by one head, most confident first."""
        n = self.rank.shape[1]
        each: Ints = self.order[head * n : (head + 1) * n] - head * n
        return each

    def prefix_near(self, head: int, prefix: int) -> int:
        """The shortest prefix of at least this size at which a threshold fits; 0 if there is none."""
        if self.ends is None:
            return prefix
        fits = np.flatnonzero(self.ends[head, max(prefix - 1, 0) :] == 0)
        return max(prefix, 1) + int(fits[0]) if fits.size else 0

    def prefix_at(self, head: int, threshold: float) -> int:
        """How many samples are above a threshold."""
        return int(np.count_nonzero(self.confidence[head] > np.float32(threshold)))


@dataclass(frozen=True, eq=False)
class Problem:
    """Records and costs prepared for lines."""

    records: ExitRecords
    positions: tuple[SortedPosition, ...]  # P of them
    final: Floats  # (N,) the backbone's quality over its mean (or as it is where that mean is 0)
    full: float  # that mean after scaling: 1, or 0
    # gains are summed as integers in steps of 1 / unit: seven times faster than in floating point, and free
    # of rounding; the step is as fine as 64 bits allow (1e-14 at N = 5000)
    unit: float
    sorted: Sorted  # the same in one piece
    workers: int = 1  # threads to work with; the answers are the same for any number

    @classmethod
    def of(cls, records: ExitRecords, costs: CostTable, workers: int = 1) -> Problem:
        """Sort and scale; a full model of quality 0 leaves qualities as they are."""
        mean = full_quality(records)
        scale = mean if mean > 0 else 1.0
        final = records.final_quality.astype(np.float64) / scale
        packed, confidence = _sorted(records, costs, final, scale)
        positions = []
        for p, (start, stop) in enumerate(pairwise(packed.first.tolist())):
            order = packed.order[start:stop] % np.uint32(records.samples)
            heads = np.flatnonzero(records.exists[p])
            at = np.s_[start:stop]
            positions.append(
                SortedPosition(
                    heads=tuple(heads.tolist()),
                    confidence=confidence[at],
                    order=(order + np.int64(records.samples) * np.arange(len(heads))[:, None]).ravel(),
                    rank=packed.rank[at],
                    ends=None if packed.fits[at].all() else np.where(packed.fits[at], 0, NEVER),
                    quality=packed.quality[at],
                    backbone=float(packed.backbone[p]),
                    cost=packed.entry[at],
                )
            )
        return cls(
            records=records,
            positions=tuple(positions),
            final=final,
            full=mean / scale,
            unit=packed.unit,
            sorted=packed,
            workers=workers,
        )

    @property
    def used(self) -> list[tuple[int, SortedPosition]]:
        """Positions with heads, front to back."""
        return [(p, position) for p, position in enumerate(self.positions) if position.heads]

    @property
    def samples(self) -> int:
        """N."""
        return int(self.final.size)

    def canonical(self) -> Ints:
        """(N,) the samples by mean rank (equal confidences share theirs), most confident first.

        Of equal ones a hash of all that is known of them decides: the order is the same however the samples
        came. That of the heads matters only to samples that differ by heads in each other's place.
        """
        n = self.samples
        places = self.sorted.rank
        if self.sorted.fits.size:  # equal confidences share the place of the first
            starts = np.append(np.ones((len(places), 1), bool), self.sorted.fits[:, :-1], axis=1)
            first = np.maximum.accumulate(np.where(starts, np.arange(n), 0), axis=1)
            places = np.take_along_axis(first, places, axis=1)
        places = places.astype(np.int64)
        records = self.records
        at = np.nonzero(records.exists)[0][:, None] + 1  # 0 stands for the backbone's output
        each = hashed(hashed(n * at + places) + bits(records.quality[records.exists]))
        known = each.sum(axis=0) + hashed(bits(records.final_quality))
        by_head = hashed(each + np.arange(len(each), dtype=np.uint64)[:, None]).sum(axis=0)
        return np.lexsort((by_head, known, (places**2).sum(axis=0), places.sum(axis=0)))

    @property
    def widest(self) -> int:
        """The most heads at one position, at least 1."""
        return max(1, *(len(position.heads) for position in self.positions))

    @property
    def cells(self) -> int:
        """Numbers that one sweep over all lines touches: P * C * N, of the heads there are."""
        return self.samples * sum(len(position.heads) for position in self.positions)

    @property
    def batch(self) -> int:
        """How many rows to work on at once."""
        return max(1, EFFORT.cells // (self.widest * self.samples))

    def by_batch(self, rows: int, work: Callable[[slice], T]) -> list[T]:
        """Do ``work`` on slices of so many rows that are quick to work on together; results in order."""
        parts = [slice(start, start + self.batch) for start in range(0, rows, self.batch)]
        return in_parallel([partial(work, part) for part in parts], self.workers)


def in_parallel(tasks: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """What tasks return, in order; long loops of NumPy and of the kernels let other threads run."""
    if workers > 1 and len(tasks) > 1:
        with ThreadPoolExecutor(workers) as threads:
            return [future.result() for future in [threads.submit(task) for task in tasks]]
    return [task() for task in tasks]


def _sorted(records: ExitRecords, costs: CostTable, final: Floats, scale: float) -> tuple[Sorted, Singles]:
    """The heads of all positions in one piece, and their confidences (H, N), -inf where not finite."""
    confidence = records.confidence[records.exists]
    confidence = np.where(np.isfinite(confidence), confidence, np.float32(-np.inf))
    order = most_confident_first(confidence)
    heads, n = order.shape
    rank = np.empty((heads, n), np.int32)
    np.put_along_axis(rank, order, np.arange(n, dtype=np.int32)[None], axis=1)
    falling = np.take_along_axis(confidence, order, axis=1)
    fits = np.isfinite(falling)
    fits[:, :-1] &= falling[:, :-1] > falling[:, 1:]
    quality = records.quality[records.exists].astype(np.float64) / scale
    levels = np.unique(quality)
    if levels.size > FEW or levels.size * n >= 1 << 32:
        levels = levels[:0]
    else:
        order += n * np.searchsorted(levels, np.take_along_axis(quality, order, axis=1))
    entry = costs.heads[records.exists] / costs.full
    largest = max(final.max(), quality.max(initial=0))
    by_position = np.append(np.float64(0), np.where(records.exists, costs.heads, 0).max(axis=1, initial=0))
    bound = largest + 2 + float(by_position.sum()) / costs.full
    packed = Sorted(
        first=np.append(0, np.count_nonzero(records.exists, axis=1)).cumsum(),
        backbone=costs.backbone[:-1] / costs.full,
        entry=entry,
        order=order.astype(np.uint32),
        rank=rank,
        quality=quality,
        levels=levels,
        fits=fits[:, :0] if fits.all() else fits,
        final=final,
        unit=2.0 ** (60 - math.ceil(math.log2(final.size * bound))),  # no sum reaches 2 ** 61
    )
    return packed, confidence


def bits(values: Singles) -> Hashes:
    """The bits of float32 values; both zeros have the same."""
    return (values + np.float32(0)).view(np.uint32).astype(np.uint64)


def hashed(values: Ints | Hashes) -> Hashes:
    """A number of 64 bits for each whole number, far apart for near ones: the end of splitmix64."""
    mixed = values.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def most_confident_first(confidence: Singles) -> Ints:
    """(C, N) the order of each row by falling value: a radix sort, two passes of 16 bits.

    Six times faster than a comparison sort, and linear in N: the bits of a float32, the sign's meaning turned
    round, are in the order of its values.

    >>> most_confident_first(np.array([[0.5, -1.0, 2.0, 0.5]], np.float32)).tolist()
    [[2, 0, 3, 1]]
    """
    bits = np.negative(confidence).view(np.uint32)
    key = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    low, high = (key & np.uint32(0xFFFF)).astype(np.uint16), (key >> np.uint32(16)).astype(np.uint16)
    first = np.argsort(low, axis=1, kind="stable")
    second = np.argsort(np.take_along_axis(high, first, axis=1), axis=1, kind="stable")
    return np.take_along_axis(first, second, axis=1)
