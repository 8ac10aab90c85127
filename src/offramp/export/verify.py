"""Whether an exported graph gives what PyTorch gives, found out by running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.export.engine import Array, Call
from offramp.export.manifest import ExitGraph, Graph, Signature
from offramp.export.pieces import Piece
from offramp.graph import evaluating

TOLERANCE = 1e-4
"""How far a result may be from PyTorch's, as a share of the largest value, or of 1 if that is less."""


class Check:
    """Compares graphs with PyTorch one by one and remembers the largest difference.

    A result that differs by more than ``TOLERANCE`` raises an ``InputError``. ``runtime`` is the name and
    version of what runs the graphs, for those who look later.
    """

    def __init__(self, runtime: str) -> None:
        self.runtime, self.largest = runtime, 0.0

    def piece(self, piece: Piece, run: Call, *, dynamic: bool = True) -> None:
        """Compare a loaded graph with its module, on one sample and on one more than the example has.

        If it takes no other batch, not being ``dynamic``, it is run on the example alone.
        """
        example = list(piece.example)
        batches = [example]
        if dynamic:
            per_sample = [port.per_sample for port in piece.graph.inputs]
            pairs = list(zip(example, per_sample, strict=True))
            first = [value[:1] if each else value for value, each in pairs]
            more = [torch.cat([value, value[:1]]) if each else value for value, each in pairs]
            batches = [first, more]
        for values in batches:
            with evaluating(piece.module):
                wanted = piece.module(*[value.clone() for value in values])
            self.values(piece.graph, wanted, run([value.numpy() for value in values]))

    def single(self, pieces: Sequence[Piece], signature: Signature, session: Any) -> None:
        """Compare one graph of everything, loaded by ONNX Runtime, with pieces for one sample.

        First all exits are off, then each alone is on with every sample leaving.
        """
        exits = [(piece, each.position) for piece in pieces if isinstance(each := piece.graph, ExitGraph)]
        inputs = {p.name: v.numpy() for p, v in zip(signature.inputs, pieces[0].example, strict=False)}
        finite = [i for i, (each, _) in enumerate(exits) if bool(each.results[1].isfinite().all())]
        for index in (None, *finite):
            thresholds = np.full(len(exits), np.inf, np.float32)
            piece, position = pieces[-1], len(signature.positions)
            if index is not None:
                thresholds[index] = -np.inf
                piece, position = exits[index]
            outputs, left, confidence = session.run(None, {**inputs, "thresholds": thresholds})
            within = " within one graph"
            self._compare(f"{piece.graph.file}{within}: position", np.full(1, position, np.int32), left)
            self.values(piece.graph, piece.results, (outputs, confidence), within)

    def values(self, graph: Graph, wanted: Sequence[Tensor], got: Sequence[Array], where: str = "") -> None:
        """Compare a graph's results with the wanted ones."""
        for port, want, have in zip(graph.outputs, wanted, got, strict=True):
            self._compare(f"{graph.file}{where}: {port.name}", want.numpy(), have)

    def found(self) -> dict[str, Any]:
        """What was compared, as plain JSON values."""
        return {"runtime": self.runtime, "tolerance": TOLERANCE, "largest_difference": self.largest}

    def _compare(self, what: str, wanted: Array, got: Array) -> None:
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            raise InputError(
                f"export: {what}: expected {wanted.dtype}{list(wanted.shape)} as in PyTorch, {self.runtime} "
                f"gives {got.dtype}{list(got.shape)}; cut the model elsewhere, or run it with offramp.Engine"
            )
        difference = distance(wanted, got)
        if not difference <= TOLERANCE:
            raise InputError(
                f"export: {what}: {self.runtime} differs from PyTorch by {difference:.2g}, expected at most "
                f"{TOLERANCE:g} of the largest value; cut the model elsewhere, or run it with "
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
