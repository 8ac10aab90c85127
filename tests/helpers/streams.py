"""What the tests of the stream engine share: configurations, a stopped engine, observed exits, a clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

import offramp
from offramp import ExitChoice, ExitConfig
from offramp.streaming.engine import StreamEngine

BORDER = 1e-5  # batch size moves the last bits of a confidence
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LONG = 30  # seconds that nothing here takes


def confidences(net: offramp.ExitNetwork, x: Any) -> dict[tuple[int, int], np.ndarray]:
    """Of every exit on every sample."""
    values = net.partition.spec.flatten(x)
    found, _ = net.answers(values)
    mask = net.mask(values)
    return {exit_: net.confidence_of(*exit_)(out, mask).numpy() for exit_, out in found.items()}


def config_at(
    net: offramp.ExitNetwork, confidence: dict, exits: list[tuple[int, int]], share: float
) -> ExitConfig:
    """A share of all samples would leave at each exit."""
    return ExitConfig([
        ExitChoice(net.positions[p], net.head_names[c], float(np.quantile(confidence[p, c], share)))
        for p, c in exits
    ])  # fmt: skip


@contextmanager
def held(engine: StreamEngine, sample: Tensor) -> Iterator[None]:
    """The engine's thread stands still inside: everything submitted waits."""
    standing, go_on = threading.Event(), threading.Event()

    def stand(_: object) -> None:
        standing.set()
        go_on.wait(LONG)

    engine.submit(sample, config=ExitConfig()).add_done_callback(stand)
    assert standing.wait(LONG)
    try:
        yield
    finally:
        go_on.set()


class Watched(nn.Module):
    """A head that says when it runs."""

    def __init__(self, head: nn.Module, told: Any) -> None:
        super().__init__()
        self.head, self.told = head, told

    def forward(self, x: Tensor) -> Tensor:
        self.told(x)
        return self.head(x)


@contextmanager
def watched(net: offramp.ExitNetwork, position: int, told: Any) -> Iterator[None]:
    """``told`` is called whenever the exit at a position runs."""
    heads = net.heads[position]
    before = heads["linear"]
    heads["linear"] = Watched(before, told)
    try:
        yield
    finally:
        heads["linear"] = before


def never(net: offramp.ExitNetwork) -> ExitConfig:
    """All exits run and nobody leaves."""
    return ExitConfig([ExitChoice(name, "linear", float("inf")) for name in net.positions[1:]])


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
