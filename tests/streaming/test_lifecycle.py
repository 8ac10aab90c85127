"""From the first sample to the end: what is refused, what an error takes down, and closing."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor, nn

import offramp
import small
from offramp import ExitChoice, ExitConfig
from offramp.errors import InputError
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
