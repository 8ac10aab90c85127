"""Stage queues: where samples wait at a border, their features in memory that is allocated once.

    memory   [ . . . | a b c d e | . . . . ]     one row per sample, in order of arrival
                     head        tail            a batch is a view of rows, no copy

Samples are written straight to where they will be read from, in the layout of the span's results: one copy
per border. A queue that has run dry begins at the front again, so that only memory that is needed is ever
touched; when the tail reaches the end, the few that wait move to the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.runtime import Activations
from offramp.streaming.request import Request, Waiting

_BATCHES = 3  # of memory: at most 1 waits when another is pushed, so that moving to the front never overlaps


class RowBuffer:
    """Room for some rows of a tensor like (B, ...): its shape beyond the batch, type, device and layout."""

    def __init__(self, like: Tensor, rows: int) -> None:
        self._shape, self._width = like.shape[1:], like[0].numel()
        strides, step = [0] * (like.ndim - 1), 1
        for dim in sorted(range(like.ndim - 1), key=lambda d: (like.stride(d + 1), -d)):
            strides[dim], step = step, step * self._shape[dim]
        self._strides = tuple(strides)
        self._rows = torch.empty(rows, self._width, dtype=like.dtype, device=like.device)

    def write(self, at: int, value: Tensor, index: Tensor | None) -> None:
        """Rows ``index`` of ``value`` (None: all of them) to the rows from ``at`` on."""
        width, rows = self._width, len(value)
        if value.stride()[1:] == self._strides and (rows == 1 or value.stride(0) == width):
            flat = value.as_strided((rows, width), (width, 1))
            if index is None:
                self._rows[at : at + rows].copy_(flat)
            else:
                torch.index_select(flat, 0, index, out=self._rows[at : at + len(index)])
            return
        value = value if index is None else value.index_select(0, index)
        self.read(at, len(value)).copy_(value)

    def read(self, at: int, rows: int) -> Tensor:
        """A view of ``rows`` rows from ``at`` on, in the shape and layout of what was written."""
        return self._rows.as_strided((rows, *self._shape), (self._width, *self._strides), at * self._width)

    def to_front(self, at: int, rows: int) -> None:
        """Move rows to the beginning; they must not overlap with where they go."""
        self._rows[:rows].copy_(self._rows[at : at + rows])


class StageQueue(Waiting):
    """Samples that wait behind one position, where a full batch has ``limit`` of them.

    ``per_sample`` says for each activation here and for the mask whether it has one row per sample.
    """

    def __init__(self, position: int, per_sample: Sequence[bool], limit: int) -> None:
        super().__init__()
        self.position = position
        self.per_sample = tuple(per_sample)
        self._room = _BATCHES * limit
        self._kept: list[Any] = []  # a row buffer for what has rows, else the value itself
        self._head = self._tail = 0

    def push(self, requests: Sequence[Request], activations: Activations, index: Tensor | None) -> None:
        """Let samples wait here, with rows ``index`` (None: all) of a batch's activations and mask."""
        if not self._kept:
            pairs = zip(activations, self.per_sample, strict=True)
            self._kept = [RowBuffer(value, self._room) if each else value for value, each in pairs]
        if self._tail + len(requests) > self._room:
            waiting = self._tail - self._head
            for buffer, each in zip(self._kept, self.per_sample, strict=True):
                if each:
                    buffer.to_front(self._head, waiting)
            self._head, self._tail = 0, waiting
        for i, each in enumerate(self.per_sample):
            if each:
                self._kept[i].write(self._tail, activations[i], index)
            else:
                self._kept[i] = activations[i]
        self._tail += len(requests)
        self.requests.extend(requests)

    def take(self, limit: int) -> tuple[list[Request], Activations]:
        """The first samples, at most ``limit``, and their activations, valid until the next push."""
        count = min(limit, len(self.requests))
        taken = [self.requests.popleft() for _ in range(count)]
        activations = tuple(
            kept.read(self._head, count) if each else kept
            for kept, each in zip(self._kept, self.per_sample, strict=True)
        )
        self._head += count
        if not self.requests:
            self._head = self._tail = 0
        return taken, activations
