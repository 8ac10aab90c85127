"""Who runs next: single decisions, and what holds over any sequence of them, on a clock of the test's own."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings, strategies as st

from offramp.streaming.scheduler import ROUNDS, Pace, choose, has_room


@dataclass
class Waiting:
    count: int
    since: float = 0.0


@pytest.mark.parametrize(
    ("counts", "since", "chosen"),
    [
        pytest.param([0, 0, 0], [0, 0, 0], None, id="nobody-waits"),
        pytest.param([1, 0, 0], [9, 0, 0], 0, id="one-at-the-admission-queue"),
        pytest.param([3, 1, 2], [9, 9, 9], 2, id="the-latest-where-none-is-full"),
        pytest.param([4, 3, 3], [9, 9, 9], 0, id="full-before-the-latest"),
        pytest.param([9, 4, 0], [9, 9, 0], 1, id="the-latest-of-full-ones"),
        pytest.param([9, 1, 4], [9, 4, 9], 1, id="overdue-before-full"),
        pytest.param([9, 1, 1], [9, 4, 3], 2, id="the-longest-overdue-first"),
        pytest.param([9, 1, 0], [9, 5, 0], 0, id="patience-to-the-last-moment"),
        pytest.param([1, 0, 4], [0, 0, 9], 2, id="the-admission-queue-is-never-overdue"),
    ],
)
def test_choice(counts: list[int], since: list[float], chosen: int | None) -> None:
    places = [Waiting(n, s) for n, s in zip(counts, since, strict=True)]
    assert choose(places, now=10, limit=4, patience=5) == chosen


def test_room() -> None:
    assert has_room(Waiting(3), 4)
    assert not has_room(Waiting(4), 4)


def test_pace_is_a_moving_mean_and_scales_patience() -> None:
    pace = Pace()
    assert pace.patience(5) == 0
    pace.add(2.0)
    assert pace.seconds == 2.0
    pace.add(3.0)
    assert pace.seconds == pytest.approx(2.05)
    assert pace.patience(5) == pytest.approx(ROUNDS * 5 * 2.05)


@dataclass
class Sample:
    number: int
    leaves: int
    """Place whose run answers it."""
    since: float = 0.0
    waits: list[float] = field(default_factory=list)


@dataclass
class Line:
    samples: deque[Sample] = field(default_factory=deque)

    @property
    def count(self) -> int:
        return len(self.samples)

    @property
    def since(self) -> float:
        return self.samples[0].since


class Server:
    """What the engine does, without a network: a run takes as long as the test says."""

    def __init__(self, places: int, limit: int, patience: float, lengths: list[float]) -> None:
        self.places = [Line() for _ in range(places)]
        self.limit, self.patience, self.now = limit, patience, 0.0
        self.lengths = itertools.cycle(lengths)
        self.answered: list[int] = []
        self.most = [0] * places
        self.runs: list[int] = []

    def arrive(self, sample: Sample, at: float) -> None:
        sample.since = at
        self.places[0].samples.append(sample)

    def turn(self) -> bool:
        chosen = choose(self.places, self.now, self.limit, self.patience)
        if chosen is None:
            return False
        self.run(chosen)
        return True

    def run(self, at: int) -> None:
        line = self.places[at].samples
        batch = [line.popleft() for _ in range(min(self.limit, len(line)))]
        assert batch
        for sample in batch:
            sample.waits.append(self.now - sample.since)
        if at + 1 < len(self.places) and not has_room(self.places[at + 1], self.limit):
            self.run(at + 1)
        self.now += next(self.lengths)
        self.runs.append(at)
        for sample in batch:
            if sample.leaves == at:
                self.answered.append(sample.number)
            else:
                sample.since = self.now
                self.places[at + 1].samples.append(sample)
                self.most[at + 1] = max(self.most[at + 1], self.places[at + 1].count)


loads = st.fixed_dictionaries({
    "places": st.integers(1, 5),
    "limit": st.integers(1, 6),
    "patience": st.floats(0, 30),
    "lengths": st.lists(st.floats(0.1, 4), min_size=1, max_size=7),
    "arrivals": st.lists(st.tuples(st.floats(0, 3), st.integers(0, 4)), min_size=1, max_size=150),
})  # fmt: skip


def played(load: dict) -> tuple[Server, list[Sample]]:
    """Everything arrives in its time and is answered."""
    server = Server(load["places"], load["limit"], load["patience"], load["lengths"])
    samples = [Sample(i, min(leaves, load["places"] - 1)) for i, (_, leaves) in enumerate(load["arrivals"])]
    due = list(itertools.accumulate(gap for gap, _ in load["arrivals"]))
    upcoming = deque(zip(due, samples, strict=True))
    while True:
        while upcoming and upcoming[0][0] <= server.now:
            at, sample = upcoming.popleft()
            server.arrive(sample, at)
        if not server.turn():  # it never idles while something waits
            assert not any(place.count for place in server.places)
            if not upcoming:
                return server, samples
            server.now = upcoming[0][0]


@settings(deadline=None)
@given(load=loads)
def test_each_is_answered_once_and_memory_is_bounded(load: dict) -> None:
    server, samples = played(load)
    assert sorted(server.answered) == [sample.number for sample in samples]
    assert max(server.most) <= 2 * load["limit"] - 1


@settings(deadline=None)
@given(load=loads)
def test_nobody_waits_in_a_stage_queue_much_longer_than_patience(load: dict) -> None:
    """Who is overdue goes before all who came to a stage queue later.

    At most 2 L - 1 samples in each of K stage queues came before, which two runs each take onward; to each
    run at most K - 1 others make way, and one such turn may have begun before.
    """
    _, samples = played(load)
    stages = load["places"] - 1
    bound = load["patience"] + (2 * stages * stages + stages) * max(load["lengths"])
    assert max((wait for sample in samples for wait in sample.waits[1:]), default=0) <= bound + 1e-9


@settings(deadline=None)
@given(load=loads)
def test_first_come_first_served_among_those_that_go_as_far(load: dict) -> None:
    server, samples = played(load)
    for place in range(load["places"]):
        numbers = [number for number in server.answered if samples[number].leaves == place]
        assert numbers == sorted(numbers)


def test_a_rare_sample_is_served_while_the_admission_queue_is_always_full() -> None:
    server = Server(places=3, limit=4, patience=10, lengths=[1.0])
    rare = Sample(0, leaves=2)
    server.arrive(rare, 0)
    for number in range(1, 2000):
        server.arrive(Sample(number, leaves=0), 0)
    while 0 not in server.answered:
        server.turn()
    assert server.now <= 2 * 10 + 2 * 10  # two stages, each patience and at most ten runs
    assert server.places[0].count > 1800


def test_full_batches_where_there_is_enough_to_do() -> None:
    """Half of the samples go on at each border, and yet all runs but the last few are full."""
    server = Server(places=4, limit=8, patience=1e9, lengths=[1.0])
    for number in range(1024):
        leaves = next(place for place in (0, 1, 2, 3) if place == 3 or number >> place & 1)
        server.arrive(Sample(number, leaves), 0)
    while server.turn():
        pass
    assert len(server.answered) == 1024
    assert len(server.runs) <= (1024 + 512 + 256 + 128) // 8 + 4
