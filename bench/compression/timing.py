"""Seconds per image of every network, side by side: all run on each batch, in random order.

A slow moment of the machine hits neighbours alike, and none always follows a large model that has filled the
caches. A batch counts with the median of its rounds; since images leave at different exits, what is reported
is the mean over batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import offramp
from bench.compression.compare import BOTH, SMALL, Row
from bench.compression.networks import Made
from bench.shared.backbones import Labelled, in_batches
from offramp import ExitConfig

Call = Callable[[Tensor], Tensor]
"""Images (B, 1, 28, 28) to class scores (B, 10)."""


def caller(made: Made, config: ExitConfig) -> Call:
    """The unmodified model where there are no exits, an engine where there are."""
    if not config.choices:
        model: nn.Module = made.net.backbone.eval()
        return model
    engine = offramp.Engine(made.net, config, costs=made.costs)
    return lambda images: engine(images).outputs


@torch.inference_mode()
def side_by_side(
    calls: Mapping[str, Call], data: Sequence[Labelled], rounds: int
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, int]]:
    """Time every call on every batch.

    Args:
        calls: by name.
        data: batches of images and labels.
        rounds: how often.

    Returns:
        (seconds by name, (rounds, batches); right answers of the first round by name).
    """
    names, order, right = list(calls), np.random.default_rng(0), dict.fromkeys(calls, 0)
    seconds = {name: np.zeros((rounds, len(data))) for name in names}
    for images, _ in data[:10]:
        for call in calls.values():
            call(images)
    for turn in range(rounds):
        for i, (images, labels) in enumerate(data):
            for name in order.permutation(names).tolist():
                start = time.perf_counter()
                outputs = calls[name](images)
                seconds[name][turn, i] = time.perf_counter() - start
                if not turn:
                    right[name] += int((outputs.argmax(1) == labels).sum())
    return seconds, right


def full_batches(data: Labelled, size: int, most: int | None = None) -> list[Labelled]:
    """Batches of exactly ``size`` in order, of the first ``most`` images."""
    images, labels = (values[:most] for values in data)
    return [(x, y) for x, y in in_batches((images, labels), size) if len(x) == size]


def with_seconds(
    rows: Sequence[Row], full: Made, small: Made, batches: Sequence[Labelled], rounds: int
) -> list[dict[str, Any]]:
    """Rows of ``compare`` with times and accuracies as answered.

    ``ms`` is milliseconds per image, ``time`` the share of the full model's. Rows without a configuration
    stay as they are.

    Args:
        rows: to be timed, the full model first.
        full: the uncompressed network.
        small: the compressed one.
        batches: to time on, all of one size.
        rounds: how often.
    """
    calls = {
        str(i): caller(small if row["way"] in (SMALL, BOTH) else full, ExitConfig.from_json(row["config"]))
        for i, row in enumerate(rows)
        if row["config"] is not None
    }
    seconds, right = side_by_side(calls, batches, rounds)
    size = len(batches[0][0])
    means = {name: float(np.median(values, 0).mean()) / size for name, values in seconds.items()}
    timed = [dict(row) for row in rows]
    for name, mean in means.items():
        answered = right[name] / (size * len(batches))
        timed[int(name)] |= {"ms": 1e3 * mean, "time": mean / means["0"], "answered": answered}
    return timed
