"""The stream engine answers as ``Engine``: every kind of model, any configuration, counts included."""

from __future__ import annotations

import random
import threading
import time
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
from offramp.runtime.execution import Execution
from offramp.streaming.engine import StreamEngine
from offramp.streaming.request import StreamFuture
from streams import BORDER, CLOSE, LONG, confidences, config_at, held
from toys import TOYS


def one(x: Any, i: int) -> Any:
    """Sample i, as the model takes it."""
    if isinstance(x, dict):
        return {name: value[i : i + 1] for name, value in x.items()}
    return tuple(value[i : i + 1] for value in x) if isinstance(x, tuple) else x[i : i + 1]


def several(net: offramp.ExitNetwork, x: Any) -> tuple[list[ExitConfig], dict]:
    """Configurations of different positions and heads, and all confidences."""
    confidence_fn, configs = confidences(net, x), [ExitConfig()]
    exits = [
        exit_ for exit_ in confidence_fn if confidence_fn[exit_].std() > 1e-3
    ]  # where samples are not all alike
    first: dict[int, tuple[int, int]] = {}
    last: dict[int, tuple[int, int]] = {}
    for p, c in exits:
        first.setdefault(p, (p, c))
        last[p] = (p, c)
    for chosen, share in ((first, 0.6), (last, 0.4)):
        at = list(chosen.values())
        configs += [config_at(net, confidence_fn, part, share) for part in (at, at[::2], at[1::2]) if part]
    return configs, confidence_fn


def clear(net: offramp.ExitNetwork, confidence_fn: dict, config: ExitConfig, i: int) -> bool:
    """Whether a sample's confidences are further than BORDER from the thresholds."""
    names = (
        (net.positions.index(c.position), net.head_names.index(c.head), c.threshold) for c in config.choices
    )
    return all(abs(confidence_fn[p, c][i] - np.float32(t)) > BORDER for p, c, t in names)


def check_equal(net: offramp.ExitNetwork, x: Any, count: int, **options: Any) -> None:
    """Samples under configurations drawn at random, all in one engine, against ``Engine``."""
    configs, confidence_fn = several(net, x)
    execution = options.get("execution")
    wanted = [offramp.Engine(net, config, execution=execution)(x) for config in configs]
    drawn = random.Random(0)
    chosen = [drawn.randrange(len(configs)) for _ in range(count)]
    with StreamEngine(net, prepare=configs, **options) as engine:
        futures = [engine.submit(one(x, i), config=configs[k]) for i, k in enumerate(chosen)]
        answers = [future.result(LONG) for future in futures]
    compared, left = 0, set()
    for i, (k, answer) in enumerate(zip(chosen, answers, strict=True)):
        if not clear(net, confidence_fn, configs[k], i):
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


def test_another_execution_backend() -> None:
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


def test_counts_as_the_engine_does(net, x, half) -> None:
    engine_alone = offramp.Engine(net, half)
    engine_alone(x)
    with StreamEngine(net, half) as engine:
        answers = [engine.submit(each) for each in x]
        assert engine.drain(LONG)
        stats = engine.stats()
    if [a.result().position for a in answers] == engine_alone(x).position.tolist():
        engine_alone.reset_stats()
        engine_alone(x)
        assert stats.macs == engine_alone.stats().macs
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
