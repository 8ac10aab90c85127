"""Plans are built once per key, and a slow build holds up nobody who wants another key."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from offramp.core.plan_cache import PlanCache

LONG = 30  # seconds that nothing here takes


def test_a_slow_build_blocks_no_other_key() -> None:
    cache, building, go_on = PlanCache[str, int](), threading.Event(), threading.Event()
    cache.get("known", lambda: 1)

    def slowly() -> int:
        building.set()
        assert go_on.wait(LONG)
        return 2

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(cache.get, "slow", slowly)
        assert building.wait(LONG)
        others = threads.submit(lambda: [cache.get("known", lambda: 0), cache.get("new", lambda: 3)])
        try:
            assert others.result(LONG) == [1, 3]
            assert not slow.done()
        finally:
            go_on.set()
        assert slow.result(LONG) == 2


def test_threads_that_want_the_same_key_wait_for_one_build() -> None:
    cache, built, building, go_on = PlanCache[str, object](), [], threading.Event(), threading.Event()

    def build() -> object:
        built.append(object())
        building.set()
        assert go_on.wait(LONG)
        return built[-1]

    with ThreadPoolExecutor(4) as threads:
        wanted = [threads.submit(cache.get, "key", build) for _ in range(4)]
        assert building.wait(LONG)
        go_on.set()
        assert {id(each.result(LONG)) for each in wanted} == {id(built[0])}
    assert len(built) == len(cache) == 1


def test_a_build_that_fails_is_tried_again_by_who_waited() -> None:
    cache, building, go_on = PlanCache[str, int](), threading.Event(), threading.Event()

    def fail() -> int:
        building.set()
        assert go_on.wait(LONG)
        raise ValueError("no plan")

    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(cache.get, "key", fail)
        assert building.wait(LONG)
        waiting = threads.submit(cache.get, "key", lambda: 7)
        go_on.set()
        with pytest.raises(ValueError, match="no plan"):
            failing.result(LONG)
        assert waiting.result(LONG) == 7
    assert cache.get("key", fail) == 7


def test_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.core.plan_cache._MOST", 2)
    cache = PlanCache[int, int]()
    for key in range(4):
        cache.get(key, lambda key=key: key)
    assert len(cache) == 2
    assert cache.get(0, lambda: -1) == -1
    assert cache.get(3, lambda: -1) == 3
