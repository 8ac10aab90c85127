"""What heads are trained on: the backbone is run once per sample and view, the rows are kept on disk.

    loader ──backbone──▶ reduced features by (position, reduction), answers, labels, mask ──▶ Cache

Only as much is in memory as the system cares to map; 16-bit types halve what is on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offramp.data import Array, collect
from offramp.errors import InputError
from offramp.graph import eval_mode
from offramp.heads import reduced
from offramp.network import ExitIndex, ExitNetwork, graph_digest, model_digest

Key = tuple[int, str]
"""(position, reduction): heads with equal keys share cached features."""

Ints = npt.NDArray[np.int64]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""How features may be stored."""


@dataclass(frozen=True)
class Cache:
    """Rows of N samples (views of them, one view after the other), mapped from disk.

    Args:
        features: reduced features (N, ...) by key.
        answers: the full model's outputs (N, M) or (N, L, K).
        labels: (N, ...), or None.
        mask: (N, L) bool, real tokens, where the task has an answer per token and the model a mask.
        given: outputs of exits that are not trained, by exit, where they were asked for.
        digest: of the samples and of all that the features depend on.
        views: N is so many times the number of samples.
    """

    features: Mapping[Key, Tensor]
    answers: Tensor
    labels: Tensor | None
    mask: Tensor | None
    digest: str
    given: Mapping[ExitIndex, Tensor] = field(default_factory=dict)
    views: int = 1

    def rows(self) -> int:
        """N."""
        return len(self.answers)

    def held_out(self, share: float, seed: int) -> npt.NDArray[np.bool_]:
        """(N,) rows of a random share of the samples, in all their views; at least one sample stays."""
        samples = -(-self.rows() // self.views)
        count = min(round(share * samples), samples - 1)
        picked = np.zeros(samples, bool)
        picked[np.random.default_rng((seed, 1)).permutation(samples)[:count]] = True
        return np.tile(picked, self.views)[: self.rows()]


def run_backbone(
    net: ExitNetwork,
    loader: Iterable[Any],
    base: Path,
    *,
    views: int = 1,
    dtype: str = "float32",
    given: bool = False,
    lasting: bool = True,
    progress: bool | None = None,
) -> Cache:
    """Make the cache, or go on with what is stored of it.

    Args:
        net: whose features are wanted.
        loader: see ``train_exits``.
        base: folder to put a folder of rows in.
        views: passes over the loader.
        dtype: of stored features, a key of ``DTYPES``.
        given: whether exits that are not trained are asked, too.
        lasting: whether the folder outlives the process.
        progress: None shows a bar when standard error is a terminal.

    Raises:
        InputError: as ``train_exits`` says.
        StorageError: the folder cannot be written or is full.
    """
    work = _Work(net, DTYPES[dtype], given)
    parts = [*work.identity(), dtype, views]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    rows = collect(
        base / f"features-{name}", net.partition.spec, loader, work.compute,
        label="Running the backbone once", passes=views, lasting=lasting, progress=progress,
    )  # fmt: skip
    tensors = {name: torch.from_numpy(array) for name, array in rows.arrays.items()}
    return Cache(
        {(p, key): _restored(tensors[f"{p}|{key}"], DTYPES[dtype]) for p, key in work.wanted},
        tensors["answers"],
        tensors.get("labels"),
        tensors.get("mask"),
        name + rows.digest,
        {exit_: tensors[_given_name(exit_)] for exit_ in work.given},
        views,
    )


class _Work:
    """One batch to rows."""

    def __init__(self, net: ExitNetwork, dtype: torch.dtype, given: bool) -> None:
        self.net, self._dtype = net, dtype
        self.wanted = {(p, reduction(head, c)): head for p, c, head in net.trained_exits()}
        trained = {(p, c) for p, c, _ in net.trained_exits()}
        self.given = {(p, c): head for p, c, head in net.exits() if given and (p, c) not in trained}

    def identity(self) -> list[Any]:
        """Of everything that the rows depend on, beside the samples."""
        net = self.net
        modules = [[*exit_, model_digest(head), repr(head)] for exit_, head in self.given.items()]
        keys = sorted(self.wanted)
        return [
            graph_digest(net),
            net.positions,
            keys,
            net.output,
            net.mask_input,
            net.task.identity,
            modules,
        ]

    def compute(self, values: list[Tensor], labels: Tensor | None) -> dict[str, Array]:
        net, arrays, mask = self.net, dict[str, Array](), self.net.mask(values)
        with torch.inference_mode(), eval_mode(net):
            for exit_ in self.given:
                arrays[_given_name(exit_)] = self._finite(
                    net.forward_exit(*exit_, values, mask), "an input exit"
                )
            for p, feature in net.features(values):
                if p == len(net.positions):
                    arrays["answers"] = self._finite(feature, "the model's output")
                for (position, key), head in self.wanted.items():
                    if position == p:
                        kept = reduced(head, feature, mask if self._masked(p) else None)
                        what = f"the feature at {net.positions[p]!r}"
                        arrays[f"{p}|{key}"] = self._finite(kept, what, self._dtype)
        if mask is not None and net.task.per_token:
            arrays["mask"] = mask.cpu().numpy()
        if labels is not None:
            labels = net.task.real_labels(labels, mask)
            net.task.check_labels(labels, torch.from_numpy(arrays["answers"]))
            arrays["labels"] = labels.cpu().numpy()
        return arrays

    def _masked(self, position: int) -> bool:
        spec = self.net.specs[position]
        return spec is not None and spec.mask

    def _finite(self, values: Tensor, what: str, dtype: torch.dtype = torch.float32) -> Array:
        values = values.float()
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"{what} is not finite; check the inputs for NaN and the model's weights")
        stored = values.to(dtype)
        if dtype == torch.float16 and not bool(torch.isfinite(stored).all()):
            raise InputError(
                f"{what} reaches {float(values.abs().amax()):g}, more than float16 holds; "
                "pass cache_dtype='bfloat16' or 'float32'"
            )
        stored = stored.cpu()
        array: Array = (stored.view(torch.int16) if dtype == torch.bfloat16 else stored).numpy()
        return array


def _restored(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.view(dtype) if values.dtype == torch.int16 else values  # numpy has no bfloat16


def _given_name(exit_: ExitIndex) -> str:
    return f"given {exit_[0]}|{exit_[1]}"


def reduction(head: nn.Module, index: int) -> str:
    """Which cached feature a head trains on: a shared one, one of its own, or the whole."""
    if not hasattr(head, "reduce"):
        return "whole"
    return str(getattr(head, "reduction", f"own {index}"))


def predicted(head: nn.Module, z: Tensor) -> Tensor:
    """What a head makes of a cached feature, in the head's own type."""
    out: Tensor = head.predict(z) if hasattr(head, "predict") else head(z)  # type: ignore[operator]
    return out


def in_parts(rows: int, compute: Callable[[slice], Tensor], size: int = 1024) -> Tensor:
    """``compute`` of ``size`` rows at a time, put together on the CPU."""
    return torch.cat([compute(slice(start, start + size)).cpu() for start in range(0, rows, size)])


def rows_to_device(values: Tensor, rows: Tensor | slice, device: torch.device) -> Tensor:
    """Some cached features, as heads take them."""
    return values[rows].to(device, torch.float32)


class Scale:
    """Mean and standard deviation (F,) of one cached feature, over rows."""

    def __init__(self, features: Tensor, device: torch.device) -> None:
        flat = features.flatten(1)
        total, square = torch.zeros(2, flat.shape[1], dtype=torch.float64)
        for chunk in torch.split(flat, max(1, 2**21 // flat.shape[1])):  # 16 MiB of doubles at a time
            chunk = chunk.double()
            total += chunk.sum(0)
            square += chunk.square_().sum(0)
        mean = total / len(flat)
        std = (square / len(flat) - mean**2).clamp(min=0).sqrt()
        floor = 0.05 * std.mean() + 1e-6  # a feature that hardly moves must not be blown up
        self.mean = mean.float().to(device)
        self.std = std.clamp(min=floor).float().to(device)

    def __call__(self, z: Tensor) -> Tensor:
        """Standardised, of the same shape."""
        scaled: Tensor = (z.flatten(1) - self.mean) / self.std
        return scaled.view_as(z)
