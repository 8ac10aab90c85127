"""The stream engine: equal to ``Engine``, each sample settled once, bounded, and calm about trouble."""

from __future__ import annotations

import gc
import random
import resource
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
import small
from offramp import ExitChoice, ExitConfig
from offramp.cli.demo import digit_splits
from offramp.cli.digits import load_digits, train_backbone
from offramp.core.batch_costs import BatchCosts
from offramp.errors import Expired, InputError, QueueFull
from offramp.runtime.execution import Execution
from offramp.streaming.buffer import Slab, Station
from offramp.streaming.engine import StreamEngine
from offramp.streaming.request import StreamFuture
from offramp.streaming.worker import Worker
from toys import TOYS

BORDER = 1e-5  # batch size moves the last bits of a confidence
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LONG = 30  # seconds that nothing here takes


def one(x: Any, i: int) -> Any:
    """Sample i, as the model takes it."""
    if isinstance(x, dict):
        return {name: value[i : i + 1] for name, value in x.items()}
    return tuple(value[i : i + 1] for value in x) if isinstance(x, tuple) else x[i : i + 1]


def confidences(net: offramp.ExitNetwork, x: Any) -> dict[tuple[int, int], np.ndarray]:
    """Of every exit on every sample."""
    values = net.partition.spec.flatten(x)
    found, _ = net.answers(values)
    mask = net.mask(values)
    return {exit_: net.confidence_of(*exit_)(out, mask).numpy() for exit_, out in found.items()}


def config_at(net: offramp.ExitNetwork, sure: dict, exits: list[tuple[int, int]], share: float) -> ExitConfig:
    """A share of all samples leaves at each exit, were they asked there."""
    return ExitConfig([
        ExitChoice(net.positions[p], net.head_names[c], float(np.quantile(sure[p, c], share)))
        for p, c in exits
    ])  # fmt: skip


def several(net: offramp.ExitNetwork, x: Any) -> tuple[list[ExitConfig], dict]:
    """Configurations of different positions and heads, and all confidences."""
    sure, configs = confidences(net, x), [ExitConfig()]
    exits = [exit_ for exit_ in sure if sure[exit_].std() > 1e-3]  # where samples are not all alike
    first: dict[int, tuple[int, int]] = {}
    last: dict[int, tuple[int, int]] = {}
    for p, c in exits:
        first.setdefault(p, (p, c))
        last[p] = (p, c)
    for chosen, share in ((first, 0.6), (last, 0.4)):
        at = list(chosen.values())
        configs += [config_at(net, sure, part, share) for part in (at, at[::2], at[1::2]) if part]
    return configs, sure


def clear(net: offramp.ExitNetwork, sure: dict, config: ExitConfig, i: int) -> bool:
    """Whether a sample's confidences are further than BORDER from the thresholds."""
    names = (
        (net.positions.index(c.position), net.head_names.index(c.head), c.threshold) for c in config.choices
    )
    return all(abs(sure[p, c][i] - np.float32(t)) > BORDER for p, c, t in names)


def check_equal(net: offramp.ExitNetwork, x: Any, count: int, **options: Any) -> None:
    """Samples under configurations drawn at random, all in one engine, against ``Engine``."""
    configs, sure = several(net, x)
    execution = options.get("execution")
    wanted = [offramp.Engine(net, config, execution=execution)(x) for config in configs]
    drawn = random.Random(0)
    chosen = [drawn.randrange(len(configs)) for _ in range(count)]
    with StreamEngine(net, prepare=configs, **options) as engine:
        futures = [engine.submit(one(x, i), config=configs[k]) for i, k in enumerate(chosen)]
        answers = [future.result(LONG) for future in futures]
    compared, left = 0, set()
    for i, (k, answer) in enumerate(zip(chosen, answers, strict=True)):
        if not clear(net, sure, configs[k], i):
            continue
        compared += 1
        left.add(answer.position)
        assert answer.position == wanted[k].position[i]
        torch.testing.assert_close(answer.output, wanted[k].outputs[i], **CLOSE)
        assert answer.confidence == pytest.approx(float(wanted[k].confidence[i]), abs=1e-5)
    assert compared > 0.8 * count
    assert len(left) > 1 or len(net.positions) < 3  # or the test would say little
    stats = engine.stats()
    assert stats.submitted == stats.answered == sum(stats.exits) == count
    assert stats.exits == tuple(np.bincount([a.position for a in answers], minlength=len(net.positions) + 1))


KINDS = ["in-place", "shared", "masked", "two inputs", "constants", "branches", "channels last", "bfloat16"]


@pytest.mark.parametrize("name", KINDS)
def test_answers_equal_the_engines(name: str) -> None:
    """In place, shared, masked, several inputs, tensors carried along with and without rows, other types."""
    model, draw = TOYS[name]()
    net = offramp.attach_exits(model, draw(3), heads=("linear",), cuts="all")
    check_equal(net, draw(24), 24, batch_limit=5)


@pytest.mark.parametrize("kind", [small.Picture, small.Tokens], ids=["pictures", "masked-tokens"])
@pytest.mark.parametrize("limit", [1, 3, 32])
def test_answers_equal_the_engines_with_several_heads(kind: type[nn.Module], limit: int) -> None:
    heads = ("attention", "linear") if kind is small.Tokens else small.HEADS
    net = offramp.attach_exits(
        small.model(kind), small.few(small.inputs(kind)), heads=heads,
        mask="mask" if kind is small.Tokens else None,
    )  # fmt: skip
    check_equal(net, small.inputs(kind), 96, batch_limit=limit)


class Glance(nn.Module):
    """A small model for the input."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


def glancing() -> offramp.ExitNetwork:
    return small.network(heads=("linear",), input_exits={"glance": small.model(Glance, seed=5)})


def test_exits_at_the_input() -> None:
    check_equal(glancing(), small.inputs(), 96, batch_limit=8)


def test_a_way_of_computing_spans() -> None:
    check_equal(small.network(), small.inputs(), 48, execution=Execution(channels_last=True))


@pytest.fixture(scope="module")
def digits() -> tuple[offramp.ExitNetwork, Tensor]:
    """The demo's network, trained in haste."""
    data = load_digits(0)
    splits = digit_splits(data, 0)
    assert splits.report is not None
    x = torch.cat([batch[0] for batch in splits.report])
    net = offramp.attach_exits(train_backbone(data.train, epochs=1), x[:2], heads=("linear", "mlp"))
    return net, x


def test_answers_on_the_demo_network(digits: tuple[offramp.ExitNetwork, Tensor]) -> None:
    net, x = digits
    check_equal(net, x, len(x))


@pytest.fixture(scope="module")
def net() -> offramp.ExitNetwork:
    return small.network(heads=("linear",))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return small.inputs()


@pytest.fixture(scope="module")
def half(net: offramp.ExitNetwork, x: Tensor) -> ExitConfig:
    """Half of the samples leave at each of the two exits."""
    return config_at(net, confidences(net, x), [(1, 0), (2, 0)], 0.5)


@contextmanager
def held(engine: StreamEngine, sample: Tensor) -> Iterator[None]:
    """The engine's thread stands still inside: everything submitted waits."""
    standing, go_on = threading.Event(), threading.Event()

    def stand(_: object) -> None:
        standing.set()
        go_on.wait(LONG)

    engine.submit(sample, config=ExitConfig()).add_done_callback(stand)
    assert standing.wait(LONG)
    try:
        yield
    finally:
        go_on.set()


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


def test_counts_as_the_engine_does(net, x, half) -> None:
    plain = offramp.Engine(net, half)
    plain(x)
    with StreamEngine(net, half) as engine:
        answers = [engine.submit(each) for each in x]
        assert engine.drain(LONG)
        stats = engine.stats()
    if [a.result().position for a in answers] == plain(x).position.tolist():
        plain.reset_stats()
        plain(x)
        assert stats.macs == plain.stats().macs
    assert stats.full_macs == 96 * int(offramp.measure_cost(net).full)
    assert (stats.waiting, stats.under_way) == (0, 0)


def test_spans_run_in_parts_where_that_was_measured_to_be_faster(net, x, half) -> None:
    rise, heads = np.arange(len(net.positions) + 1.0), np.zeros((2, *net.exists.shape))
    table = BatchCosts(np.array([1, 32]), np.stack([rise, 1000 * rise]), heads)
    costs = offramp.CostTable(rise, heads[0], "seconds", by_batch=table)
    wanted = offramp.Engine(net, half)(x)
    with StreamEngine(net, half, costs=costs) as engine:
        with held(engine, x[0]):
            futures = [engine.submit(each) for each in x]
        outputs = torch.stack([future.result(LONG).output for future in futures])
        assert type(engine._worker._routes.span(0, 1)).__name__ == "InParts"
    torch.testing.assert_close(outputs, wanted.outputs, **CLOSE)
    assert engine.stats().full_macs == 97 * int(offramp.measure_cost(net).full)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1, 8, 8)], ids=["without-batch", "batch-of-one"])
def test_one_sample_with_or_without_a_batch_dimension(net, x, shape) -> None:
    with StreamEngine(net) as engine:
        answer = engine.submit(x[3].reshape(shape)).result(LONG)
    torch.testing.assert_close(answer.output, net(x)[3], **CLOSE)
    assert answer.output.shape == (3,)
    assert answer.position == len(net.positions)
    assert answer.waited >= 0
    assert answer.served > 0


def test_keywords_without_a_batch_dimension() -> None:
    net, x = small.network(small.Tokens, heads=("linear",)), small.inputs(small.Tokens)
    with StreamEngine(net) as engine:
        answer = engine.submit({name: value[2] for name, value in x.items()}).result(LONG)
    torch.testing.assert_close(answer.output, net(x)[2], **CLOSE)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(torch.zeros(7, 1, 8, 8), "expected one sample, got a batch of 7", id="batch"),
        pytest.param(torch.zeros(1, 9, 8), "expected shape", id="shape"),
        pytest.param(torch.zeros(1, 8, 8, dtype=torch.float64), "expected torch.float32", id="dtype"),
        pytest.param({"x": torch.zeros(1, 8, 8)}, "expected a tensor or a tuple", id="structure"),
        pytest.param((torch.zeros(1, 8, 8),) * 2, "expected 1 tensors, got 2", id="number"),
        pytest.param("digit", "expected a tensor, got str", id="no-tensor"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_and_touch_nobody(net, x, inputs, message) -> None:
    with StreamEngine(net) as engine:
        before = engine.submit(x[0])
        with pytest.raises(InputError, match=message):
            engine.submit(inputs)
        assert before.result(LONG).position == len(net.positions)
    assert engine.stats().submitted == 1


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan")])
def test_a_deadline_lies_ahead(net, x, deadline) -> None:
    with StreamEngine(net) as engine, pytest.raises(InputError, match="deadline in seconds from now"):
        engine.submit(x[0], deadline=deadline)


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


def test_it_wants_a_network(net) -> None:
    with pytest.raises(InputError, match="expected a network from attach_exits, got a Linear"):
        StreamEngine(nn.Linear(2, 2))


def test_unknown_configurations_are_refused(net, x, half) -> None:
    unknown = ExitConfig([ExitChoice("nowhere", "linear", 0.5)])
    with StreamEngine(net, half) as engine:
        for ask in (engine.use, engine.prepare, lambda config: engine.submit(x[0], config=config)):
            with pytest.raises(InputError, match="unknown position 'nowhere'"):
                ask(unknown)
        with pytest.raises(InputError, match="expected an ExitConfig"):
            engine.use("fast")
        assert engine.config == half
        engine.submit(x[0]).result(LONG)


def test_a_switch_holds_for_samples_submitted_after_it(net, x, half) -> None:
    """Also to positions that no configuration used before, while samples are under way."""
    everywhere = config_at(net, confidences(net, x), [(1, 0)], -0.0)
    leave_first = ExitConfig([ExitChoice(net.positions[1], "linear", 0.0)])
    with StreamEngine(net, batch_limit=4) as engine:
        with held(engine, x[0]):
            before = [engine.submit(each) for each in x[:10]]
            engine.use(leave_first)
            after = [engine.submit(each) for each in x[:10]]
            own = [engine.submit(each, config=half) for each in x]
        assert {future.result(LONG).position for future in before} == {len(net.positions)}
        assert {future.result(LONG).position for future in after} == {1}
        assert len({future.result(LONG).position for future in own}) == 3
    assert everywhere.choices[0].position == leave_first.choices[0].position


def test_switching_while_threads_submit(net, x, half) -> None:
    configs = [half, ExitConfig(), ExitConfig(half.choices[1:]), ExitConfig(half.choices[:1])]
    with StreamEngine(net, half, batch_limit=8, queue_limit=16) as engine:
        futures: list[StreamFuture] = []

        def work() -> None:
            futures.extend([engine.submit(each) for each in x])

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(40):
            engine.use(configs[turn % len(configs)])
            time.sleep(0.001)
        for thread in threads:
            thread.join()
        assert {future.result(LONG).position for future in futures} <= {1, 2, 3}
    assert engine.stats().answered == 3 * len(x)


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


class Watched(nn.Module):
    """A head that says when it is asked."""

    def __init__(self, head: nn.Module, told: Any) -> None:
        super().__init__()
        self.head, self.told = head, told

    def forward(self, x: Tensor) -> Tensor:
        self.told(x)
        return self.head(x)


@contextmanager
def watched(net: offramp.ExitNetwork, position: int, told: Any) -> Iterator[None]:
    """``told`` is called whenever the exit at a position is asked."""
    heads = net.heads[position]
    before = heads["linear"]
    heads["linear"] = Watched(before, told)
    try:
        yield
    finally:
        heads["linear"] = before


def never(net: offramp.ExitNetwork) -> ExitConfig:
    """All exits are asked and nobody leaves."""
    return ExitConfig([ExitChoice(name, "linear", float("inf")) for name in net.positions[1:]])


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


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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
        assert len(engine._worker.entrance._deadlines) < 256 + 3 * len(x)


class Picky(nn.Module):
    """Fails on a batch with a negative number in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.out = nn.Embedding(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.layer(self.embed(x).mean(1))))


def test_an_error_in_the_model_fails_its_batch_and_nobody_else() -> None:
    x = torch.randint(0, 4, (8, 5), generator=torch.Generator().manual_seed(0))
    net = offramp.attach_exits(small.model(Picky), x[:2], heads=("linear",), cuts=["layer"])
    wanted = net(x)
    with StreamEngine(net, batch_limit=4) as engine:
        with held(engine, x[0]):
            good = [engine.submit(each) for each in x[:4]]
            bad = [engine.submit(each) for each in (x[4], torch.full((5,), 99), x[5], x[6])]
            after = engine.submit(x[7])
        for i, future in enumerate(good):
            torch.testing.assert_close(future.result(LONG).output, wanted[i], **CLOSE)
        for future in bad:
            assert isinstance(future.exception(LONG), IndexError)
        torch.testing.assert_close(after.result(LONG).output, wanted[7], **CLOSE)
        stats = engine.stats()
    assert (stats.answered, stats.failed, stats.submitted) == (6, 4, 10)


def test_an_error_in_a_head_fails_its_batch(net, x) -> None:
    troubles = [RuntimeError("no answer today")]

    def fail_once(_: Tensor) -> None:
        if troubles:
            raise troubles.pop()

    with watched(net, 2, fail_once), StreamEngine(net) as engine:
        future = engine.submit(x[0], config=never(net))
        with pytest.raises(RuntimeError, match="no answer today"):
            future.result(LONG)
        assert engine.submit(x[0], config=never(net)).result(LONG).position == len(net.positions)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_is_left_waiting_when_the_thread_dies(net, x, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    engine = StreamEngine(net, never(net))
    with held(engine, x[0]):
        futures = [engine.submit(each) for each in x[:40]]
        monkeypatch.setattr("offramp.streaming.worker.choose", broken)
    for future in futures:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(LONG)
    assert engine.drain(LONG)
    engine.close()
    with pytest.raises(InputError, match="the engine is closed"):
        engine.submit(x[0])
    assert engine.stats().failed == 40


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_the_thread_leaves_nobody_waiting(net, x) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    engine = StreamEngine(net, batch_limit=2)
    with held(engine, x[0]):
        futures = [engine.submit(each) for each in x[:6]]
        futures[0].add_done_callback(leave)
    assert futures[0].result(LONG).position == len(net.positions)
    for future in futures[1:]:
        assert isinstance(future.exception(LONG), SystemExit)
    assert engine.drain(LONG)
    engine.close()
    stats = engine.stats()
    assert (stats.answered, stats.failed) == (2, 5)


def test_closing_answers_what_waits_and_takes_no_more(net, x) -> None:
    engine = StreamEngine(net)
    with held(engine, x[0]):
        futures = [engine.submit(each) for each in x[:5]]
    engine.close()
    assert all(future.done() for future in futures)
    with pytest.raises(InputError, match="the engine is closed; make a new one"):
        engine.submit(x[0])
    engine.close()  # once more is no harm


def test_closing_may_give_up_what_waits(net, x) -> None:
    engine = StreamEngine(net)
    with held(engine, x[0]):
        futures = [engine.submit(each) for each in x[:5]]
        closing = threading.Thread(target=lambda: engine.close(cancel=True))
        closing.start()
        while not engine._worker.entrance.closed:
            time.sleep(0.001)
    closing.join(LONG)
    assert all(future.cancelled() for future in futures)
    assert engine.stats().cancelled == 5


def test_an_error_inside_with_gives_up_what_waits(net, x) -> None:
    futures, engine = list[StreamFuture](), list[StreamEngine]()

    def interrupted() -> None:
        with StreamEngine(net, batch_limit=1) as engines:
            engine.append(engines)
            futures.extend([engines.submit(each) for each in x])
            raise ValueError("elsewhere")

    with pytest.raises(ValueError, match="elsewhere"):
        interrupted()
    assert all(future.done() for future in futures)
    stats = engine[0].stats()
    assert stats.answered + stats.cancelled == len(x)


def test_those_who_wait_for_a_place_hear_that_it_closes(net, x) -> None:
    engine, heard = StreamEngine(net, queue_limit=1), list[Exception]()

    def submit() -> None:
        try:
            engine.submit(x[1])
        except InputError as error:
            heard.append(error)

    with held(engine, x[0]):
        engine.submit(x[0])
        shut_out = threading.Thread(target=submit)
        shut_out.start()
        while not engine._worker.entrance._shut_out:
            time.sleep(0.001)
        closing = threading.Thread(target=engine.close)
        closing.start()
        shut_out.join(LONG)
    closing.join(LONG)
    assert len(heard) == 1


def test_draining_can_take_too_long(net, x) -> None:
    with StreamEngine(net) as engine:
        with held(engine, x[0]):
            engine.submit(x[0])
            assert not engine.drain(0.01)
            assert engine.stats().waiting == 1
        assert engine.drain(LONG)


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
        capacity = sum(slab._rows.numel() for s in engine._worker._stations.values() for slab in s._kept)
    return engine.stats(), ends, capacity


def check_settled(stats: Any, ends: dict[str, int], count: int) -> None:
    """Each exactly once: what the futures say is what the engine counted."""
    assert stats.submitted == count
    assert ends == {
        "answered": stats.answered, "expired": stats.expired,
        "cancelled": stats.cancelled, "failed": stats.failed,
    }  # fmt: skip
    assert sum(ends.values()) == count
    assert stats.failed == 0
    assert min(stats.answered, stats.expired, stats.cancelled) > count // 100


def test_each_of_3000_samples_is_settled_once(net, x, half) -> None:
    configs = [half, ExitConfig(), never(net), ExitConfig(half.choices[1:])]
    stats, ends, _ = soak(net, x, configs, 3000)
    check_settled(stats, ends, 3000)


@pytest.mark.long
def test_each_of_100000_samples_is_settled_once_and_memory_is_flat(net, x, half) -> None:
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
    check_settled(stats, ends, 100_000)
    assert after == before
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 65_536
    )  # kB, of which the above is part
    assert end - start < 300_000  # bytes; 100,000 futures would be a hundred times as much
    assert most - start < 10_000_000


@pytest.mark.parametrize("order", ["rows", "channels-last", "transposed", "flat", "scalars"])
def test_a_slab_keeps_rows_and_their_order_in_memory(order: str) -> None:
    value = {
        "rows": torch.randn(6, 3, 4, 5),
        "channels-last": torch.randn(6, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(6, 4, 3).transpose(1, 2),
        "flat": torch.randn(6, 7),
        "scalars": torch.randn(6),
    }[order]
    slab = Slab(value, 9)
    slab.write(2, value, torch.tensor([4, 1, 5]))
    slab.write(5, value[:2], None)
    wanted = value[[4, 1, 5, 0, 1]]
    got = slab.read(2, 5)
    assert torch.equal(got, wanted)
    assert got.stride() == value.stride()
    slab.to_front(4, 3)
    assert torch.equal(slab.read(0, 3), wanted[2:])


def test_a_slab_takes_rows_in_another_order_in_memory() -> None:
    value = torch.randn(4, 3, 2, 2)
    slab = Slab(value, 8)
    slab.write(0, value.to(memory_format=torch.channels_last), torch.tensor([3, 0]))
    slab.write(2, value[:1].expand(3, 3, 2, 2), None)
    assert torch.equal(slab.read(0, 5), value[[3, 0, 0, 0, 0]])


def test_a_station_moves_to_the_front_of_its_memory() -> None:
    class Anybody:
        since = 0.0

    station, landed, taken = Station(1, (True, False), 4), list[float](), list[float]()
    for turn in range(20):
        value = torch.arange(4.0)[:, None] + 10 * turn
        rows = torch.tensor([0, 2, 3][: 1 + turn % 3])
        station.land([Anybody()] * len(rows), (value, torch.tensor([turn])), rows)
        landed += value[rows, 0].tolist()
        while station.count >= 4 or (turn == 19 and station.count):
            people, (got, shared) = station.take(4)
            assert len(people) == len(got)
            assert shared.item() == turn
            taken += got[:, 0].tolist()
    assert taken == landed


def test_workers_wait_for_patience_that_is_measured(net, x, half) -> None:
    engine = StreamEngine(net, half)
    worker: Worker = engine._worker
    with engine:
        for future in [engine.submit(each) for each in x]:
            future.result(LONG)
        assert 0 < worker._waits() < LONG
        assert worker._waits() == pytest.approx(6 * len(worker._places) * worker._pace.seconds)
