"""The stream engine: samples come one by one, wait at exits, and run in batches made of several arrivals.

    submit ─▶ admission queue ─ span ─▶ exit? ─ stay ─▶ stage queue ─ span ─▶ exit? ─ stay ─▶ ... ─▶ answer
                                         └ leave                               └ leave

A batch that has shrunk at an exit does not go on by itself: its rest waits for others that got as far. One
thread runs; which samples come next is decided in ``streaming.scheduler``. Scheduling at every step instead
of every request is what Orca does for language models (Yu et al., OSDI 2022), and DREX for exits in them
(arXiv 2512.15705).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from threading import TIMEOUT_MAX
from types import TracebackType
from typing import NoReturn

from offramp.core import CostTable, ExitConfig, is_number
from offramp.errors import InputError
from offramp.network import ExitNetwork, counted_by
from offramp.runtime import Execution, Planner, SpanProvider
from offramp.streaming.request import Request, StreamAnswer, StreamFuture, one_sample
from offramp.streaming.routes import Routes
from offramp.streaming.stats import StreamStats
from offramp.streaming.worker import Worker

__all__ = ["StreamAnswer", "StreamEngine", "StreamFuture", "StreamStats"]


class StreamEngine:
    """Answers samples that come one by one, in batches, under configurations that may differ.

    Close it, or use it in a ``with`` statement, which answers everything submitted before it ends. An engine
    that nobody refers to any more answers what was submitted and ends its thread, too. That stays in the
    process that made it: a forked child makes an engine of its own.

    Args:
        net: with trained heads; its backbone is called on the device it is on, always in eval mode.
        config: of samples submitted without one; without choices it is the full model.
        prepare: further configurations to make ready, for instance a whole frontier.
        costs: what ``stats`` counts by, where it is no table of seconds; a table of seconds tells which spans
            run faster in parts. None counts MACs and never splits a batch.
        batch_limit: samples in a full batch.
        queue_limit: samples that may wait for admission. Each stage queue holds less than two batches.
        patience: seconds after which a sample in a stage queue is served even in a small batch; None: six
            times what a run takes, times the number of places where samples wait.
        execution: how spans are computed; None is eager PyTorch.

    Raises:
        InputError: a configuration names a position or head that the network lacks, the costs are of another
            network, the execution cannot be had here, a limit is below 1, or the patience below 0.
    """

    def __init__(
        self,
        net: ExitNetwork,
        config: ExitConfig | None = None,
        *,
        prepare: Iterable[ExitConfig] = (),
        costs: CostTable | None = None,
        batch_limit: int = 32,
        queue_limit: int = 1024,
        patience: float | None = None,
        execution: Execution | None = None,
    ) -> None:
        if not isinstance(net, ExitNetwork):
            swapped = ": swapped?" if isinstance(config, ExitNetwork) else ""
            raise InputError(
                f"StreamEngine: expected a network from attach_exits, got a {type(net).__name__}{swapped}"
            )
        _check_limits(patience, batch_limit=batch_limit, queue_limit=queue_limit)
        self.net = net
        seconds = None if costs is None else costs.by_batch
        planner = Planner(net, counted_by(net, costs), SpanProvider(net, execution), seconds)
        self._routes = Routes(net, planner)
        self._spec = net.partition.spec
        net.eval()
        self._route = self._routes.get(ExitConfig() if config is None else config)
        for each in prepare:
            self.prepare(each)
        self._worker = Worker(net, self._routes, planner, (batch_limit, queue_limit), patience)
        # an engine that nobody has any more ends its thread, which knows nothing of it
        weakref.finalize(self, self._worker.admission.close).atexit = False

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "StreamEngine: cannot be copied or pickled, for it holds a thread; make one in each process, "
            "from a network that offramp.load gives"
        )

    @property
    def config(self) -> ExitConfig:
        """The configuration of samples submitted without one."""
        return self._route.config

    def prepare(self, config: ExitConfig) -> None:
        """Make a configuration ready, so that submitting with it takes microseconds.

        An ``InputError`` if it names a position or head that the network lacks.
        """
        self._routes.get(config)

    def use(self, config: ExitConfig) -> None:
        """Switch to a configuration, for samples submitted from now on. Safe from any thread.

        An ``InputError``, and no change, if it names a position or head that the network lacks.
        """
        self._route = self._routes.get(config)

    def submit(
        self,
        inputs: object,
        *,
        config: ExitConfig | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> StreamFuture:
        """Submit one sample. Safe from any thread.

        Args:
            inputs: one sample, as in ``example_inputs``: tensors with a batch dimension of 1 or without it.
                They are read when their batch starts, so leave them as they are until then.
            config: of this sample; None: the engine's. One that was not prepared is, here and now.
            deadline: seconds from now after which the sample is given up; None: never.
            timeout: seconds to wait for a place in a full queue; None: as long as it takes, 0: not at all.

        Returns:
            A future of a ``StreamAnswer``. It fails with ``Expired`` where the deadline has passed, and with
            the model's own error where that fails on the sample; behind the first exit point, where it fails
            on a batch that the sample is in.

        Raises:
            InputError: the inputs do not fit, the configuration is unknown, or the engine is closed.
            QueueFull: no place became free in time.
        """
        if not (deadline is None or (is_number(deadline, 0, TIMEOUT_MAX) and deadline > 0)):
            raise InputError(
                f"submit: expected a deadline in seconds from now, above 0 and at most {TIMEOUT_MAX:.0f}, or "
                f"None for none; got {deadline!r}"
            )
        _check_timeout("submit", timeout)
        route = self._route if config is None else self._routes.get(config)
        self.net.partition.check_unchanged()
        values, now = one_sample(self._spec, inputs), self._worker.clock()
        tokens = self._spec.tokens_given(inputs) if self.net.task.per_token else None
        request = Request(values, route, now, None if deadline is None else now + deadline, tokens)
        self._worker.enqueue(request, timeout)
        return request.future

    def stats(self) -> StreamStats:
        """Counts since the engine was made."""
        return self._worker.stats()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to answer, at most ``timeout`` seconds unless None; whether it is so."""
        _check_timeout("drain", timeout)
        return self._worker.drain(timeout)

    def close(self, *, cancel: bool = False) -> None:
        """Take no more samples, answer those there are, or give them up if ``cancel``, and stop."""
        self._worker.close(cancel)

    def __enter__(self) -> StreamEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)


def _check_timeout(verb: str, timeout: object) -> None:
    if not (timeout is None or is_number(timeout, 0, TIMEOUT_MAX)):
        raise InputError(
            f"{verb}: expected a timeout of 0 to {TIMEOUT_MAX:.0f} seconds, or None to wait as long as it "
            f"takes; got {timeout!r}"
        )


def _check_limits(patience: float | None, **limits: int) -> None:
    for name, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"StreamEngine: {name}: expected a whole number of at least 1, got {value!r}")
    if patience is not None and not (isinstance(patience, (int, float)) and 0 <= patience < math.inf):
        raise InputError(
            f"StreamEngine: patience: expected seconds of at least 0, or None to measure; got {patience!r}"
        )
