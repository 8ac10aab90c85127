"""What heads are trained on: the backbone is run once per sample and view, the rows are kept on disk.

    loader ──backbone──▶ reduced features by (position, reduction), answers, labels, mask ──▶ Cache

Only as much is in memory as the system cares to map; 16-bit types halve what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offramp.data import WEIGHTS, Array, collect
from offramp.errors import InputError
from offramp.graph import eval_mode
from offramp.heads import reduced
from offramp.network import ConfidenceFn, ExitIndex, ExitNetwork, graph_digest, model_digest, work_of
from offramp.storage import document_digest
from offramp.training.truth import Truth, checked_labels

Key = tuple[int, str]
"""(position, reduction): heads with equal keys share cached features."""

Ints = npt.NDArray[np.int64]

_FEATURES = "features"  # the name of a folder begins with it

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""How features may be stored."""


@dataclass(frozen=True)
class Cache:
    """Rows of N samples (views of them, one view after the other), mapped from disk.

    Reduced features (N, ...), the full model's outputs, labels or None, the mask (N, L) of real tokens where
    the task has an answer per token, a digest of all that they depend on, outputs of exits not trained,
    weights (N,) of the samples or None.
    """

    features: Mapping[Key, Tensor]
    answers: Tensor
    labels: Tensor | None
    mask: Tensor | None
    digest: str
    given: Mapping[ExitIndex, Tensor] = field(default_factory=dict)
    views: int = 1
    weights: Tensor | None = None

    def rows(self) -> int:
        """N."""
        return len(self.answers)

    def samples(self) -> int:
        """N by the number of views, rounded up."""
        return -(-self.rows() // self.views)

    def truth(self, rows: Tensor) -> Truth:
        """What outputs for some rows are compared with."""
        labels, mask = (None if values is None else values[rows] for values in (self.labels, self.mask))
        return Truth(self.answers[rows], labels, mask)

    def held_out(self, share: float, seed: int) -> npt.NDArray[np.bool_]:
        """(N,) rows of a random share of the samples, in all their views; at least one sample stays."""
        samples = self.samples()
        count = min(round(share * samples), samples - 1)
        picked = np.zeros(samples, bool)
        picked[np.random.default_rng((seed, 1)).permutation(samples)[:count]] = True
        return np.tile(picked, self.views)[: self.rows()]


def collect_rows(
    net: ExitNetwork,
    loader: Iterable[Any],
    folder: Path,
    compute: Callable[[list[Tensor], Tensor | None], Mapping[str, Tensor]],
    depends_on: Mapping[str, Any],
    **options: Any,
) -> tuple[dict[str, Tensor], str]:
    """Rows (N, ...) by name of what ``compute`` gives for (inputs, labels) of a batch, and their digest.

    They are kept in ``folder``, whose name is continued by a digest of the backbone, the task and what else
    they depend on. ``options`` are those of ``collect``.
    """
    name = _dependencies(net, depends_on)

    def arrays(values: list[Tensor], labels: Tensor | None) -> dict[str, Array]:
        return {name: value.cpu().numpy() for name, value in compute(values, labels).items()}

    folder = folder.with_name(f"{folder.name}-{name}")
    rows = collect(folder, net.partition.spec, loader, arrays, macs=work_of(net), **options)
    return {key: torch.from_numpy(array) for key, array in rows.arrays.items()}, name + rows.digest


def _dependencies(net: ExitNetwork, depends_on: Mapping[str, Any]) -> str:
    """A digest of the backbone, the task and what else rows depend on."""
    every = {
        **depends_on,
        "graph": graph_digest(net),
        "positions": net.positions,
        "output": net.output,
        "mask": net.mask_input,
        "task": net.task.identity,
    }
    return document_digest(every)[:16]


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
    """Make the cache in a folder of ``base``, or go on with what is stored of it.

    The loader is gone through ``views`` times; features are stored in ``dtype``, a key of ``DTYPES``. With
    ``given``, exits that are not trained are run, too. Errors are those of ``train_exits``.
    """
    wanted = {(p, reduction(head, c)): head for p, c, head in net.trained_exits()}
    untrained = _untrained(net) if given else {}
    stored = DTYPES[dtype]

    @torch.inference_mode()
    def compute(values: list[Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        rows, mask = dict[str, Tensor](), net.mask(values)
        with eval_mode(net):
            for p, c in untrained:
                outputs = net.forward_exit(p, c, values, mask)
                rows[f"given {p}|{c}"] = _usable(net, outputs, "an input exit")
            for p, feature in net.features(values):
                if p == len(net.positions):
                    rows["answers"] = _usable(net, feature, "the model's output")
                for (position, key), head in wanted.items():
                    if position == p:
                        kept = reduced(head, feature, feature_mask(net, p, mask))
                        what = f"the feature at {net.positions[p]!r}"
                        rows[f"{p}|{key}"] = _finite(kept, what, stored)
        if mask is not None and net.task.per_token:
            rows["mask"] = mask
        if labels is not None:
            rows["labels"] = checked_labels(net, labels, rows["answers"], mask)
        return rows

    tensors, digest = collect_rows(
        net, loader, base / _FEATURES, compute, _features_depend_on(net, views, dtype, untrained),
        label="Running the backbone once", passes=views, lasting=lasting, progress=progress,
    )  # fmt: skip
    return Cache(
        features={(p, key): tensors[f"{p}|{key}"].view(stored) for p, key in wanted},
        answers=tensors["answers"],
        labels=tensors.get("labels"),
        mask=tensors.get("mask"),
        digest=digest,
        weights=tensors.get(WEIGHTS),
        given={(p, c): tensors[f"given {p}|{c}"] for p, c in untrained},
        views=views,
    )


def stored_bytes(
    net: ExitNetwork, base: Path, *, views: int = 1, dtype: str = "float32", given: bool = False
) -> int:
    """What a folder holds already of the rows that ``run_backbone`` would make there."""
    depends_on = _features_depend_on(net, views, dtype, _untrained(net) if given else {})
    folder = base / f"{_FEATURES}-{_dependencies(net, depends_on)}"
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


def _untrained(net: ExitNetwork) -> dict[ExitIndex, nn.Module]:
    trained = {(p, c) for p, c, _ in net.trained_exits()}
    return {(p, c): head for p, c, head in net.exits() if (p, c) not in trained}


def _features_depend_on(
    net: ExitNetwork, views: int, dtype: str, untrained: Mapping[ExitIndex, nn.Module]
) -> dict[str, Any]:
    return {
        "features": sorted({(p, reduction(head, c)) for p, c, head in net.trained_exits()}),
        "given": [[*exit_, model_digest(head), repr(head)] for exit_, head in untrained.items()],
        "dtype": dtype,
        "views": views,
    }


def feature_mask(net: ExitNetwork, position: int, mask: Tensor | None) -> Tensor | None:
    """The mask, where the feature at a position has one."""
    spec = net.specs[position]
    return mask if spec is not None and spec.mask else None


def _usable(net: ExitNetwork, outputs: Tensor, what: str) -> Tensor:
    """Outputs as they are stored; ``InputError`` where the task cannot read them."""
    if not net.task.usable(outputs):
        raise InputError(f"{what} is not finite; check the inputs for NaN and the model's weights")
    return outputs.float()


def _finite(values: Tensor, what: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values as they are stored; ``InputError`` where they are not finite or ``dtype`` does not hold them."""
    values = values.float()
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{what} is not finite; check the inputs for NaN and the model's weights")
    stored = values.to(dtype)
    if dtype == torch.float16 and not bool(torch.isfinite(stored).all()):
        raise InputError(
            f"{what} reaches {float(values.abs().amax()):g}, more than float16 holds; "
            "pass cache_dtype='bfloat16' or 'float32'"
        )
    return stored.view(torch.int16) if dtype == torch.bfloat16 else stored  # numpy has no bfloat16


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


def cached_outputs(
    net: ExitNetwork,
    exit_: ExitIndex,
    head: nn.Module,
    cache: Cache,
    rows: Tensor | slice,
    scale: Scale | None = None,
) -> Tensor:
    """Outputs (n, ...) of an exit on some cached rows, in float32 on the network's device."""
    device = net.partition.spec.device
    if exit_ in cache.given:
        return cache.given[exit_][rows].to(device)
    z = rows_to_device(cache.features[exit_[0], reduction(head, exit_[1])], rows, device)
    dtype = next((p.dtype for p in head.parameters()), torch.float32)
    z = (z if scale is None else scale(z)).to(dtype)
    return net.task.from_head(predicted(head.eval(), z)).float()


@torch.no_grad()
def cached_confidences(
    net: ExitNetwork,
    exits: Mapping[ExitIndex, nn.Module],
    cache: Cache,
    confidence_of: Callable[[ExitIndex], ConfidenceFn],
    scales: Mapping[ExitIndex, Scale],
) -> dict[ExitIndex, Tensor]:
    """(N,) of each exit on all cached rows; ``scales`` standardise what some heads are given."""
    device, found = net.partition.spec.device, {}
    for exit_, head in exits.items():
        confidence_fn, scale = confidence_of(exit_), scales.get(exit_)

        def of_part(part: slice) -> Tensor:
            outputs = cached_outputs(net, exit_, head, cache, part, scale)  # noqa: B023 (called at once)
            mask = None if cache.mask is None else cache.mask[part].to(device)
            return confidence_fn(outputs, mask)  # noqa: B023

        found[exit_] = in_parts(cache.rows(), of_part)
    return found
