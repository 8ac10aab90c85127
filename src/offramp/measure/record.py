"""Recording: a network and a loader give ``ExitRecords``, resumably; the model is not needed after this."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.core import ExitRecords
from offramp.data import WEIGHTS
from offramp.errors import InputError
from offramp.network import ExitNetwork, check_finite, model_digest
from offramp.storage import scratch
from offramp.training import batch_truth, check_quality, collect_rows


def record_outputs(
    net: ExitNetwork,
    loader: Iterable[Any],
    *,
    quality: Literal["labels", "agreement"] = "labels",
    keep_logits: bool = False,
    groups: npt.ArrayLike | None = None,
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
        groups: (N,) whole numbers, in the order of the loader: which samples belong together, such as views
            of one picture. Kept with the records; ``search`` goes by it. Samples labelled -100 are left out
            of the records, and of these.
        work_dir: where rows are kept while they are made; a killed run given the same folder goes on where it
            stopped. Without it a temporary folder is used.
        progress: None shows a bar when standard error is a terminal.

    Raises:
        InputError: the loader yields nothing, changes, does not fit the model, has no labels although
            ``quality="labels"``, has labels out of range, the model or an exit gives NaN, or the heads are
            not trained.
        StorageError: the folder cannot be written or is full.
    """
    check_quality("quality", quality)
    if net.untrained:
        raise InputError(
            "record_outputs: the heads are not trained yet, they still have their initial weights; call "
            "train_exits(net, loader) first, or load an artifact"
        )
    exits = [(p, c) for p, c, _ in net.exits()]
    confidence_fns = [net.confidence_of(p, c) for p, c in exits]
    final_confidence_fn = net.confidence_of(len(net.positions))

    def compute(values: list[Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        answers, final = net.answers(values)
        mask = net.mask(values)
        check_finite(net, answers, final)
        truth = batch_truth(net, quality, labels, final, mask)
        outputs = [answers[exit_] for exit_ in exits]
        confidence = [fn(each, mask) for fn, each in zip(confidence_fns, outputs, strict=True)]
        rows = {
            "confidence": torch.stack(confidence, 1),
            "quality": torch.stack([truth.quality(net, each) for each in outputs], 1),
            "final_confidence": final_confidence_fn(final, mask),
            "final_quality": truth.quality(net, final),
        }
        counted = truth.counted(net)
        rows["counted"] = torch.ones(len(final)) if counted is None else counted
        if keep_logits:
            rows["logits"] = torch.stack(outputs, 1)
        return {name: value.float() for name, value in rows.items()}

    depends_on = {
        "net": [model_digest(net), repr(net.heads), net.head_names, net.confidence],
        "options": [quality, keep_logits],
    }
    with scratch(work_dir) as base:
        rows, _ = collect_rows(
            net, loader, base / "records", compute, depends_on,
            label="Recording every exit", apart=True, lasting=work_dir is not None, progress=progress,
        )  # fmt: skip
        if WEIGHTS in rows:
            _tell_of_weights()
        kept = rows.pop("counted") > 0
        if not bool(kept.any()):
            raise InputError("record_outputs: no sample has a label, all are -100; give some samples labels")
        if not bool(kept.all()):
            rows = {name: value[kept] for name, value in rows.items()}
            groups = None if groups is None else np.asarray(groups)[kept.numpy()]
        return ExitRecords(
            confidence=_by_exit(net.exists, rows["confidence"]),
            quality=_by_exit(net.exists, rows["quality"]),
            final_quality=rows["final_quality"].numpy().copy(),
            exists=net.exists,
            positions=net.positions,
            heads=net.head_names,
            final_confidence=rows["final_confidence"].numpy().copy(),
            logits=_by_exit(net.exists, rows["logits"]) if keep_logits else None,
            quality_kind=quality,
            groups=None if groups is None else np.asarray(groups),
            meta={
                "task": net.task.name,
                "confidence": net.confidence,
                **({"task_options": net.task.options()} if net.task.options() else {}),
            },
        )


def _tell_of_weights() -> None:
    warnings.warn(
        "the loader gives sample weights: train_exits goes by them, records and search count every sample "
        "once; repeat or leave out samples where that matters",
        stacklevel=3,
    )


def _by_exit(exists: npt.NDArray[np.bool_], rows: Tensor) -> npt.NDArray[np.float32]:
    """(N, exits, ...) to (P, C, N, ...), 0 where there is no exit."""
    found = np.zeros((*exists.shape, len(rows), *rows.shape[2:]), np.float32)
    found[exists] = rows.transpose(0, 1).numpy()
    return found
