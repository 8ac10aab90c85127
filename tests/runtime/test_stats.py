"""What engines count is in the units of the cost table, the same for every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import offramp
import small
from offramp import Engine, ExitChoice, ExitConfig, StreamEngine
from offramp.measure.throughput import measure_loader


@pytest.fixture(scope="module")
def net() -> offramp.ExitNetwork:
    return small.network(heads=("linear",))


@pytest.fixture(scope="module")
def kmacs(net: offramp.ExitNetwork) -> offramp.CostTable:
    """Fractions that add up exactly."""
    positions = len(net.positions)
    heads = np.where(net.exists, 0.0625, 0.0)
    return offramp.CostTable(np.arange(positions + 1) * 0.25, heads, "kmacs")


def first_exit(net: offramp.ExitNetwork, x: torch.Tensor) -> ExitConfig:
    """Some leave at the first cut."""
    found, _ = net.forward_all(x)
    threshold = float(net.confidence_of(1, 0)(found[1, 0]).median())
    return ExitConfig([ExitChoice(net.positions[1], "linear", threshold)])


def test_costs_that_are_fractions_are_counted(net: offramp.ExitNetwork, kmacs: offramp.CostTable) -> None:
    x = small.inputs(count=9)
    engine = Engine(net, first_exit(net, x), costs=kmacs)
    for batch in (x[:8], x[8:]):
        engine(batch)
    stats = engine.stats()
    early = stats.exits[1]
    assert 0 < early < 9
    assert stats.macs == 9 * 0.3125 + (9 - early) * 0.25 * (len(net.positions) - 1)
    assert stats.full_macs == 9 * 0.25 * len(net.positions)
    assert stats.share == stats.macs / stats.full_macs


def test_a_loader_is_run_through_with_costs_that_are_fractions(
    net: offramp.ExitNetwork, kmacs: offramp.CostTable
) -> None:
    measured = measure_loader(Engine(net, costs=kmacs), small.loader(), rounds=1)
    assert measured.result.relative_macs == 1


def test_a_stream_counts_as_the_engine_does(net: offramp.ExitNetwork, kmacs: offramp.CostTable) -> None:
    x = small.inputs(count=9)
    engine = Engine(net, first_exit(net, x), costs=kmacs)
    engine(x)
    with StreamEngine(net, engine.config, costs=kmacs) as stream:
        for sample in x:
            stream.submit(sample).result(30)
        stats = stream.stats()
    wanted = engine.stats()
    assert (stats.samples, stats.answered, stats.exits) == (9, 9, wanted.exits)
    assert (stats.macs, stats.full_macs) == (wanted.macs, wanted.full_macs)


def test_multiply_accumulates_are_integers(net: offramp.ExitNetwork) -> None:
    x = small.inputs(count=5)
    engine = Engine(net)
    engine(x)
    with StreamEngine(net) as stream:
        stream.submit(x[0]).result(30)
    for stats in (engine.stats(), stream.stats()):
        assert type(stats.macs) is type(stats.full_macs) is int
        assert stats.macs == stats.samples * offramp.measure_cost(net).full
