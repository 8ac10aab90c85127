"""Every sample of a stream engine is completed once: answered, expired, cancelled or failed; and counted.

Only the engine's thread completes, so nothing here needs a lock; ``StreamFuture.cancel`` from another thread
wins or loses against an answer inside the future itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from offramp.core import RunStats
from offramp.errors import Expired
from offramp.streaming.request import Request, StreamAnswer

LATE = (
    "the deadline passed before the answer was there; allow more time, choose a cheaper configuration or "
    "submit fewer samples at a time"
)


@dataclass(frozen=True, kw_only=True)
class StreamStats(RunStats[tuple[int, ...]]):
    """What a stream engine has done since it was made.

    ``samples`` were answered, and ``exits`` counts where; ``macs`` is the cost of all that was executed, and
    ``full_macs`` what the full model would have spent on those answered.

    Args:
        submitted: samples taken in: answered, expired, cancelled, failed, waiting or under way.
        expired: their deadline passed first.
        cancelled: given up by who submitted them.
        failed: with an error of the model.
        waiting: for admission, at this moment.
        under_way: admitted, at this moment.
        batches: runs that began at each place: the admission queue, then P positions.
        rows: samples in these runs.
    """

    submitted: int
    expired: int
    cancelled: int
    failed: int
    waiting: int
    under_way: int
    batches: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def answered(self) -> int:
        """Samples with an answer."""
        return self.samples


class Completion:
    """Completes requests and counts, for P positions."""

    def __init__(self, positions: int) -> None:
        self.expired = self.cancelled = self.failed = 0
        self.macs: float = 0
        self.exits = [0] * (positions + 1)
        self.batches, self.rows = [0] * (positions + 1), [0] * (positions + 1)

    @property
    def completed(self) -> int:
        """Samples that nothing more will happen to."""
        return sum(self.exits) + self.expired + self.cancelled + self.failed

    def count(self, position: int, rows: int) -> None:
        """Note a run that began behind a position; -1 is the admission queue."""
        self.batches[position + 1] += 1
        self.rows[position + 1] += rows

    def stats(self, submitted: int, waiting: int, full_macs: float) -> StreamStats:
        """Everything so far; ``full_macs`` of one sample."""
        completed, answered = self.completed, sum(self.exits)
        return StreamStats(
            samples=answered,
            exits=tuple(self.exits),
            macs=self.macs,
            full_macs=answered * full_macs,
            submitted=submitted,
            expired=self.expired,
            cancelled=self.cancelled,
            failed=self.failed,
            waiting=waiting,
            under_way=max(0, submitted - completed - waiting),
            batches=tuple(self.batches),
            rows=tuple(self.rows),
        )

    def answer(
        self,
        requests: Sequence[Request],
        outputs: Tensor,
        confidences: Sequence[float],
        position: int,
        now: float,
    ) -> None:
        """Answer R samples that leave at a position, with outputs (R, K) or (R, L, K) and R confidences."""
        for request, output, confidence in zip(requests, outputs.unbind(0), confidences, strict=True):
            if request.deadline is not None and request.deadline < now:
                self.fail(request, Expired(LATE))
            elif self._begin(request):
                self.exits[position] += 1
                answer = StreamAnswer(
                    output=output if request.tokens is None else output[: request.tokens],
                    position=position,
                    confidence=confidence,
                    waited=now - request.submitted - request.served,
                    served=request.served,
                )
                request.future.set_result(answer)

    def fail(self, request: Request, error: BaseException) -> None:
        """Fail a sample with an error; ``Expired`` where its deadline has passed."""
        if self._begin(request):
            request.future.abandoned = True
            self.expired += isinstance(error, Expired)
            self.failed += not isinstance(error, Expired)
            request.future.set_exception(error)

    def drop(self, request: Request) -> None:
        """Cancel a sample, or note that it was."""
        request.future.cancel()
        self._begin(request)

    def _begin(self, request: Request) -> bool:
        """Whether the sample is for the caller to complete; counts it where it turns out to be cancelled."""
        if request.completed:
            return False
        request.completed = True
        if request.future.set_running_or_notify_cancel():
            return True
        self.cancelled += 1
        return False
