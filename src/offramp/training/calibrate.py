"""Fitting a network's confidences  on samples that its heads were not trained on.

unfitted     the network's confidence before anything is fitted
fit_calibrators outputs and what is right -> the states of all calibrators
calibrate    the verb: network + loader -> the network's calibrators fitted
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp._progress import progress_bar
from offramp.core import auroc
from offramp.data import Array, collect
from offramp.errors import InputError
from offramp.network import ConfidenceFn, ExitIndex, ExitNetwork, check_finite, graph_digest, model_digest
from offramp.storage import scratch
from offramp.tasks import get_confidence, get_fitted, is_fitted, token_mean


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


def unfitted(net: ExitNetwork) -> ConfidenceFn:
    """How sure a head is, (outputs, mask) -> (B,), as the network's confidence is before any fit."""
    name = net.confidence
    width = net.task.head_outputs(net.outputs)
    confidence_fn: Callable[[Tensor], Tensor] = (
        get_fitted(name)(width).to(net.partition.spec.device) if is_fitted(name) else get_confidence(name)
    )
    if not net.task.per_token:
        return lambda outputs, mask=None: confidence_fn(outputs)
    return lambda outputs, mask=None: token_mean(
        confidence_fn(outputs.flatten(0, 1)).view(outputs.shape[:2]), mask
    )


def fit_calibrators(
    net: ExitNetwork, outputs: Mapping[ExitIndex, Tensor], truth: Truth, progress: bool | None = None
) -> dict[str, nn.Module]:
    """Calibrators by their names in ``net.calibrators``, on the CPU; the network is not changed.

    Args:
        net: of a fitted confidence.
        outputs: (n, M) or (n, L, K) by exit; position P is the model's own output.
        truth: of the same n samples.
        progress: None shows a bar when standard error is a terminal.
    """
    made: dict[str, nn.Module] = {}
    with progress_bar("Fitting confidences", len(outputs), progress) as advance:
        for (p, c), values in outputs.items():
            calibrator = get_fitted(net.confidence)(net.task.head_outputs(net.outputs))
            calibrator.fit(*truth.rows(net, values.float().cpu()))
            made[f"{p}|{c}"] = calibrator
            advance(len(made))
    return made


@dataclass(frozen=True)
class Truth:
    """What outputs are held against.

    Args:
        answers: (n, ...) the full model's outputs.
        labels: (n, ...), or None: then the full model's answer is right.
        mask: (n, L) real tokens, or None.
    """

    answers: Tensor
    labels: Tensor | None
    mask: Tensor | None

    def quality(self, net: ExitNetwork, outputs: Tensor) -> Tensor:
        """(n,) in [0, 1]."""
        if self.labels is None:
            return net.task.agreement(outputs, self.answers, self.mask)
        return net.task.quality(outputs, self.labels)

    def rows(self, net: ExitNetwork, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (m, M) and quality (m,): one row per sample, or per token that counts."""
        if not net.task.per_token:
            return outputs, self.quality(net, outputs)
        one = outputs.flatten(0, 1).unsqueeze(1)  # each token a sample of one token
        counts = torch.ones(outputs.shape[:2], dtype=torch.bool) if self.mask is None else self.mask
        if self.labels is None:
            quality = net.task.agreement(one, self.answers.flatten(0, 1).unsqueeze(1))
        else:
            quality = net.task.quality(one, self.labels.flatten().unsqueeze(1))
            counts = counts & (self.labels >= 0)  # tokens that are not to be judged have labels below
        return one.squeeze(1)[counts.flatten()], quality[counts.flatten()]


def install(net: ExitNetwork, calibrators: Mapping[str, nn.Module]) -> None:
    """Put fitted states into the network's calibrators."""
    states = [(net.calibrators[name], calibrator.state_dict()) for name, calibrator in calibrators.items()]
    for calibrator, state in states:
        calibrator.load_state_dict(state)


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
    if quality not in ("labels", "agreement"):
        raise InputError(f"quality: expected 'labels' or 'agreement', got {quality!r}")
    if not is_fitted(net.confidence):
        raise InputError(
            f"calibrate: the confidence {net.confidence!r} has nothing to fit; "
            "attach exits with confidence='temperature' or 'learned'"
        )
    with scratch(work_dir) as base, torch.inference_mode(False), torch.no_grad():
        outputs, truth = _outputs(net, loader, quality, base, work_dir is not None, progress)
        calibrators = fit_calibrators(net, outputs, truth, progress)
        install(net, calibrators)
        return _report(net, outputs, truth)


def _outputs(
    net: ExitNetwork, loader: Iterable[Any], quality: str, base: Path, lasting: bool, progress: bool | None
) -> tuple[dict[ExitIndex, Tensor], Truth]:
    exits = [(p, c) for p, c, _ in net.exits()]

    def compute(values: list[Tensor], labels: Tensor | None) -> dict[str, Array]:
        answers, final = net.answers(values)
        check_finite(net, answers, final)
        arrays = {f"{p}|{c}": answers[p, c].float() for p, c in exits} | {"final": final.float()}
        mask = net.mask(values)
        if mask is not None and net.task.per_token:
            arrays["mask"] = mask
        if quality == "labels":
            if labels is None:
                raise InputError("expected labels, got none; pass quality='agreement' to do without")
            labels = net.task.real_labels(labels, mask)
            net.task.check_labels(labels, final)
            arrays["labels"] = labels
        return {name: value.cpu().numpy() for name, value in arrays.items()}

    parts = [
        graph_digest(net), model_digest(net.heads), repr(net.heads), net.positions, net.head_names,
        net.task.identity, net.mask_input, net.output, quality,
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    rows = collect(
        base / f"outputs-{name}", net.partition.spec, loader, compute,
        label="Asking every exit", apart=True, lasting=lasting, progress=progress,
    )  # fmt: skip
    tensors = {name: torch.from_numpy(array) for name, array in rows.arrays.items()}
    truth = Truth(tensors["final"], tensors.get("labels"), tensors.get("mask"))
    outputs = {(p, c): tensors[f"{p}|{c}"] for p, c in exits}
    return outputs | {(len(net.positions), 0): tensors["final"]}, truth


def _report(net: ExitNetwork, outputs: Mapping[ExitIndex, Tensor], truth: Truth) -> CalibrationReport:
    entries, last = [], len(net.positions)
    device = net.partition.spec.device
    for (p, c), values in outputs.items():
        confidence_fn = net.confidence_of(p, c)(
            values.to(device), None if truth.mask is None else truth.mask.to(device)
        )
        figure = auroc(confidence_fn.cpu().numpy(), truth.quality(net, values).numpy())
        name, head = ("output", None) if p == last else (net.positions[p], net.head_names[c])
        entries.append(CalibratedExit(name, head, figure))
    return CalibrationReport(tuple(entries), len(truth.answers))
