"""Bounded queues: a full one refuses or waits; batches fill up, and the worker waits for them so long."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from offramp.errors import InputError, QueueFull
from offramp.streaming.engine import StreamEngine
from offramp.streaming.worker import Worker
from streams import LONG, held


def test_batches_are_made_of_several_arrivals(net, x, half) -> None:
    """Half of a batch stays at the first exit: two batches make one full batch behind it."""
    with StreamEngine(net, half, batch_limit=8, patience=LONG) as engine:
        with held(engine, x[0]):
            futures = [engine.submit(each) for each in x]
        wait(futures, LONG)
        engine.drain()
        stats = engine.stats()
    assert stats.batches[0] == 1 + 96 // 8
    assert stats.rows[0] == 1 + 96
    assert stats.rows[2] == stats.rows[0] - 1 - stats.exits[1]
    for place in (2, 3):  # behind the two exits: at most one batch that is not full
        assert stats.batches[place] == -(-stats.rows[place] // 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"batch_limit": 0}, "batch_limit: expected a whole number of at least 1, got 0", id="batch"
        ),
        pytest.param({"queue_limit": 2.5}, "queue_limit: expected a whole number", id="queue"),
        pytest.param({"patience": -1}, "patience: expected seconds of at least 0", id="patience"),
    ],
)
def test_limits_are_checked(net, options, message) -> None:
    with pytest.raises(InputError, match=message):
        StreamEngine(net, **options)


def test_a_full_queue_refuses_or_waits(net, x) -> None:
    with StreamEngine(net, queue_limit=2) as engine:
        with held(engine, x[0]):
            waiting = [engine.submit(x[0]), engine.submit(x[1])]
            with pytest.raises(QueueFull, match="2 samples wait already"):
                engine.submit(x[2], timeout=0)
            with pytest.raises(QueueFull, match="larger queue_limit"):
                engine.submit(x[2], timeout=0.01)
            late = threading.Thread(target=lambda: waiting.append(engine.submit(x[2])))
            late.start()
        late.join(LONG)
        assert len(waiting) == 3
        for future in waiting:
            future.result(LONG)
    assert engine.stats().submitted == 4


def test_a_callback_that_submits_to_a_full_queue_is_refused_at_once(net, x) -> None:
    """It runs in the engine's thread, which would wait for itself."""
    refused, verbs = list[Exception](), list[Exception]()

    def submit_two(_: object) -> None:
        for _turn in range(2):
            try:
                engine.submit(x[1])
            except QueueFull as error:
                refused.append(error)
        for verb in (engine.drain, engine.close):
            with pytest.raises(InputError, match="runs in the engine's own thread") as caught:
                verb()
            verbs.append(caught.value)

    with StreamEngine(net, queue_limit=1) as engine:
        with held(
            engine, x[0]
        ):  # else the answer could be there before the callback is, which then runs here
            engine.submit(x[0]).add_done_callback(submit_two)
        assert engine.drain(LONG)
    assert len(refused) == 1
    assert len(verbs) == 2
    assert engine.stats().answered == 3


def test_workers_wait_for_patience_that_is_measured(net, x, half) -> None:
    engine = StreamEngine(net, half)
    worker: Worker = engine._worker
    with engine:
        for future in [engine.submit(each) for each in x]:
            future.result(LONG)
        assert 0 < worker._current_patience() < LONG
        assert worker._current_patience() == pytest.approx(6 * len(worker._places) * worker._pace.seconds)
