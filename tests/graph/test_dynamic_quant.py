"""Dynamically quantised models: their packed layers are called, counted, and put back."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zoo
from offramp import partition
from offramp.errors import PartitionError
from offramp.graph.dynamic_quant import is_packed, packed_layers, stand_ins
from offramp.graph.macs import span_macs
from toys import answer, identical, randn, seeded


class Mlp(nn.Module):
    """The first layer sees the raw input; the last two are one and the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
        self.shared = nn.Linear(8, 8)
        self.same = self.shared

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.same(self.shared(x).relu())


@pytest.fixture
def quantised() -> nn.Module:
    model = seeded(lambda: zoo.quantised(lambda _: Mlp())(0))
    model.same = model.shared  # torch quantises one of the two
    return model


def macs(model: nn.Module) -> int:
    parts = partition(model, randn(6)(2), cuts=[])
    return sum(span_macs(parts.flow, [parts.border(0), parts.border(1)]))


@pytest.mark.parametrize("batch", [1, 7])
def test_segments_equal_the_model_bit_for_bit(quantised: nn.Module, batch: int) -> None:
    parts = partition(quantised, randn(6)(2), cuts="all")
    assert [cut.name for cut in parts.cuts] == [
        "first",
        "blocks.0.0",
        "blocks.0",
        "blocks.1.0",
        "blocks.1",
        "shared",
    ]
    assert identical(parts.run(randn(6)(batch)), answer(quantised, randn(6)(batch)))


def test_the_model_is_left_as_it_was(quantised: nn.Module) -> None:
    before = [(name, id(module)) for name, module in quantised.named_modules(remove_duplicate=False)]
    partition(quantised, randn(6)(2))
    assert [(name, id(module)) for name, module in quantised.named_modules(remove_duplicate=False)] == before


def test_layers_are_put_back_after_an_error(quantised: nn.Module) -> None:
    layers = packed_layers(quantised)
    assert len(layers) == 4
    with contextlib.suppress(ZeroDivisionError), stand_ins(quantised):
        assert packed_layers(quantised) == []
        raise ZeroDivisionError
    assert packed_layers(quantised) == layers


def test_as_many_operations_as_before(quantised: nn.Module) -> None:
    assert macs(quantised) == macs(seeded(Mlp)) == 6 * 8 + 4 * 8 * 8


def test_a_packed_layer_is_no_block(quantised: nn.Module) -> None:
    found, wanted = (partition(model, randn(6)(2)).cuts for model in (quantised, seeded(Mlp)))
    assert [cut.name for cut in found] == [cut.name for cut in wanted] == ["blocks.0", "blocks.1"]


def test_packed_layers_tell_the_layout(quantised: nn.Module) -> None:
    assert {cut.layout for cut in partition(quantised, randn(5, 6)(2)).cuts} == {"NLC"}


def test_linear_layers_with_weights_are_not_packed() -> None:
    assert not is_packed(nn.Linear(3, 3))


def failing(make: Callable[[], nn.Module], kind: type[nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in zoo.quantised
        return torch.ao.quantization.quantize_dynamic(make().eval(), {kind}, torch.qint8)


def test_other_quantised_layers_are_refused() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    with pytest.raises(PartitionError) as error:
        partition(failing(Recurrent, nn.LSTM), randn(5, 6)(2))
    assert re.search(
        r"try: of quantised layers only those of quantize_dynamic\(model, \{torch.nn.Linear\}\)",
        str(error.value),
    )
