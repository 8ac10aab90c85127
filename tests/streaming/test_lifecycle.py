"""From the first sample to the end: what is refused, what an error takes down, and closing."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest
import torch
from torch import Tensor, nn

import offramp
import small
from offramp import ExitChoice, ExitConfig
from offramp.errors import InputError, OfframpError
from offramp.runtime.plan import Planner
from offramp.streaming.engine import StreamEngine
from offramp.streaming.request import StreamFuture
from offramp.streaming.scheduler import choose
from streams import CLOSE, LONG, held, never, watched


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(torch.zeros(7, 1, 8, 8), "expected one sample, got a batch of 7", id="batch"),
        pytest.param(torch.zeros(1, 9, 8), "expected shape", id="shape"),
        pytest.param(torch.zeros(1, 8, 8, dtype=torch.float64), "expected torch.float32", id="dtype"),
        pytest.param({"x": torch.zeros(1, 8, 8)}, "expected a tensor or a tuple", id="structure"),
        pytest.param((torch.zeros(1, 8, 8),) * 2, "expected 1 tensor, got 2", id="number"),
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


def test_it_wants_a_network(net) -> None:
    with pytest.raises(InputError, match="expected a network from attach_exits, got a Linear"):
        StreamEngine(nn.Linear(2, 2))


def test_unknown_configurations_are_refused(net, x, half) -> None:
    unknown = ExitConfig([ExitChoice("nowhere", "linear", 0.5)])
    with StreamEngine(net, half) as engine:
        for exit_fn in (engine.use, engine.prepare, lambda config: engine.submit(x[0], config=config)):
            with pytest.raises(InputError, match="unknown position 'nowhere'"):
                exit_fn(unknown)
        with pytest.raises(InputError, match="expected an ExitConfig"):
            engine.use("fast")
        assert engine.config == half
        engine.submit(x[0]).result(LONG)


class Picky(nn.Module):
    """Fails on a batch with a negative number in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.out = nn.Embedding(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.layer(self.embed(x).mean(1))))


def test_an_error_in_the_model_fails_the_sample_that_causes_it() -> None:
    x = torch.randint(0, 4, (8, 5), generator=torch.Generator().manual_seed(0))
    net = offramp.attach_exits(small.model(Picky), x[:2], heads=("linear",), cuts=["layer"])
    wanted = net(x)
    with StreamEngine(net, batch_limit=4) as engine:
        with held(engine, x[0]):
            good = [engine.submit(each) for each in x[:4]]
            bad = torch.full((5,), 99)
            mixed = [engine.submit(each) for each in (x[4], bad, x[5], x[6])]
            after = engine.submit(x[7])
        for i, future in enumerate([*good, mixed[0], *mixed[2:], after]):
            torch.testing.assert_close(future.result(LONG).output, wanted[i], **CLOSE)
        assert isinstance(mixed[1].exception(LONG), IndexError)
        stats = engine.stats()
    assert (stats.answered, stats.failed, stats.submitted) == (9, 1, 10)


def test_samples_of_a_failed_batch_are_answered_as_they_would_be_alone(net, x, half) -> None:
    """An exit that fails on one of the samples: the others wait behind it as if nothing had been."""
    with StreamEngine(net, half) as engine:
        alone = [engine.submit(each).result(LONG) for each in x[:12]]

    def refuse(values: Tensor) -> None:
        if bool(torch.isclose(values, poison, atol=1e-4).flatten(1).all(1).any()):
            raise ValueError("poison")

    poison = next(value.clone() for p, value in net.features([x[3:4]]) if p == 1)
    with watched(net, 1, refuse), StreamEngine(net, half, batch_limit=12, patience=0) as engine:
        with held(engine, x[0]):
            futures = [engine.submit(each) for each in x[:12]]
        for i, (future, answer) in enumerate(zip(futures, alone, strict=True)):
            if i == 3:
                assert str(future.exception(LONG)) == "poison"
                continue
            assert future.result(LONG).position == answer.position
            torch.testing.assert_close(future.result(LONG).output, answer.output, **CLOSE)


def test_behind_the_first_exit_point_a_batch_fails_together(net, x) -> None:
    def refuse(values: Tensor) -> None:
        if len(values) > 1:
            raise ValueError("more than one")

    with watched(net, 2, refuse), StreamEngine(net, never(net), batch_limit=4) as engine:
        with held(engine, x[0]):
            futures = [engine.submit(each) for each in x[:4]]
        assert {str(future.exception(LONG)) for future in futures} == {"more than one"}
        assert engine.submit(x[0]).result(LONG)


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


def test_a_configuration_may_be_new_when_its_sample_is_taken(net, x, monkeypatch) -> None:
    """The sample comes after the engine's thread has chosen what to run, and before it takes the samples."""
    late: list[StreamFuture] = []

    def choose_late(*places: object) -> int | None:
        chosen = choose(*places)
        if chosen is not None and not late:
            late.append(engine.submit(x[1], config=never(net)))
        return chosen

    engine = StreamEngine(net)
    with engine:
        with held(engine, x[0]):
            monkeypatch.setattr("offramp.streaming.worker.choose", choose_late)
            first = engine.submit(x[0])
        assert first.result(LONG).position == len(net.positions)
        assert late[0].result(LONG).position == len(net.positions)


def test_two_configurations_are_prepared_at_once(net, x, monkeypatch) -> None:
    """The second is ready while spans of the first are made; both have their exit points afterwards."""
    first, second = (ExitConfig([ExitChoice(name, "linear", 0.0)]) for name in net.positions[1:3])
    made = Planner.span

    def span(self: Planner, *places: int) -> object:
        monkeypatch.setattr(Planner, "span", made)
        engine.prepare(second)
        return made(self, *places)

    with StreamEngine(net) as engine:
        monkeypatch.setattr(Planner, "span", span)
        engine.prepare(first)
        assert engine._worker._routes.exit_points == (0, 1, 2)
        futures = [engine.submit(x[0], config=config) for config in (first, second)]
        assert [future.result(LONG).position for future in futures] == [1, 2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
def test_whatever_a_callback_raises_ends_no_thread(net, x, error, caplog) -> None:
    def leave(_: object) -> None:
        raise error("mine")

    with StreamEngine(net, batch_limit=2) as engine:
        with held(engine, x[0]):
            futures = [engine.submit(each) for each in x[:6]]
            futures[0].add_done_callback(leave)
        assert engine.drain(LONG)
        assert all(future.result(LONG) for future in futures)
        futures[0].add_done_callback(leave)  # of one that is done it runs here and now
    assert caplog.text.count("a callback of a StreamFuture failed") == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [SystemExit("off"), KeyboardInterrupt()])
def test_an_error_that_ends_the_thread_ends_no_other(net, x, error) -> None:
    def end(_: Tensor) -> None:
        raise error

    with watched(net, 1, end):
        engine = StreamEngine(net, never(net), batch_limit=4)
        with held(engine, x[0]):
            futures = [engine.submit(each) for each in x[:10]]
            waiting = threading.Thread(target=engine.drain)
            waiting.start()
        for future in futures:
            with pytest.raises(OfframpError, match=r"the engine's thread ended with .*; make a new engine"):
                future.result(LONG)
        waiting.join(LONG)
        assert not waiting.is_alive()
    assert engine.drain(LONG)
    with pytest.raises(InputError, match=r"the engine is closed: its thread ended with .*; make a new one"):
        engine.submit(x[0])
    engine.close()
    assert engine.stats().failed == 10


def test_engines_that_are_dropped_end_their_threads(net, x) -> None:
    threads, futures = [], []
    for _ in range(25):
        engine = StreamEngine(net)
        futures.append(engine.submit(x[0]))
        threads.append(engine._worker._thread)
        engine.itself = engine  # one that only the collector finds
    del engine
    gc.collect()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert all(future.result(LONG) for future in futures)


def in_a_child(work) -> bytes:
    """What ``work`` returns in a forked child that has 20 seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover (in the child)
        signal.alarm(20)
        try:
            os.write(write, str(work()).encode())
        except Exception as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_hears_at_once_that_the_thread_is_elsewhere(net, x) -> None:
    with StreamEngine(net) as engine:
        engine.submit(x[0]).result(LONG)
        for verb, call in (("submit", lambda: engine.submit(x[0])), ("drain", engine.drain)):
            said = in_a_child(call).decode()
            assert said.startswith(f"InputError: {verb}: the engine's thread runs in process {os.getpid()}")
            assert said.endswith("make an engine here")
        assert in_a_child(lambda: (engine.close(), engine.stats().answered)) == b"(None, 1)"
        assert engine.submit(x[0]).result(LONG)  # the parent's goes on
        fresh = in_a_child(lambda: StreamEngine(net).submit(x[0]).result(LONG).position)
        assert fresh == str(len(net.positions)).encode()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_an_engine_for_batches_works_before_a_fork_and_after(net, x, half) -> None:
    engine = offramp.Engine(net, half)
    wanted = engine(x)
    said = in_a_child(lambda: (torch.equal(engine(x).outputs, wanted.outputs), engine.stats().samples))
    assert said == f"(True, {2 * len(x)})".encode()
    assert torch.equal(engine(x).outputs, wanted.outputs)
    assert engine.stats().samples == 2 * len(x)


@pytest.mark.parametrize("value", ["1", -1, float("nan"), float("inf"), 1e10, True, [1]], ids=str)
def test_times_that_are_none_are_refused(net, x, value) -> None:
    with StreamEngine(net) as engine:
        with pytest.raises(InputError, match=r"submit: expected a deadline in seconds from now, above 0 and"):
            engine.submit(x[0], deadline=value)
        with pytest.raises(InputError, match=r"submit: expected a timeout of 0 to \d+ seconds, or None to"):
            engine.submit(x[0], timeout=value)
        with pytest.raises(InputError, match=r"drain: expected a timeout of 0 to \d+ seconds, or None to"):
            engine.drain(value)


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
        while not engine._worker.admission.closed:
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
        while not engine._worker.admission._blocked:
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


def test_an_answer_in_one_line(net, x) -> None:
    with StreamEngine(net) as engine:
        answer = engine.submit(x[0]).result(LONG)
    shown = repr(answer)
    assert shown.startswith(f"StreamAnswer(output of shape {tuple(answer.output.shape)}, position ")
    assert f"confidence {answer.confidence:.4g}" in shown
    assert "tensor(" not in shown
