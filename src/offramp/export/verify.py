"""Whether an exported graph gives what PyTorch gives: asked of the runtime itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.export.engine import Array, Call
from offramp.export.manifest import ExitGraph, Port, Signature
from offramp.export.pieces import Piece
from offramp.graph import evaluating

TOLERANCE = 1e-4
"""How far a result may be from PyTorch's, as a share of the largest value, or of 1 if that is less."""

_NAMES = ("outputs", "confidence")


class Check:
    """Compares graphs one by one and remembers the largest difference.

    Args:
        runtime: its name and version, for those who look later.
        tolerance: see ``TOLERANCE``.
    """

    def __init__(self, runtime: str, tolerance: float = TOLERANCE) -> None:
        self.runtime, self.tolerance, self.largest = runtime, tolerance, 0.0

    def piece(self, piece: Piece, run: Call, *, dynamic: bool = True) -> None:
        """Compare a graph with its module.

        Args:
            piece: what was written.
            run: the graph, loaded by the runtime.
            dynamic: whether it takes any batch: it is asked for one sample and for one more than the example
                has, else for the example.

        Raises:
            InputError: a result differs by more than the tolerance.
        """
        for values in (_first(piece), _one_more(piece)) if dynamic else (list(piece.example),):
            with evaluating(piece.module):
                wanted = piece.module(*[value.clone() for value in values])
            self.values(piece.graph.file, piece.graph.outputs, wanted, run([v.numpy() for v in values]))

    def single(self, pieces: Sequence[Piece], signature: Signature, session: Any) -> None:
        """Compare one graph of everything: all exits off, then each alone with every sample leaving.

        Args:
            pieces: for one sample.
            signature: of the network.
            session: the graph, loaded by ONNX Runtime.

        Raises:
            InputError: a result differs by more than the tolerance.
        """
        exits = [(piece, each.position) for piece in pieces if isinstance(each := piece.graph, ExitGraph)]
        inputs = {p.name: v.numpy() for p, v in zip(signature.inputs, pieces[0].example, strict=False)}
        asked = [None, *(i for i, (each, _) in enumerate(exits) if bool(each.results[1].isfinite().all()))]
        for index in asked:
            thresholds = np.full(len(exits), np.inf, np.float32)
            piece, position = pieces[-1], len(signature.positions)
            if index is not None:
                thresholds[index] = -np.inf
                piece, position = exits[index]
            outputs, left, confidence = session.run(None, {**inputs, "thresholds": thresholds})
            what = f"{piece.graph.file} within one graph"
            self._compare(f"{what}: position", np.full(1, position, np.int32), left)
            for name, want, got in zip(_NAMES, piece.results, (outputs, confidence), strict=True):
                self._compare(f"{what}: {name}", want.numpy(), got)

    def values(
        self, file: str, ports: Sequence[Port], wanted: Sequence[Tensor], got: Sequence[Array]
    ) -> None:
        """Compare a graph's results with the wanted ones.

        Raises:
            InputError: one differs by more than the tolerance.
        """
        for port, want, have in zip(ports, wanted, got, strict=True):
            self._compare(f"{file}: {port.name}", want.numpy(), have)

    def found(self) -> dict[str, Any]:
        """What was compared, as plain JSON values."""
        return {"runtime": self.runtime, "tolerance": self.tolerance, "largest_difference": self.largest}

    def _compare(self, what: str, wanted: Array, got: Array) -> None:
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            raise InputError(
                f"export: {what}: expected {wanted.dtype}{list(wanted.shape)} as in PyTorch, {self.runtime} "
                f"gives {got.dtype}{list(got.shape)}; cut the model elsewhere, or run it with offramp.Engine"
            )
        difference = distance(wanted, got)
        if not difference <= self.tolerance:
            raise InputError(
                f"export: {what}: {self.runtime} differs from PyTorch by {difference:.2g}, expected at most "
                f"{self.tolerance:g} of the largest value; cut the model elsewhere, or run it with "
                "offramp.Engine"
            )
        self.largest = max(self.largest, difference)


def distance(wanted: Array, got: Array) -> float:
    """Largest difference as a share of the largest value, or of 1; infinite where one is not finite."""
    with np.errstate(invalid="ignore"):
        a, b = wanted.astype(np.float64), got.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        apart = np.where(same, 0.0, np.abs(a - b))
    if not apart.size:
        return 0.0
    finite = np.abs(a[np.isfinite(a)])
    found = float(np.nan_to_num(apart, nan=np.inf).max())
    return found / max(1.0, float(finite.max()) if finite.size else 1.0)


def _first(piece: Piece) -> list[Tensor]:
    return _rows(piece, slice(0, 1))


def _one_more(piece: Piece) -> list[Tensor]:
    pairs = zip(_rows(piece, slice(None)), _first(piece), piece.graph.inputs, strict=True)
    return [torch.cat([every, first]) if port.per_sample else every for every, first, port in pairs]


def _rows(piece: Piece, rows: slice) -> list[Tensor]:
    pairs = zip(piece.example, piece.graph.inputs, strict=True)
    return [value[rows] if port.per_sample else value for value, port in pairs]
