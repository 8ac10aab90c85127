from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import InputError, PartitionError
from offramp.graph.dataflow import Flow
from offramp.graph.modes import evaluating
from offramp.graph.partition import partition
from offramp.graph.trace import trace
from toys import TOYS, answer, clone, identical, randn, seeded, state


class Faulty(nn.Module):
    """A linear map whose forward has something wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.eval()


class Branching(Faulty):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.sum() > 0:
            x = -x
        return self.line(x)


class FixedBatch(Faulty):
    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(2, 3, 2)  # the example's own batch size
        return self.line(y.reshape(2, 6))


class Length(Faulty):
    def forward(self, x: Tensor) -> Tensor:
        return self.line(x) * len(x)


class Failing(Faulty):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        raise ValueError("out of order")


@dataclass
class Unregistered:
    logits: Tensor


class ReturnsUnregistered(Faulty):
    def forward(self, x: Tensor) -> Unregistered:
        return Unregistered(self.line(x))


class Opaque(Faulty):
    def forward(self, x: Tensor) -> Tensor:
        return self.line(torch.from_numpy(x.numpy()))


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (Branching, PartitionError, ["cannot export Branching", "if x.sum() > 0:", "use torch.where"]),
        (FixedBatch, PartitionError, ["x.reshape(2, 3, 2)", "line ", "use x.shape[0]", "-1 in view"]),
        (Length, PartitionError, ["cannot export Length", "instead of len(x)"]),
        (Failing, InputError, ["the model fails on example_inputs: out of order", "raise ValueError"]),
        (ReturnsUnregistered, PartitionError, ["cannot export", "torch.export.register_dataclass"]),
        (Opaque, PartitionError, ["cannot export Opaque", "torch.from_numpy", "or wrap the model"]),
    ],
)
def test_what_cannot_be_traced_names_the_line_and_what_to_try(
    make: type[Faulty], error: type[Exception], parts: list[str]
) -> None:
    model = seeded(make).train()
    model.line.eval()  # type: ignore[union-attr]
    before, level = state(model), logging.getLogger("torch").level
    with pytest.raises(error) as caught:
        trace(model, randn(6)(2))
    for part in parts:
        assert part in str(caught.value)
    if parts[-1] != "instead of len(x)":
        assert __file__ in str(caught.value) or make is ReturnsUnregistered
    after = state(model)
    assert identical(before.pop("values"), after.pop("values"))
    assert after == before
    assert logging.getLogger("torch").level == level


def test_only_modules_are_traced() -> None:
    with pytest.raises(InputError, match=r"expected a torch.nn.Module, got builtin_function_or_method"):
        trace(torch.relu, randn(6)(2))  # type: ignore[arg-type]


def test_evaluating_restores_every_mode_and_the_fused_path() -> None:
    model = seeded(lambda: nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())))
    model[1].train()  # type: ignore[index]
    before = [module.training for module in model.modules()]

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            assert not torch.backends.mha.get_fastpath_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == before == [False, False, True, True]
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_fused_path_of_attention_is_the_only_difference() -> None:
    """The toy's eager answer on the fused path agrees to rounding where nothing is padded."""
    model, draw = TOYS["encoder"]()
    x, _ = draw(3)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    with torch.no_grad():
        fused = model(x, padding)
    torch.testing.assert_close(partition(model, draw(2)).run((x, padding)), fused)


def test_keyword_inputs_are_found_in_any_order() -> None:
    model, draw = TOYS["masked"]()
    assert list(draw(2)) == ["mask", "ids"]
    found = trace(model, draw(2))
    assert found.spec.names == ("mask", "ids")
    assert [node.name for node in found.inputs] == ["mask", "ids"]
    reordered = dict(reversed(draw(2).items()))
    assert identical(partition(model, reordered).run(draw(3)), answer(model, draw(3)))


def test_parameters_buffers_and_constants_stay_the_models_own() -> None:
    model, draw = TOYS["constants"]()
    found = trace(model, draw(2))
    owned = {id(owner[name]) for owner, name in found.slots.values()}
    assert {id(p) for p in model.parameters()} | {id(model.shift), id(model.k)} <= owned
    assert {node.name for node in found.parameters} == {
        node.name for node, (owner, name) in found.slots.items() if isinstance(owner[name], nn.Parameter)
    }


def test_the_example_is_copied() -> None:
    model, draw = TOYS["in-place"]()
    example = draw(2)
    before = clone(example)
    found = trace(model, example)
    example.zero_()
    assert torch.equal(found.example[0], before)


def test_dead_operations_and_checks_are_dropped() -> None:
    model, draw = TOYS["branches"]()
    found = trace(model, draw(2))
    flow = Flow(found)
    assert sum("linear" in node.name for node in found.nodes) == 13
    assert sum("linear" in node.name for node in flow.nodes) == 9  # four unused ones gone


class Aliases(nn.Module):
    """Writes to values through views, lists of views, and several at once."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        left, right = x.split(2, dim=1)
        torch._foreach_mul_([left, right], 2.0)
        out = torch.empty(x.shape[0], 4)
        torch.add(x, 1, out=out)
        parts = torch.zeros(x.shape[0], 4)
        low, high = parts.split(2, dim=1)
        low.copy_(left)
        high.copy_(right)
        return self.head(self.block(parts) + out.clone())


def test_writes_through_lists_and_out_arguments() -> None:
    model = seeded(Aliases)
    parts = partition(model, randn(4)(2), cuts="all")
    assert identical(parts.run(randn(4)(5)), answer(model, randn(4)(5)))
    flow = parts.flow
    names = {node.name: node for node in flow.nodes}
    changed = next(node for name, node in names.items() if name.startswith("relu"))
    assert flow.is_feature(changed)
    assert flow.is_feature(names["empty"])  # written by out=
    assert flow.is_feature(names["zeros"])  # written through the parts of a list
