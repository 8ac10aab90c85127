"""Which samples run next: pure rules over places where samples wait, no tensors and no clock of their own.

    admission queue ─▶ stage queue ─▶ stage queue ─▶ ... ─▶ answer     each run moves up to ``limit`` samples

1. A stage queue whose first sample has waited longer than ``patience`` runs, the longest wait first.
2. Else a place with a full batch runs, the latest of them: what is begun is finished and frees its memory.
3. Else the latest place where anything waits: nothing ever waits while the device idles.

A run that would push to a stage queue which is full itself lets that queue go first. So no stage queue ever
holds more than ``2 * limit - 1`` samples, and in one none waits much longer than ``patience``. The admission
queue needs no patience: the places behind it get work from nowhere else and run dry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offramp.streaming.request import Waiting

ROUNDS = 6
"""Runs of every place that a default patience lasts: small batches then take little of the time."""


def choose(places: Sequence[Waiting], now: float, limit: int, patience: float) -> int | None:
    """The index of the place whose first samples should run; None where nobody waits.

    Places are in the order samples go through them, the admission queue first; ``limit`` samples are a full
    batch; ``patience`` is in seconds, on the clock of ``now`` and of ``since``.
    """
    latest = full = expired = None
    longest = now - patience
    for i, place in enumerate(places):
        count = place.count
        if count == 0:
            continue
        latest = i
        if count >= limit:
            full = i
        if i and place.since < longest:
            expired, longest = i, place.since
    if expired is not None:
        return expired
    return latest if full is None else full


def has_room(place: Waiting, limit: int) -> bool:
    """Whether a batch may be pushed there; if not, the place runs first, and then has."""
    return place.count < limit


class Pace:
    """How long runs take, as a moving mean; what a default patience is measured in."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Note one run."""
        self.seconds += (seconds - self.seconds) * (0.05 if self.seconds else 1.0)

    def patience(self, places: int) -> float:
        """Seconds that ``ROUNDS`` runs of every place take."""
        return ROUNDS * places * self.seconds
