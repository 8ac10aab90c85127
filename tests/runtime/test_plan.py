"""What a plan is made of: who leaves, gaps closed in place, spans in parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import offramp
import small
from offramp import Engine, ExitChoice, ExitConfig
from offramp.core.batch_costs import BatchCosts
from offramp.errors import InputError
from offramp.runtime.compaction import InParts, close_gaps, leaving
from offramp.runtime.memory import keep_memory


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


@given(
    st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda x: any(x) and not all(x)), st.booleans()
)
def test_closing_gaps_keeps_the_others(leaves: list[bool], owned: bool) -> None:
    rows = len(leaves)
    feature, carried = torch.arange(rows * 6.0).view(rows, 2, 3), torch.arange(rows)
    before, gone = feature.clone(), np.array(leaves)
    (kept, mask, shared), order = close_gaps((feature, carried, torch.ones(3)), gone, owned, (True, False))
    assert sorted(order.tolist()) == np.flatnonzero(~gone).tolist()
    assert torch.equal(kept, before[order])
    assert mask.tolist() == order.tolist()
    assert torch.equal(shared, torch.ones(3))
    if not owned:
        assert torch.equal(feature, before)


@pytest.mark.parametrize("owned", [True, False])
def test_features_that_are_spread_out_or_shared_by_rows_are_copied(owned: bool) -> None:
    for feature in (torch.arange(12.0).view(3, 4).t(), torch.ones(1, 3).expand(4, 3)):
        before = feature.clone()
        (kept,), order = close_gaps((feature,), np.array([True, False, True, False]), owned, ())
        assert torch.equal(kept, before[order])
        assert torch.equal(feature, before)


def test_channels_last_stays_channels_last() -> None:
    feature = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    wanted = feature[[2, 1]].clone()
    (kept,), order = close_gaps((feature,), np.array([True, False, False, True]), True, ())
    assert order.tolist() == [2, 1]
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kept, wanted)


def test_what_is_not_finite_never_leaves() -> None:
    confidence = torch.tensor([0.5, float("nan"), float("inf"), -float("inf"), 0.7, 0.6])
    assert leaving(confidence, 0.5).tolist() == [False, False, False, False, True, True]
    threshold = np.float32(0.1)  # as a Python number it is not 0.1
    assert not leaving(torch.tensor([0.1]), float(threshold))[0]


def test_parts_give_what_the_whole_gives() -> None:
    def span(x: torch.Tensor, each: torch.Tensor, shared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(x))
        return x * 2 + each[:, None], each, shared

    x, each, shared = torch.randn(7, 3), torch.arange(7.0), torch.ones(2)
    parts = np.array([1, 1, 1, 2, 2])
    seen: list[int] = []
    found = InParts(span, parts, (True, True, False), (True, True, False))(x, each, shared)
    assert seen == [2, 2, 2, 1]  # two rows are the best of four
    assert torch.equal(found[0], x * 2 + each[:, None])
    assert torch.equal(found[1], each)
    assert found[2] is shared
    seen.clear()
    InParts(span, parts, (True, True, False), (True, True, False))(x[:3], each[:3], shared)
    assert seen == [2, 1]
    seen.clear()
    InParts(span, parts, (True, True, False), (True, True, False))(x[:2], each[:2], shared)
    assert seen == [2]


def seconds(net: offramp.ExitNetwork, *, large: float) -> offramp.CostTable:
    """A table by which a batch of 8 costs ``large`` times what its rows cost one by one."""
    count, sizes = len(net.positions), np.array([1, 2, 4, 8])
    rates = np.array([1.0, 1.0, 1.0, large])
    backbone = np.outer(sizes * rates, np.arange(count + 1.0))
    heads = np.zeros((4, count, len(net.head_names)))
    by_batch = BatchCosts(sizes, backbone, heads)
    return offramp.CostTable(backbone[-1] / 8, heads[-1] / 8, "seconds", None, by_batch)


def both_ways(net: offramp.ExitNetwork, x: object, config: ExitConfig) -> None:
    whole = Engine(net, config)(x)
    engine = Engine(net, config, costs=seconds(net, large=3.0))
    split = engine(x)
    assert torch.equal(whole.position, split.position)
    torch.testing.assert_close(whole.outputs, split.outputs)
    torch.testing.assert_close(whole.confidence, split.confidence)
    assert engine.stats().macs > 1000  # counted in MACs all the same


def middle(net: offramp.ExitNetwork, x: object) -> ExitConfig:
    """Half leave at the second cut."""
    records = offramp.record_outputs(net, [(x, torch.zeros(8, dtype=torch.long))])
    at, column = 2, int(np.flatnonzero(records.exists[2])[0])
    threshold = float(np.median(records.confidence[at, column]))
    return ExitConfig((ExitChoice(net.positions[at], net.head_names[column], threshold),))


def test_an_engine_that_splits_answers_as_one_that_does_not() -> None:
    net, x = small.network(heads=("linear",)), images(8)
    both_ways(net, x, middle(net, x))


def test_with_all_exits_off_it_never_splits() -> None:
    net, x = small.network(heads=("linear",)), images(8)
    engine = Engine(net, costs=seconds(net, large=3.0))
    (only,) = engine._plan.steps
    assert not isinstance(only.span, InParts)
    assert torch.equal(engine(x).outputs, net.backbone(x))


class InPlace(nn.Module):
    """Every block writes to its feature; the input goes on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).relu_()
            x += 1
        return x


def test_the_callers_input_is_never_changed() -> None:
    torch.manual_seed(0)
    net = offramp.attach_exits(
        InPlace().eval(), torch.randn(2, 4), heads=("linear",), input_exits={"own": "linear"}
    )
    x = torch.randn(9, 4)
    before = x.clone()
    confidence = offramp.record_outputs(net, [(x, torch.zeros(9, dtype=torch.long))]).confidence
    column = net.head_names.index("own")
    config = ExitConfig((ExitChoice("input", "own", float(np.median(confidence[0, column]))),))
    out = Engine(net, config)(x)
    assert torch.equal(x, before)
    assert 0 < int((out.position == 0).sum()) < 9


def test_what_runs_between_two_positions_is_made_once() -> None:
    net = small.network(heads=("linear",))
    engine = Engine(net, costs=seconds(net, large=3.0))
    planner = engine._planner(engine.execution)
    assert isinstance(planner.span(0, 1), InParts)
    assert planner.span(0, 1) is planner.span(0, 1)
    assert planner.span(0, 1, in_parts=False) is planner.span(0, 1, in_parts=False)


def test_joules_are_not_what_engines_count_by() -> None:
    net = small.network(heads=("linear",))
    measured = seconds(net, large=1.0)
    joules = offramp.CostTable(measured.backbone, measured.heads, "joules", None, measured.by_batch)
    with offramp.StreamEngine(net, costs=joules) as stream:
        stream.submit(images(1)[0]).result(30)
        assert stream.stats().macs == offramp.measure_cost(net).full


def test_costs_of_another_network_are_refused() -> None:
    net = small.network(heads=("linear",))
    other = offramp.CostTable([0, 1], [[0]], "seconds")
    with pytest.raises(InputError, match=r"Engine: the costs are for \(1, 1\) .* measure this network"):
        Engine(net, costs=other)


def test_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert keep_memory() is False
    monkeypatch.setattr("sys.platform", "linux")

    def no_library(_: object) -> object:
        raise OSError

    monkeypatch.setattr("ctypes.CDLL", no_library)
    assert keep_memory() is False


class Library:
    """A C library that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def mallopt(self, which: int, value: int) -> int:
        self.told.append((which, value))
        return int(which != self.refuses)

    refuses = 0


@pytest.mark.parametrize(("refuses", "wanted"), [(0, True), (-1, False)])
def test_memory_is_kept_only_if_every_setting_took(
    refuses: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    library.refuses = refuses
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    assert keep_memory() is wanted
    assert (-4, 0) in library.told  # M_MMAP_MAX: nothing is mapped
