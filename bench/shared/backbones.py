"""Training, batches and MACs of backbones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.graph.macs import count_macs, count_module

Labelled = tuple[Tensor, Tensor]
"""Inputs of N samples and their labels (N,) int64."""


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    steps: int,
    name: str,
    scores: Callable[[Any], Tensor] | None = None,
    clip: float = math.inf,
    every: int = 100,
) -> nn.Module:
    """Train a classifier in bf16 autocast: cross-entropy with label smoothing.

    Args:
        model: trained in place.
        batches: inputs and labels (B,); training ends with the last, or after ``steps``.
        optimiser: of the model's parameters.
        schedule: of its learning rate, advanced with every step.
        steps: at most.
        name: begins every line of progress.
        scores: inputs to class scores (B, K); the model itself by default.
        clip: largest norm of the gradient.
        every: how many steps lie between lines of progress.

    Returns:
        The model in eval mode.

    Raises:
        RuntimeError: the loss is not finite.
    """
    scores, start = scores or model, time.perf_counter()
    model.train()
    for step, (inputs, labels) in enumerate(batches, start=1):
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = scores(inputs)
        loss = F.cross_entropy(outputs.float(), labels, label_smoothing=0.05)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"step {step}: expected a finite loss, got {loss.item()}; try another --seed")
        loss.backward()
        if math.isfinite(clip):
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        schedule.step()
        if step % every == 0 or step == steps:
            seconds = time.perf_counter() - start
            print(f"{name}  step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
        if step == steps:
            break
    return model.eval()


def in_batches(data: Labelled, size: int) -> list[Labelled]:
    """Batches in fixed order; the last may be smaller."""
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


@torch.inference_mode()
def accuracy(model: nn.Module, data: Labelled) -> float:
    """Share of samples whose class is right."""
    right = [int((model(x).argmax(1) == y).sum()) for x, y in in_batches(data, 256)]
    return sum(right) / len(data[1])


def macs(model: nn.Module, *shape: int) -> int:
    """Multiply-accumulates of a model for one input of this shape (without the batch)."""
    return count_macs(lambda: count_module(model, torch.empty(1, *shape, device="meta")))[0]
