"""What a batch costs when it shrinks on the way: pure array work.

A call has a part that does not shrink with its batch, and a batch that no longer fits the caches costs more
per sample than two halves of it. Of B samples that arrive together Binomial(B, share still there) run a span;
it costs E[seconds(rows)] / B each, and nothing where nobody is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from offramp.core.fields import check_costs, freeze
from offramp.errors import InputError

Floats = npt.NDArray[np.float64]
_GAIN = 0.97  # a batch is run in parts only where that takes less than this share of the time


@dataclass(frozen=True, eq=False)
class BatchCosts:
    """Cost per call, by batch size.

    Args:
        sizes: (S,) rising, from 1; the last is the batch size B that calls start with.
        backbone: (S, P+1) cumulative cost of one call up to each position.
        heads: (S, P, C) cost of running an exit for a batch.

    Raises:
        InputError: shapes disagree, sizes do not rise from 1, or a value is negative or not finite.
    """

    sizes: npt.NDArray[np.int64]
    backbone: Floats
    heads: Floats

    def __post_init__(self) -> None:
        freeze(
            self,
            sizes=np.asarray(self.sizes, np.int64),
            backbone=np.asarray(self.backbone, np.float64),
            heads=np.asarray(self.heads, np.float64),
        )
        sizes, count = self.sizes, self.sizes.size
        if sizes.ndim != 1 or count == 0 or sizes[0] != 1 or (np.diff(sizes) < 1).any():
            raise InputError(f"BatchCosts.sizes: expected sizes that rise from 1, got {sizes.tolist()}")
        lengths = {len(self.backbone), len(self.heads)}
        if self.backbone.ndim != 2 or self.heads.ndim != 3 or lengths != {count}:
            raise InputError(
                f"BatchCosts: expected backbone ({count}, P+1) and heads ({count}, P, C), "
                f"got {self.backbone.shape} and {self.heads.shape}"
            )
        check_costs(self, "backbone", "heads")
        if (self.backbone[:, 0] != 0).any() or (np.diff(self.backbone, axis=1) < 0).any():
            raise InputError("BatchCosts.backbone: expected 0 first, then rising costs, in every row")

    def __repr__(self) -> str:
        _, p, c = self.heads.shape
        return f"BatchCosts({p} positions, {c} heads, {self.sizes.size} sizes of 1 to {self.batch_size})"

    @property
    def batch_size(self) -> int:
        """B, what calls start with."""
        return int(self.sizes[-1])

    def span(self, start: int, stop: int) -> Floats:
        """(B+1,) cost of the segments between two positions for 0 to B rows; 0 for none."""
        return self._by_rows(self.backbone[:, stop] - self.backbone[:, start])

    def head(self, position: int, column: int) -> Floats:
        """(B+1,) cost of running an exit for 0 to B rows."""
        return self._by_rows(self.heads[:, position, column])

    def _by_rows(self, values: Floats) -> Floats:
        found = np.interp(np.arange(self.batch_size + 1), self.sizes, values)
        found[0] = 0.0
        return found

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: getattr(self, name).tolist() for name in ("sizes", "backbone", "heads")}


def best_parts(costs: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """(B+1,) in how many equal parts to run each number of rows, and (B+1,) what that costs then.

    ``costs`` (B+1,) are those of one call with 0 to B rows.
    """
    rows, last = np.arange(len(costs)), len(costs) - 1
    fewest, lowest = np.ones(len(costs), np.int64), costs.copy()
    for start, stop in pairwise(_knots(costs)):
        # parts of sizes where costs lie on one line cost what is linear in their number: least at an end
        for number in (rows // stop + 1, rows // start):
            k = np.clip(number, 1, np.maximum(rows, 1))
            small, large = np.divmod(rows, k)
            split = large * costs[np.minimum(small + 1, last)] + (k - large) * costs[small]
            better = (split < lowest) | ((split == lowest) & (k < fewest))
            np.copyto(lowest, split, where=better)
            np.copyto(fewest, k, where=better)
    pays = lowest < _GAIN * costs
    return np.where(pays, fewest, 1), np.where(pays, lowest, costs)


def _knots(costs: Floats) -> list[int]:
    """Numbers of rows between which costs lie on straight lines, from 1 to B."""
    bend = np.abs(np.diff(costs[1:], 2))
    inner = np.flatnonzero(bend > 1e-12 * np.abs(costs).max(initial=0)) + 2
    return [1, *inner.tolist(), *([len(costs) - 1] if len(costs) > 2 else [])]


def part_sizes(rows: int, parts: int) -> list[int]:
    """Sizes of equal parts, the larger ones first.

    >>> part_sizes(7, 3)
    [3, 2, 2]
    """
    small, large = divmod(rows, parts)
    return [small + 1] * large + [small] * (parts - large)


def binomial(n: int, share: float) -> Floats:
    """(n+1,) probabilities of 0 to n successes in n trials."""
    if share <= 0 or share >= 1:
        found = np.zeros(n + 1)
        found[n if share >= 1 else 0] = 1.0
        return found
    k = np.arange(n + 1)
    found = np.exp(_log_choose(n) + k * math.log(share) + (n - k) * math.log1p(-share))
    return np.asarray(found / found.sum())


@lru_cache(maxsize=8)
def _log_choose(n: int) -> Floats:
    """(n+1,) logarithms of the binomial coefficients."""
    log = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    found = np.array(log)
    found.setflags(write=False)
    return found


def mean_cost(table: BatchCosts, exits: Sequence[tuple[int, int]], reached: Sequence[float]) -> float:
    """Expected cost of a call over its B samples; without exits it is the full model's.

    ``exits`` are (position, head) in order, ``reached`` the shares of the samples that reach each of them
    and, last, the model's output.
    """
    batch, last = table.batch_size, table.backbone.shape[1] - 1
    if not exits:
        return float(table.span(0, last)[batch]) / batch
    at, total = 0, 0.0
    for (position, column), share in zip(exits, reached, strict=False):
        rows = binomial(batch, share)
        span = _in_parts(table, at, position)
        total += float(rows @ (span + table.head(position, column)))
        at = position
    rows = binomial(batch, reached[-1])
    total += float(rows @ _in_parts(table, at, last))
    return total / batch


_SPANS: WeakKeyDictionary[BatchCosts, dict[tuple[int, int], Floats]] = WeakKeyDictionary()


def _in_parts(table: BatchCosts, start: int, stop: int) -> Floats:
    """(B+1,) cost of a span for 0 to B rows, in the best parts; found once for a table."""
    known = _SPANS.setdefault(table, {})
    if (start, stop) not in known:
        known[start, stop] = best_parts(table.span(start, stop))[1]
    return known[start, stop]
