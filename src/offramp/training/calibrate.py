"""Fitting a network's confidences on samples that its heads were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp._progress import progress_bar
from offramp.core import auroc
from offramp.errors import InputError
from offramp.network import ConfidenceFn, ExitIndex, ExitNetwork, check_finite, model_digest
from offramp.storage import scratch
from offramp.tasks import get_confidence, get_fitted, is_fitted, token_mean
from offramp.training.cache import collect_rows
from offramp.training.truth import Truth, batch_truth, check_quality


@dataclass(frozen=True)
class CalibratedExit:
    """One exit after calibration.

    Args:
        position: its name, "output" for the model's own answer.
        head: its name, or None.
        auroc: of its confidence against its quality on these samples (a little optimistic, they were fitted);
            NaN where all were equally good.
    """

    position: str
    head: str | None
    auroc: float


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration gave: one entry per exit, the model's own output last."""

    exits: tuple[CalibratedExit, ...]
    samples: int

    def __repr__(self) -> str:
        return f"CalibrationReport({len(self.exits)} confidences on {self.samples} samples)"


def unfitted(net: ExitNetwork) -> ConfidenceFn:
    """A head's confidence, (outputs, mask) -> (B,), as the network's is before any fit."""
    width, device = net.task.head_outputs(net.outputs), net.partition.spec.device
    confidence_fn: Callable[[Tensor], Tensor] = (
        get_fitted(net.confidence)(width).to(device)
        if is_fitted(net.confidence)
        else get_confidence(net.confidence)
    )
    if not net.task.per_token:
        return lambda outputs, mask=None: confidence_fn(outputs)
    return lambda outputs, mask=None: token_mean(
        confidence_fn(outputs.flatten(0, 1)).view(outputs.shape[:2]), mask
    )


def fit_calibrators(
    net: ExitNetwork, outputs: Mapping[ExitIndex, Tensor], truth: Truth, progress: bool | None
) -> dict[str, nn.Module]:
    """Calibrators by their names in ``net.calibrators``, on the CPU, fitted on outputs (n, ...) by exit."""
    made: dict[str, nn.Module] = {}
    with progress_bar("Fitting confidences", len(outputs), progress) as advance:
        for (p, c), values in outputs.items():
            calibrator = get_fitted(net.confidence)(net.task.head_outputs(net.outputs))
            calibrator.fit(*truth.rows(net, values.float().cpu()))
            made[f"{p}|{c}"] = calibrator
            advance(len(made))
    return made


def install(states: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Load into the first module of each pair what the second holds; all is read before any is changed."""
    for module, state in [(module, source.state_dict()) for module, source in states]:
        module.load_state_dict(state)


def calibrate(
    net: ExitNetwork,
    loader: Iterable[Any],
    *,
    quality: Literal["labels", "agreement"] = "labels",
    work_dir: str | Path | None = None,
    progress: bool | None = None,
) -> CalibrationReport:
    """Fit the confidences of all exits on other samples than training held out; heads stay as they are.

    Args:
        net: with trained heads, made with a confidence that is fitted (``confidence="learned"``).
        loader: batches of inputs with or without labels; not those that heads are trained on, nor those to
            search or report on. A few thousand samples are enough.
        quality: "labels", or "agreement" with the full model's answers: then no labels are needed.
        work_dir: where outputs are kept while they are made; a killed run given the same folder goes on where
            it stopped. Without it a temporary folder is used.
        progress: None shows a bar when standard error is a terminal.

    Raises:
        InputError: the confidence has nothing to fit, the loader yields nothing, changes, does not fit the
            model or has no labels although they are asked for, or an output is not finite.
        StorageError: the folder cannot be written or is full.
    """
    check_quality("quality", quality)
    if not is_fitted(net.confidence):
        raise InputError(
            f"calibrate: the confidence {net.confidence!r} has nothing to fit; "
            "attach exits with confidence='temperature' or 'learned'"
        )
    exits = [(p, c) for p, c, _ in net.exits()]

    def compute(values: list[Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        answers, final = net.answers(values)
        check_finite(net, answers, final)
        truth = batch_truth(net, quality, labels, final, net.mask(values))
        rows = {f"{p}|{c}": answers[p, c].float() for p, c in exits} | {"final": final.float()}
        if truth.mask is not None and net.task.per_token:
            rows["mask"] = truth.mask
        return rows if truth.labels is None else rows | {"labels": truth.labels}

    depends_on = {
        "heads": [model_digest(net.heads), repr(net.heads), net.head_names],
        "quality": quality,
    }
    with scratch(work_dir) as base, torch.inference_mode(False), torch.no_grad():
        rows, _ = collect_rows(
            net, loader, base / "outputs", compute, depends_on,
            label="Running every exit", apart=True, lasting=work_dir is not None, progress=progress,
        )  # fmt: skip
        truth = Truth(rows["final"], rows.get("labels"), rows.get("mask"))
        outputs = {(p, c): rows[f"{p}|{c}"] for p, c in exits}
        outputs[len(net.positions), 0] = truth.answers
        calibrators = fit_calibrators(net, outputs, truth, progress)
        install((net.calibrators[name], calibrator) for name, calibrator in calibrators.items())
        return _report(net, outputs, truth)


def _report(net: ExitNetwork, outputs: Mapping[ExitIndex, Tensor], truth: Truth) -> CalibrationReport:
    entries, device = [], net.partition.spec.device
    mask = None if truth.mask is None else truth.mask.to(device)
    for (p, c), values in outputs.items():
        confidence = net.confidence_of(p, c)(values.to(device), mask)
        figure = auroc(confidence.cpu().numpy(), truth.quality(net, values).numpy())
        last = p == len(net.positions)
        position, head = ("output", None) if last else (net.positions[p], net.head_names[c])
        entries.append(CalibratedExit(position, head, figure))
    return CalibrationReport(tuple(entries), len(truth.answers))
