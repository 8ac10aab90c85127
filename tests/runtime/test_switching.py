"""Switches of several threads: none undoes another, and none waits for what another prepares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import offramp
import small
from multitask_nets import Setting
from offramp import Engine, Execution, ExitChoice, ExitConfig, MultiEngine
from offramp.runtime.plan import Planner

LONG = 30  # seconds that nothing here takes
OTHER = Execution(channels_last=True)


@pytest.fixture(scope="module")
def net() -> offramp.ExitNetwork:
    return small.network(heads=("linear",))


def config(net: offramp.ExitNetwork, threshold: float) -> ExitConfig:
    return ExitConfig([ExitChoice(net.positions[1], "linear", threshold)])


@contextmanager
def slow_to_prepare(monkeypatch: pytest.MonkeyPatch, slow: ExitConfig) -> Iterator[Callable[[], None]]:
    """Preparing ``slow`` takes until the end; what is given waits until it has begun."""
    begun, go_on, exits = threading.Event(), threading.Event(), Planner.exits

    def waiting(self: Planner, wanted: ExitConfig) -> object:
        if wanted == slow:
            begun.set()
            assert go_on.wait(LONG)
        return exits(self, wanted)

    def wait() -> None:
        assert begun.wait(LONG)

    monkeypatch.setattr(Planner, "exits", waiting)
    try:
        yield wait
    finally:
        go_on.set()


def test_a_switch_of_the_configuration_does_not_undo_one_of_the_execution(
    net: offramp.ExitNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = config(net, 0.5), config(net, 0.6)
    engine = Engine(net)
    engine.prepare(other, OTHER)
    with ThreadPoolExecutor(1) as threads:
        with slow_to_prepare(monkeypatch, slow) as begun:
            switch = threads.submit(engine.use, slow)
            begun()
            engine.use(other, OTHER)
        switch.result(LONG)
    assert (engine.config, engine.execution) == (slow, OTHER)


def test_a_switch_does_not_wait_for_what_another_thread_prepares(
    net: offramp.ExitNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, known, new = (config(net, threshold) for threshold in (0.5, 0.6, 0.7))
    engine = Engine(net, prepare=[known])
    with ThreadPoolExecutor(2) as threads:
        with slow_to_prepare(monkeypatch, slow) as begun:
            switch = threads.submit(engine.use, slow)
            begun()
            for other in (known, new):
                threads.submit(engine.use, other).result(LONG)
                assert engine.config == other
            assert not switch.done()
        switch.result(LONG)
    assert engine.config == slow


def test_tasks_are_switched_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    slow, other = setting.settings[3]["what"], setting.settings[3]["where"]
    several = MultiEngine(setting.networks)
    with ThreadPoolExecutor(2) as threads:
        with slow_to_prepare(monkeypatch, slow) as begun:
            switch = threads.submit(several.use, {"what": slow})
            begun()
            threads.submit(several.use, {"where": other}).result(LONG)
            assert several.configs["where"] == other
            assert not switch.done()
        switch.result(LONG)
    assert (several.configs["what"], several.configs["where"]) == (slow, other)
