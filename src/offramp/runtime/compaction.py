"""Taking out the samples that leave: in place where that is safe, and batches run in parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.core import part_sizes
from offramp.runtime.backend import Activations, SpanFn

RowIndices = npt.NDArray[np.int64]

LeftGroup = tuple[int, RowIndices | None, Tensor, Tensor]
"""Who left at one exit: position, rows of the batch (None: all, in order), outputs, confidences."""


def leaves(confidence: float, threshold: float) -> bool:
    """Whether a sample leaves: finite confidence strictly above the threshold."""
    return threshold < confidence < math.inf


def leaving(confidence: Tensor, threshold: float | npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(B,) who leaves, as ``leaves`` says; one threshold, or (B,). One transfer off the device."""
    values = confidence.cpu().numpy()
    found: npt.NDArray[np.bool_] = (values > threshold) & (values < math.inf)
    return found


def as_index(rows: RowIndices, device: torch.device) -> Tensor:
    """Row numbers as a tensor on a device."""
    return torch.from_numpy(rows).to(device)


def take_leaving(
    leavers: npt.NDArray[np.bool_], outputs: Tensor, confidence: Tensor
) -> tuple[RowIndices, Tensor, Tensor]:
    """Which rows leave, their outputs and their confidences."""
    rows = np.flatnonzero(leavers)
    index = as_index(rows, outputs.device)
    return rows, outputs.index_select(0, index), confidence.index_select(0, index)


def keep(values: Sequence[Any], stay: Tensor, per_sample: Sequence[bool]) -> Activations:
    """The rows that stay, of every value that has one row per sample."""
    pairs = zip(values, per_sample, strict=True)
    return tuple(value.index_select(0, stay) if each else value for value, each in pairs)


def close_gaps(
    activations: Activations, leavers: npt.NDArray[np.bool_], owned: bool, per_sample: Sequence[bool]
) -> tuple[Activations, RowIndices]:
    """Take out ``leavers`` (B,): at least one, not all; returns activations, and which row each row was.

    A feature that is ``owned`` is changed in place where it is dense: only the last rows move, into the gaps.
    """
    feature, count = activations[0], len(leavers) - int(np.count_nonzero(leavers))
    order = np.arange(count)
    gaps = np.flatnonzero(leavers[:count])
    moved = count + np.flatnonzero(~leavers[count:])
    order[gaps] = moved
    device = feature.device
    stay = as_index(order, device)
    if owned and _is_dense(feature):
        if len(gaps):
            feature.index_copy_(0, as_index(gaps, device), feature.index_select(0, as_index(moved, device)))
        feature = feature[:count]
    else:
        feature = feature.index_select(0, stay)
    return (feature, *keep(activations[1:], stay, per_sample)), order


def _is_dense(value: Tensor) -> bool:
    """Whether every element has a place of its own, batch outermost."""
    return value.is_contiguous() or (
        value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
    )


class InParts:
    """A span over a large batch, run part by part: smaller pieces stay in the caches.

    ``parts`` says in how many, by number of rows; more rows than it knows: parts as large as its best.
    ``before`` and ``after`` say which values that the span takes and returns have one row per sample; at the
    model's output (None) all do that have as many rows.
    """

    def __init__(
        self, span: SpanFn, parts: npt.NDArray[np.int64], before: Sequence[bool], after: Sequence[bool] | None
    ) -> None:
        self._span, self._parts = span, parts.tolist()
        self._largest = max(1, (len(parts) - 1) // self._parts[-1])
        self._before, self._after = tuple(before), after

    def __call__(self, *activations: Tensor) -> Activations:
        """Run the span, in parts where that is faster."""
        rows = len(activations[0])
        parts = self._parts[rows] if rows < len(self._parts) else -(-rows // self._largest)
        if parts == 1:
            return self._span(*activations)
        sizes = part_sizes(rows, parts)
        pieces = [
            torch.split(value, sizes) if each else [value] * parts
            for value, each in zip(activations, self._before, strict=True)
        ]
        found = [self._span(*piece) for piece in zip(*pieces, strict=True)]
        return tuple(self._join(i, values, sizes) for i, values in enumerate(zip(*found, strict=True)))

    def _join(self, index: int, values: tuple[Any, ...], sizes: list[int]) -> Any:
        if self._after is None:
            each = [len(v) if isinstance(v, Tensor) and v.ndim else None for v in values] == sizes
        else:
            each = self._after[index]
        return torch.cat(values) if each else values[0]
