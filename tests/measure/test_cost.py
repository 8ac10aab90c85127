"""Costs: counted ones equal a count by hand; measured ones have their shape and add up. No time decides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import offramp
import small
from offramp import measure_cost
from offramp.errors import InputError
from offramp.measure import cost as measuring


def test_macs_equal_a_count_by_hand():
    net = small.network(heads=("linear", "mlp", "conv"), cuts=["stem", "blocks.0", "blocks.2"])
    costs = measure_cost(net)
    stem, block, top = 64 * 6 * 9, 64 * 6 * 6 * 9, 6 * 3
    assert costs.unit == "macs"
    assert costs.backbone.tolist() == [0, stem, stem + block, stem + 3 * block, stem + 3 * block + top]
    linear, mlp = 6 * 3, 6 * 16 * 32 + 32 * 3
    conv = 64 * 6 * 9 + 64 * 6 * 32 + 32 * 16 * 3
    np.testing.assert_array_equal(costs.heads, [[0, 0, 0], *[[linear, mlp, conv]] * 3])
    assert costs.meta == {"batch_size": 1, "device": "meta"}


def test_vectors_and_tokens():
    costs = measure_cost(small.network(small.Vector, heads=("conv", "linear")))
    assert costs.backbone.tolist() == [0, 48, 112, 136]
    assert costs.heads.tolist() == [[0, 0], [0, 24], [0, 24]]  # nothing to convolve over
    costs = measure_cost(small.network(small.Tokens, heads=("linear",), cuts=["layers.0", "layers.1"]))
    assert costs.backbone.tolist() == [0, 5 * 64, 10 * 64, 10 * 64 + 24]


def test_counting_leaves_everything_as_it_was():
    model = small.model().train()
    net = offramp.attach_exits(model, small.inputs()[:2], heads=("conv", "small-plain"))
    net.train()
    before, backbone = small.weights(net), small.weights(model)
    measure_cost(net)
    assert small.same(before, small.weights(net))
    assert small.same(backbone, small.weights(model))
    assert all(part.training for part in (*net.modules(), *model.modules()))


def test_other_units_are_given_not_measured():
    with pytest.raises(InputError, match=r"expected unit='macs', 'seconds' or 'joules', got 'euros'"):
        measure_cost(small.network(small.Vector), unit="euros")


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every reading is a second after the one before."""
    count = itertools.count()
    monkeypatch.setattr(measuring, "_clock", lambda unit, device: (lambda: float(next(count)), 0.0))


def test_sizes_are_powers_of_two_and_the_batch() -> None:
    assert measuring.batch_sizes(1) == [1]
    assert measuring.batch_sizes(8) == [1, 2, 4, 8]
    assert measuring.batch_sizes(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize("batch", [1, 6])
def test_a_table_of_seconds(batch: int) -> None:
    net = small.network(heads=("linear", "mlp"))
    costs = measure_cost(net, unit="seconds", batch_size=batch, threads=1, rounds=2)
    by_batch = costs.by_batch
    assert by_batch is not None
    assert costs.unit == "seconds"
    assert by_batch.sizes.tolist() == measuring.batch_sizes(batch)
    np.testing.assert_allclose(costs.backbone, by_batch.backbone[-1] / batch)
    np.testing.assert_allclose(costs.heads, by_batch.heads[-1] / batch)
    assert ((costs.heads > 0) == net.exists).all()
    assert (np.diff(costs.backbone) > 0).all()
    assert costs.meta is not None
    assert costs.meta["batch_size"] == batch
    assert costs.meta["threads"] == 1
    assert costs.meta["plain"] > 0
    assert costs.meta["execution"] == "Execution()"
    assert offramp.CostTable.from_json(costs.to_json()).meta == costs.meta
    assert measure_cost(net, unit="seconds", rounds=1).full < 1  # per sample, in seconds


def test_every_head_is_one_reading_and_segments_add_up_to_the_whole(ticking: None) -> None:
    net = small.network(heads=("linear",))
    costs = measure_cost(net, unit="seconds", batch_size=2, rounds=3)
    assert costs.by_batch is not None
    assert costs.heads[net.exists].tolist() == [0.5] * int(net.exists.sum())
    # each segment took one tick, the whole call one as well: they are scaled to it
    np.testing.assert_allclose(np.diff(costs.by_batch.backbone[-1]), 1 / len(net.positions))


@pytest.mark.parametrize(("long", "rounds"), [(1e9, 4), (-1.0, 3)], ids=["short", "long"])
def test_passes_that_take_long_are_fewer(monkeypatch: pytest.MonkeyPatch, long: float, rounds: int) -> None:
    monkeypatch.setattr(measuring, "_ROUNDS", (4, 5))
    monkeypatch.setattr(measuring, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "_LONG", long)
    costs = measure_cost(small.network(small.Vector, heads=("linear",)), unit="seconds", batch_size=2)
    assert costs.meta is not None
    assert costs.meta["rounds"] == [rounds, rounds]


def test_sizes_of_fewer_passes_are_spread_over_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, sizes = iter((2, 4)), list[int]()
    monkeypatch.setattr(measuring, "_enough", lambda seconds: next(wanted))
    found = measuring._passes(lambda size: sizes.append(size) or [0.0], [1, 8], None, False)
    assert [len(each) for each in found] == [2, 4]
    assert sizes[4:] == [8, 1, 8, 8, 1, 8]


def test_what_a_call_takes_beyond_its_segments_is_paid_at_the_start() -> None:
    found = measuring._reconciled(np.array([1.0, 2.0, 3.0]), 7.0)
    assert found.tolist() == [2.0, 2.0, 3.0]
    assert measuring._reconciled(np.array([1.0, 2.0, 3.0]), 3.0).tolist() == [0.5, 1.0, 1.5]


def test_measuring_leaves_everything_as_it_was() -> None:
    model = small.model().train()
    net = offramp.attach_exits(model, small.inputs()[:2], heads=("conv",))
    net.train()
    before, backbone, threads = small.weights(net), small.weights(model), torch.get_num_threads()
    measure_cost(net, unit="seconds", batch_size=3, threads=threads + 1, rounds=1)
    assert torch.get_num_threads() == threads
    assert small.same(before, small.weights(net))
    assert small.same(backbone, small.weights(model))
    assert all(part.training for part in (*net.modules(), *model.modules()))


def test_real_inputs_may_be_given_and_are_not_changed() -> None:
    net, x = small.network(heads=("linear",)), images(3)
    before = x.clone()
    costs = measure_cost(net, unit="seconds", batch_size=5, inputs=x, rounds=1)
    assert torch.equal(x, before)
    assert costs.by_batch is not None
    assert costs.by_batch.batch_size == 5


def test_tokens_with_a_mask_are_measured() -> None:
    net = small.network(small.Tokens, heads=("linear",))
    assert measure_cost(net, unit="seconds", batch_size=2, rounds=1).full > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": images(0)}, "expected inputs of at least one sample"),
        ({"inputs": torch.zeros(2, 7)}, "expected"),
    ],
    ids=["empty", "shape"],
)
def test_inputs_that_do_not_fit_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_cost(small.network(heads=("linear",)), unit="seconds", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["macs", "seconds", "joules"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", 0), ("batch_size", -5), ("batch_size", None), ("batch_size", True)),
        *(("threads", -1), ("threads", 2.0), ("threads", False)),
        *(("rounds", 0.5), ("rounds", "x"), ("rounds", True)),
    ],
)
def test_numbers_are_checked_alike_for_every_unit(unit: str, name: str, value: object) -> None:
    message = rf"measure_cost: expected {name} to be an integer of at least 1, got {value!r}; leave it out"
    with pytest.raises(InputError, match=message):
        measure_cost(small.network(small.Vector), unit=unit, **{name: value})  # type: ignore[arg-type]


class Meter:
    """An energy counter that ticks with every reading."""

    interval = 5e-5

    def __init__(self) -> None:
        self.joules = 0.0

    def read(self) -> float:
        self.joules += 2.0
        return self.joules


def test_joules_are_read_off_a_meter_over_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.measure.cost.find_meter", lambda device: Meter())
    net = small.network(heads=("linear",))
    costs = measure_cost(net, unit="joules", rounds=1)
    assert costs.unit == "joules"
    assert (costs.heads[net.exists] > 0).all()
    assert costs.heads.max() < 2.0  # two joules over several repeats


def test_search_takes_a_table_of_seconds() -> None:
    net, x = small.network(heads=("linear",)), images(40)
    records = offramp.record_outputs(net, [(x, torch.arange(40) % 3)])
    costs = measure_cost(net, unit="seconds", batch_size=4, rounds=2)
    frontier = offramp.search(records, costs, tradeoffs=[0.5, 0.9])
    for config in frontier:
        assert config.expected is not None
        assert config.expected.cost == offramp.evaluate(records, costs, config).cost
