"""Models whose weights are tensors of a class of their own, as weight-only quantisation makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import offramp
from offramp.errors import InputError
from offramp.network import model_digest

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.top = nn.Linear(6, 3)
        for layer in self.layers:
            weight = layer.weight.detach()
            layer.weight = nn.Parameter(TwoTensor(weight, weight + shift), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.top(x)  # type: ignore[no-any-return]


def plain(value: Tensor) -> Tensor:
    return value.a if isinstance(value, TwoTensor) else value  # type: ignore[no-any-return]


def test_they_take_exits_all_the_way(tmp_path: Path) -> None:
    model = Net().eval()
    net = offramp.attach_exits(model, X[:2], heads=("linear",))
    with torch.no_grad():
        assert torch.equal(plain(offramp.Engine(net)(X).outputs), plain(model(X)))
    assert offramp.measure_cost(net).full == 3 * 36 + 18
    costs = offramp.measure_cost(net)
    config = offramp.ExitConfig((), 1.0, offramp.Expected(1.0, costs.full, 1.0, 1.0, 4))
    frontier = offramp.Frontier([config], {1.0: config}, {"method": "by hand"})
    offramp.save(tmp_path / "art", net, frontier, costs)
    again, _, _ = offramp.load(tmp_path / "art", Net().eval())
    assert again.positions == net.positions
    with pytest.raises(offramp.OfframpError, match="was made for another model"):
        offramp.load(tmp_path / "art", Net(shift=1.0).eval())
    with pytest.raises(InputError, match="is not an ordinary tensor; save with include_backbone=False"):
        offramp.save(tmp_path / "art", net, frontier, costs, include_backbone=True)


def test_digests_see_what_is_inside() -> None:
    assert model_digest(Net()) == model_digest(Net())
    assert model_digest(Net()) != model_digest(Net(shift=1.0))
    ordinary = Net()
    for layer in ordinary.layers:
        layer.weight = nn.Parameter(plain(layer.weight.data))
    assert model_digest(Net()) != model_digest(ordinary)
