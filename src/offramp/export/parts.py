"""What an exported network consists of: graphs and their ports, what they take and answer, and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from offramp.core import CostTable, ExitConfig, Frontier, ResolvedConfig, resolve

BATCH = "batch"
MASK = "mask"


@dataclass(frozen=True)
class Port:
    """A tensor that enters or leaves a graph: name there, shape (B, ...) and NumPy's name of the dtype.

    The shape has "batch" for B, and only plain numbers where there is not one row per sample.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def per_sample(self) -> bool:
        """Whether it has one row per sample."""
        return self.shape[:1] == (BATCH,)


@dataclass(frozen=True)
class Graph:
    """A file that a runtime executes.

    ``inputs`` are activations where it begins (for a head the first of them), and the mask last where its
    name is "mask"; ``outputs`` are activations where it ends, for an answer outputs and confidence.
    """

    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def masked(self) -> bool:
        """Whether the last input is the mask."""
        return bool(self.inputs) and self.inputs[-1].name == MASK


@dataclass(frozen=True)
class SpanGraph(Graph):
    """The operations between two positions, ``start`` and ``stop``; P is the model's output."""

    start: int
    stop: int


@dataclass(frozen=True)
class ExitGraph(Graph):
    """The head of column ``head`` at a position, with its confidence."""

    position: int
    head: int


@dataclass(frozen=True)
class Signature:
    """What an exported network is: P positions, "input" first, C heads, task and confidence by name.

    The model calls its inputs ``names``, the graphs ``inputs``; it is called with a dict if ``keyword``;
    ``mask_input``, if any, is 0 at padding. ``answer`` is one sample's outputs; ``classes`` K names or None.
    """

    positions: tuple[str, ...]
    heads: tuple[str, ...]
    task: str
    confidence: str
    names: tuple[str, ...]
    inputs: tuple[Port, ...]
    keyword: bool
    mask_input: int | None
    answer: Port
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Export:
    """An exported network, read and checked; ``kind`` is "onnx", "onnx-single" or "executorch".

    ``spans`` chain from position 0 to P, or are the single graph; ``exits`` are in order of position and
    column, in a single graph that of its thresholds. ``fused`` are longer spans, which save a runtime the
    work at borders that a configuration does not use; ``check`` is what was compared when it was made, in
    plain JSON values.
    """

    kind: str
    signature: Signature
    frontier: Frontier
    costs: CostTable
    spans: tuple[SpanGraph, ...]
    exits: tuple[ExitGraph, ...]
    fused: tuple[SpanGraph, ...] = ()
    check: Mapping[str, Any] | None = None

    def resolve(self, config: ExitConfig) -> ResolvedConfig:
        """(position, column, threshold) of each choice; an ``InputError`` if one was not exported."""
        exists = np.zeros((len(self.signature.positions), len(self.signature.heads)), bool)
        for graph in self.exits:
            exists[graph.position, graph.head] = True
        return resolve(self.signature.positions, self.signature.heads, exists, config)

    def thresholds(self) -> list[list[float | str]]:
        """Of each exit, for each configuration of the frontier; "inf" where it is off."""
        found = []
        for config in self.frontier:
            chosen = {(position, head): float(value) for position, head, value in self.resolve(config)}
            row = [chosen.get((each.position, each.head), math.inf) for each in self.exits]
            found.append([value if math.isfinite(value) else str(value) for value in row])
        return found
