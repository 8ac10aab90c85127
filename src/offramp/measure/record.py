"""Recording: a network and a loader give ``ExitRecords``, resumably; the model is not needed after this."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from offramp.core import ExitRecords
from offramp.data import Array, collect
from offramp.errors import InputError
from offramp.network import ExitNetwork, check_finite, graph_digest, model_digest
from offramp.storage import scratch

QualityFn = Callable[[Tensor], Tensor]


def collect_records(
    net: ExitNetwork,
    loader: Iterable[Any],
    use_labels: bool,
    keep_logits: bool,
    work_dir: str | Path | None,
    progress: bool | None,
) -> ExitRecords:
    """Rows (N, exits) of every array, computed resumably, then turned to (P, C, N)."""
    exits = [(p, c) for p, c, _ in net.exits()]
    confidence_fn = {exit_: net.confidence_of(*exit_) for exit_ in exits}
    final_confidence_fn = net.confidence_of(len(net.positions))

    def compute(values: list[Tensor], labels: Tensor | None) -> dict[str, Array]:
        answers, final = net.answers(values)
        mask = net.mask(values)
        check_finite(net, answers, final)
        quality = _judge(net, labels, final, mask, use_labels)
        arrays = {
            "confidence": torch.stack([confidence_fn[e](answers[e], mask) for e in exits], 1),
            "quality": torch.stack([quality(answers[e]) for e in exits], 1),
            "final_confidence": final_confidence_fn(final, mask),
            "final_quality": quality(final),
        }
        if keep_logits:
            arrays["logits"] = torch.stack([answers[e] for e in exits], 1)
        return {name: value.float().cpu().numpy() for name, value in arrays.items()}

    with scratch(work_dir) as base:
        folder = base / f"records-{_fingerprint(net, use_labels, keep_logits)}"
        rows = collect(
            folder, net.partition.spec, loader, compute,
            label="Recording every exit", apart=True, lasting=work_dir is not None, progress=progress,
        )  # fmt: skip
        return _assemble(net, exits, rows.arrays, use_labels)


def _judge(
    net: ExitNetwork, labels: Tensor | None, final: Tensor, mask: Tensor | None, use_labels: bool
) -> QualityFn:
    """What gives the quality (B,) of outputs for one batch."""
    if not use_labels:
        return lambda outputs: net.task.agreement(outputs, final, mask)
    if labels is None:
        raise InputError(
            "expected labels, got none; pass quality='agreement' to compare with the full model instead"
        )
    given = net.task.real_labels(labels, mask)
    net.task.check_labels(given, final)
    return lambda outputs: net.task.quality(outputs, given)


def _fingerprint(net: ExitNetwork, *options: bool) -> str:
    parts = [
        graph_digest(net),
        model_digest(net),
        repr(net.heads),
        net.positions,
        net.head_names,
        net.confidence,
        net.task.identity,
        net.mask_input,
        net.output,
        options,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _assemble(
    net: ExitNetwork, exits: list[tuple[int, int]], rows: dict[str, Array], use_labels: bool
) -> ExitRecords:
    size = (len(net.positions), len(net.head_names))
    full: dict[str, Array] = {}
    for name in ("confidence", "quality", "logits"):
        if name in rows:
            full[name] = np.zeros((*size, *np.delete(rows[name].shape, 1)), np.float32)
    for i, (p, c) in enumerate(exits):
        for name, array in full.items():
            array[p, c] = rows[name][:, i]
    return ExitRecords(
        confidence=full["confidence"],
        quality=full["quality"],
        final_quality=np.array(rows["final_quality"]),
        exists=net.exists,
        positions=net.positions,
        heads=net.head_names,
        final_confidence=np.array(rows["final_confidence"]),
        logits=full.get("logits"),
        quality_kind="labels" if use_labels else "agreement",
        meta={
            "task": net.task.name,
            "confidence": net.confidence,
            **({"task_options": net.task.options()} if net.task.options() else {}),
        },
    )


def record_outputs(
    net: ExitNetwork,
    loader: Iterable[Any],
    *,
    quality: Literal["labels", "agreement"] = "labels",
    keep_logits: bool = False,
    work_dir: str | Path | None = None,
    progress: bool | None = None,
) -> ExitRecords:
    """Run every exit on every sample and keep confidence and quality.

    Args:
        net: with trained heads.
        loader: batches of inputs with or without labels, of the split to search or to report on.
        quality: "labels" compares with the labels; "agreement" with the full model's own answer, so no labels
            are needed and the full model's quality is 1 by definition.
        keep_logits: also keep every exit's outputs, (P, C, N, K).
        work_dir: where rows are kept while they are made; a killed run given the same folder goes on where it
            stopped. Without it a temporary folder is used.
        progress: None shows a bar when standard error is a terminal.

    Raises:
        InputError: the loader yields nothing, changes, does not fit the model, has no labels although
            ``quality="labels"``, has labels out of range, or the model or an exit gives NaN.
        StorageError: the folder cannot be written or is full.
    """
    if quality not in ("labels", "agreement"):
        raise InputError(f"quality: expected 'labels' or 'agreement', got {quality!r}")
    return collect_records(net, loader, quality == "labels", keep_logits, work_dir, progress)
