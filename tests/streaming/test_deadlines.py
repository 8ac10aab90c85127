"""Deadlines: they lie ahead, and pass while a sample waits, under way, or just before its answer."""

from __future__ import annotations

import pytest
from torch import Tensor

from offramp import ExitChoice, ExitConfig
from offramp.errors import Expired, InputError
from offramp.streaming.engine import StreamEngine
from streams import LONG, Clock, held, never, watched


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan")])
def test_a_deadline_lies_ahead(net, x, deadline) -> None:
    with StreamEngine(net) as engine, pytest.raises(InputError, match="deadline in seconds from now"):
        engine.submit(x[0], deadline=deadline)


def test_deadlines_pass_while_samples_wait(net, x) -> None:
    with StreamEngine(net) as engine:
        clock = engine._worker.clock = Clock()
        with held(engine, x[0]):
            early = engine.submit(x[0], deadline=1.0)
            late = engine.submit(x[1], deadline=3.0)
            clock.now += 2
        with pytest.raises(Expired, match="the deadline passed before the answer was there"):
            early.result(LONG)
        answer = late.result(LONG)
        assert answer.waited == pytest.approx(2.0)
        assert answer.served == 0
        assert engine.drain(LONG)
        assert not early.cancel()
        stats = engine.stats()
    assert (stats.answered, stats.expired, stats.rows[0]) == (2, 1, 2)


def test_deadlines_pass_under_way(net, x) -> None:
    seen: list[int] = []
    with StreamEngine(net) as engine:
        clock = engine._worker.clock = Clock()

        def hurry(_: Tensor) -> None:
            clock.now += 2

        with watched(net, 1, hurry), watched(net, 2, lambda v: seen.append(len(v))):
            with held(engine, x[0]):
                short = engine.submit(x[0], config=never(net), deadline=1.0)
                long = engine.submit(x[1], config=never(net), deadline=60.0)
            assert isinstance(short.exception(LONG), Expired)
            answer = long.result(LONG)
    assert seen == [1]  # the other was taken out before
    assert answer.served == pytest.approx(2.0)
    assert answer.waited == 0


def test_an_answer_after_the_deadline_is_none(net, x) -> None:
    leave = ExitConfig([ExitChoice(net.positions[1], "linear", 0.0)])
    with StreamEngine(net) as engine:
        clock = engine._worker.clock = Clock()

        def hurry(_: Tensor) -> None:
            clock.now += 2

        with watched(net, 1, hurry):
            assert isinstance(engine.submit(x[0], config=leave, deadline=1.0).exception(LONG), Expired)
        stats = engine.stats()
    assert (stats.answered, stats.expired, sum(stats.exits)) == (0, 1, 0)


def test_far_deadlines_are_forgotten_with_their_samples(net, x) -> None:
    with StreamEngine(net) as engine:
        for _ in range(8):
            for future in [engine.submit(each, deadline=1e6) for each in x]:
                future.result(LONG)
        assert len(engine._worker.admission._deadlines) < 256 + 3 * len(x)
