"""Cancelled at any moment, each sample is completed exactly once, and memory stays flat."""

from __future__ import annotations

import gc
import random
import resource
import threading
import tracemalloc
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest
import torch
from torch import Tensor

import offramp
from offramp import ExitChoice, ExitConfig
from offramp.errors import Expired
from offramp.streaming.engine import StreamEngine
from offramp.streaming.request import StreamFuture
from streams import CLOSE, LONG, held, never, watched


def test_cancelling_a_sample_that_waits(net, x) -> None:
    with StreamEngine(net) as engine:
        with held(engine, x[0]):
            first, second = engine.submit(x[0]), engine.submit(x[1])
            assert first.cancel()
            assert first.cancel()
        assert second.result(LONG).position == len(net.positions)
        assert not second.cancel()
        with pytest.raises(CancelledError):
            first.result(LONG)
        wait([first], LONG)
        assert engine.drain(LONG)
        stats = engine.stats()
    assert (stats.answered, stats.cancelled, stats.rows[0]) == (2, 1, 2)


def test_cancelling_a_sample_under_way_takes_it_out_at_the_next_border(net, x) -> None:
    futures: list[StreamFuture] = []
    seen: list[int] = []
    cancelling, counting = (
        watched(net, 1, lambda _: futures[1].cancel()),
        watched(net, 2, lambda v: seen.append(len(v))),
    )
    with cancelling, counting, StreamEngine(net) as engine:
        with held(engine, x[0]):
            futures += [engine.submit(x[i], config=never(net)) for i in range(3)]
        wanted = offramp.Engine(net)(x)
        for i in (0, 2):
            torch.testing.assert_close(futures[i].result(LONG).output, wanted.outputs[i], **CLOSE)
        assert futures[1].cancelled()
        stats = engine.stats()
    assert seen == [2]
    assert (stats.answered, stats.cancelled, stats.submitted) == (3, 1, 4)


def test_an_answer_that_comes_with_a_cancellation_is_not_counted(net, x) -> None:
    futures: list[StreamFuture] = []
    leave = ExitConfig([ExitChoice(net.positions[1], "linear", 0.0)])
    with watched(net, 1, lambda _: futures[0].cancel()), StreamEngine(net) as engine:
        with held(engine, x[0]):
            futures += [engine.submit(x[i], config=leave) for i in range(2)]
        assert engine.drain(LONG)
        stats = engine.stats()
    assert futures[0].cancelled()
    assert futures[1].result().position == 1
    assert (stats.answered, stats.cancelled) == (2, 1)


def soak(net: offramp.ExitNetwork, x: Tensor, configs: list[ExitConfig], count: int) -> Any:
    """Random cancellations and deadlines; returns the statistics and what each future ended as."""
    drawn, ends = random.Random(0), {"answered": 0, "expired": 0, "cancelled": 0, "failed": 0}
    done = threading.Lock()

    def note(future: StreamFuture) -> None:
        with done:
            if future.cancelled():
                ends["cancelled"] += 1
            elif future.exception() is None:
                ends["answered"] += 1
            else:
                ends["expired" if isinstance(future.exception(), Expired) else "failed"] += 1

    recent: list[StreamFuture] = []
    with StreamEngine(net, prepare=configs, batch_limit=16, queue_limit=64) as engine:
        for i in range(count):
            deadline = drawn.choice([None, None, 1e-4, 1e-3, 1e-2, 3600.0])
            future = engine.submit(x[i % len(x)], config=drawn.choice(configs), deadline=deadline)
            future.add_done_callback(note)
            recent.append(future)
            if len(recent) == 50:
                for each in drawn.sample(recent, 10):
                    each.cancel()
                recent.clear()
        assert engine.drain(LONG)
        capacity = sum(buffer._rows.numel() for s in engine._worker._stages.values() for buffer in s._kept)
    return engine.stats(), ends, capacity


def check_completed(stats: Any, ends: dict[str, int], count: int) -> None:
    """Each exactly once: what the futures say is what the engine counted."""
    assert stats.submitted == count
    assert ends == {
        "answered": stats.answered, "expired": stats.expired,
        "cancelled": stats.cancelled, "failed": stats.failed,
    }  # fmt: skip
    assert sum(ends.values()) == count
    assert stats.failed == 0
    assert min(stats.answered, stats.expired, stats.cancelled) > count // 100


def test_each_of_3000_samples_is_completed_once(net, x, half) -> None:
    configs = [half, ExitConfig(), never(net), ExitConfig(half.choices[1:])]
    stats, ends, _ = soak(net, x, configs, 3000)
    check_completed(stats, ends, 3000)


@pytest.mark.long
def test_each_of_100000_samples_is_completed_once_and_memory_is_flat(net, x, half) -> None:
    configs = [half, ExitConfig(), never(net), ExitConfig(half.choices[1:])]
    _, _, before = soak(net, x, configs, 5000)  # caches of torch and of this test's own
    gc.collect()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    start, _ = tracemalloc.get_traced_memory()
    stats, ends, after = soak(net, x, configs, 100_000)
    gc.collect()
    end, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    check_completed(stats, ends, 100_000)
    assert after == before
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 65_536
    )  # kB, of which the above is part
    assert end - start < 300_000  # bytes; 100,000 futures would be a hundred times as much
    assert most - start < 10_000_000
