"""Networks to export, each hard in its own way, with configurations under which about half leave early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import offramp
import small
from offramp import CostTable, ExitChoice, ExitConfig, ExitNetwork, Expected, Frontier, Regression
from toys import TOYS

CLOSE = 1e-4
"""Confidences this close to a threshold may fall on either side in another runtime."""


@dataclass(frozen=True)
class Case:
    """A network, samples for it, and a frontier of configurations of its exits."""

    net: ExitNetwork
    inputs: Any
    frontier: Frontier
    costs: CostTable

    @property
    def arrays(self) -> Any:
        """The samples without torch."""
        return to_numpy(self.inputs)


def to_numpy(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: value.numpy() for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(value.numpy() for value in inputs)
    return inputs.numpy()


def rows(inputs: Any, index: Any) -> Any:
    """Some of the samples, tensors or arrays."""
    if isinstance(inputs, dict):
        return {name: value[index] for name, value in inputs.items()}
    return tuple(value[index] for value in inputs) if isinstance(inputs, tuple) else inputs[index]


class Reader(nn.Module):
    """Keywords ids (B, 6) and attention_mask (B, 6) to (B, 6, 3): an answer for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(small.Mixer() for _ in range(2))
        self.top = nn.Linear(8, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(ids) * attention_mask[:, :, None]
        for layer in self.layers:
            x = layer(x)
        return self.top(x)


def _picture() -> Case:
    # the cells of a 2x2 and a 4x4 grid are not equal
    x = torch.randn(64, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    net = offramp.attach_exits(
        small.model(small.Picture),
        x[:2],
        heads=("linear", "conv", "linear-4x4"),
        input_exits={"given": small.model(small.Picture, seed=5)},
    )
    first, second = net.positions[1:]
    return _case(net, x, [((first, "conv"), (second, "linear-4x4")), (("input", "given"),)])


def _masked() -> Case:
    model, draw = TOYS["masked"]()
    x = draw(48)
    net = offramp.attach_exits(model, draw(3), heads=("tokens", "attention"), mask="mask")
    first, second = net.positions[1:3]
    return _case(net, x, [((first, "tokens"), (second, "attention"))])


def _tokens() -> Case:
    inputs = {**TOYS["masked"]()[1](48)}
    inputs = {"ids": inputs["ids"], "attention_mask": inputs["mask"]}
    net = offramp.attach_exits(
        small.model(Reader), rows(inputs, slice(0, 2)), heads=("linear",), task="token-classification"
    )
    return _case(net, inputs, [((net.positions[1], "linear"),)])


def _regression() -> Case:
    x = small.inputs(small.Vector)
    net = offramp.attach_exits(
        small.model(small.Vector),
        x[:2],
        heads=("linear",),
        input_exits={"raw": "mlp"},
        task=Regression(scale=[1.0, 2.0, 3.0], center=[0.5, 0.0, -0.5]),
    )
    one = net.positions[1]
    return _case(net, x, [(("input", "raw"), (one, "linear"))])


def _several_labels() -> Case:
    model, draw = TOYS["two inputs"]()
    x = draw(64)
    net = offramp.attach_exits(model, draw(2), heads=("linear",), task="multi-label", confidence="learned")
    generator = torch.Generator().manual_seed(3)
    for calibrator in net.calibrators.values():
        outputs = torch.randn(200, net.outputs, generator=generator)
        calibrator.fit(outputs, (outputs[:, 0] > 0).float())
    return _case(net, x, [((net.positions[2], "linear"),)])


CASES: dict[str, Callable[[], Case]] = {
    "uneven pooling, a model at the input": cache(_picture),
    "carried mask": cache(_masked),
    "answer per token": cache(_tokens),
    "regression, a head at the input": cache(_regression),
    "several labels, learned confidence": cache(_several_labels),
}


def _case(net: ExitNetwork, inputs: Any, chosen: list[tuple[tuple[str, str], ...]]) -> Case:
    costs = offramp.measure_cost(net)
    values = net.partition.spec.flatten(inputs)
    found, _ = net.answers(values)
    configs = []
    for i, exits in enumerate(chosen):
        choices = []
        for position, head in exits:
            p, c = net.positions.index(position), net.head_names.index(head)
            sure = net.confidence_of(p, c)(found[p, c], net.mask(values))
            order = sure.double().sort().values
            choices.append(ExitChoice(position, head, float(order[len(order) // 2 - 1 :][:2].mean())))
        figures = Expected(0.5 + 0.1 * i, costs.full * (0.5 + 0.1 * i), 0.9, costs.full, 64)
        configs.append(ExitConfig(tuple(choices), expected=figures))
    return Case(net.eval(), inputs, Frontier(configs), costs)


def unclear(case: Case, config: ExitConfig) -> np.ndarray[Any, Any]:
    """(N,) samples with a confidence close to a threshold."""
    values = case.net.partition.spec.flatten(case.inputs)
    found, _ = case.net.answers(values)
    close = np.zeros(len(values[0]), bool)
    for choice in config.choices:
        p, c = case.net.positions.index(choice.position), case.net.head_names.index(choice.head)
        sure = case.net.confidence_of(p, c)(found[p, c], case.net.mask(values))
        close |= np.abs(sure.numpy() - np.float32(choice.threshold)) <= CLOSE
    return close


def same_as_engine(engine: Any, case: Case, config: ExitConfig) -> np.ndarray[Any, Any]:
    """Asserts that an engine of another runtime answers as ``Engine``; returns where samples left."""
    reference = offramp.Engine(case.net, config)
    wanted = reference(case.inputs)
    engine.use(config)
    got = engine(case.arrays)
    clear = ~unclear(case, config)
    assert clear.mean() > 0.9
    assert got.position.dtype == np.int64
    assert got.confidence.dtype == np.float32
    assert got.outputs.dtype == wanted.outputs.numpy().dtype
    np.testing.assert_array_equal(got.position[clear], wanted.position.numpy()[clear])
    np.testing.assert_allclose(got.outputs[clear], wanted.outputs.numpy()[clear], atol=CLOSE, rtol=0)
    np.testing.assert_allclose(got.confidence[clear], wanted.confidence.numpy()[clear], atol=CLOSE, rtol=0)
    return got.position
