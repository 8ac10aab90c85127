"""Every sample of a stream engine is settled once: answered, expired, cancelled or failed; and counted.

Only the engine's thread settles, so nothing here needs a lock; ``StreamFuture.cancel`` from another thread
wins or loses against an answer inside the future itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from offramp.errors import Expired
from offramp.streaming.request import Request, StreamAnswer


@dataclass(frozen=True)
class StreamStats:
    """What a stream engine has done since it was made.

    Args:
        submitted: samples taken in; the sum of the six below.
        answered: with an answer.
        expired: their deadline passed first.
        cancelled: given up by who submitted them.
        failed: with an error of the model.
        waiting: at the entrance, at this moment.
        under_way: behind it, at this moment.
        exits: samples answered at each position; P + 1 counts, the last is the model's output.
        macs: multiply-accumulates executed, heads included.
        full_macs: what the full model would have spent on the samples answered.
        batches: runs that began at each place: the entrance, then P positions.
        rows: samples in these runs.
    """

    submitted: int
    answered: int
    expired: int
    cancelled: int
    failed: int
    waiting: int
    under_way: int
    exits: tuple[int, ...]
    macs: int
    full_macs: int
    batches: tuple[int, ...]
    rows: tuple[int, ...]


class Completion:
    """Settles requests and counts.

    Args:
        positions: P.
    """

    def __init__(self, positions: int) -> None:
        self.expired = self.cancelled = self.failed = 0
        self.macs = 0.0
        self.exits = [0] * (positions + 1)
        self.batches, self.rows = [0] * (positions + 1), [0] * (positions + 1)

    @property
    def answered(self) -> int:
        """Samples with an answer."""
        return sum(self.exits)

    @property
    def settled(self) -> int:
        """Samples that nothing more will happen to."""
        return self.answered + self.expired + self.cancelled + self.failed

    def count(self, position: int, rows: int) -> None:
        """Note a run that began behind a position; -1 is the entrance."""
        self.batches[position + 1] += 1
        self.rows[position + 1] += rows

    def stats(self, submitted: int, waiting: int, full_macs: int) -> StreamStats:
        """Everything so far; ``full_macs`` of one sample."""
        settled, answered = self.settled, self.answered
        return StreamStats(
            submitted,
            answered,
            self.expired,
            self.cancelled,
            self.failed,
            waiting,
            max(0, submitted - settled - waiting),
            tuple(self.exits),
            round(self.macs),
            answered * full_macs,
            tuple(self.batches),
            tuple(self.rows),
        )

    def answer(
        self,
        requests: Sequence[Request],
        outputs: Tensor,
        confidence: Sequence[float],
        position: int,
        now: float,
    ) -> None:
        """Answer samples.

        Args:
            requests: R of them.
            outputs: (R, K) or (R, L, K).
            confidence: R numbers.
            position: where they leave.
            now: seconds, on the clock of their deadlines.
        """
        for request, output, confidence_fn in zip(requests, outputs.unbind(0), confidence, strict=True):
            if request.deadline is not None and request.deadline < now:
                self.expire(request)
                continue
            request.settled = True
            if request.future.set_running_or_notify_cancel():
                waited = now - request.submitted - request.served
                self.exits[position] += 1
                request.future.set_result(
                    StreamAnswer(output, position, confidence_fn, waited, request.served)
                )
            else:
                self.cancelled += 1

    def expire(self, request: Request) -> None:
        """Fail a sample whose deadline has passed."""
        if self._taken(request):
            request.future.gone = True
            self.expired += 1
            request.future.set_exception(
                Expired(
                    "the deadline passed before the answer was there; allow more time, choose a cheaper "
                    "configuration or submit fewer samples at a time"
                )
            )

    def fail(self, request: Request, error: BaseException) -> None:
        """Fail a sample with an error."""
        if self._taken(request):
            request.future.gone = True
            self.failed += 1
            request.future.set_exception(error)

    def drop(self, request: Request) -> None:
        """Cancel a sample, or note that it was."""
        request.future.cancel()
        self._taken(request)

    def _taken(self, request: Request) -> bool:
        """Whether the sample is for the caller to settle; counts it where it turns out to be cancelled."""
        if request.settled:
            return False
        request.settled = True
        if request.future.set_running_or_notify_cancel():
            return True
        self.cancelled += 1
        return False
