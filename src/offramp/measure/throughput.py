"""Run an engine over a stream of batches and say what came out: quality, MACs, time, where samples left.

``run_stream`` switches between configurations on batches in memory; ``measure_stream`` goes through a loader
once, batch by batch, however large it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp._progress import progress_bar
from offramp.core import ExitConfig
from offramp.data import InputSpec, checked_batches
from offramp.errors import InputError
from offramp.graph import evaluating
from offramp.runtime import Engine

Batch = tuple[Any, Tensor | None]
"""Inputs as the model takes them, and labels where there are any."""


@dataclass(frozen=True)
class RunResult:
    """Figures of one configuration over a stream.

    Args:
        quality: mean quality against the labels; None where there are none.
        relative_macs: executed, as a fraction of the full model's.
        milliseconds: median time of one batch.
        exit_shares: fraction of samples that left at each position; the last is the model's output.
    """

    quality: float | None
    relative_macs: float
    milliseconds: float
    exit_shares: tuple[float, ...]


def read_batches(spec: InputSpec, loader: Iterable[Any]) -> list[Batch]:
    """A loader's batches, checked, in memory.

    Raises:
        InputError: it yields nothing, or a batch does not fit the model.
    """
    return [(_as_inputs(spec, values), labels) for values, labels in checked_batches(spec, loader)]


@dataclass(frozen=True)
class Measured:
    """One configuration and the plain model over a loader.

    Args:
        result: of the engine.
        plain_milliseconds: median time of one batch through the user's own model.
        batches: how many there were.
    """

    result: RunResult
    plain_milliseconds: float
    batches: int


def measure_loader(
    engine: Engine, loader: Iterable[Any], rounds: int = 3, progress: bool | None = None
) -> Measured:
    """Go through a loader once; each batch is answered by the engine and by the plain model in turns.

    Args:
        engine: under the configuration to measure.
        loader: batches of inputs with or without labels.
        rounds: how often each batch is answered; times are medians over batches and rounds.
        progress: None shows a bar when standard error is a terminal.

    Raises:
        InputError: the loader yields nothing, a batch does not fit the model, or an answer is not finite.
    """
    spec, times, plain = engine.net.partition.spec, list[float](), list[float]()
    qualities: list[tuple[float, int] | None] = []
    engine.reset_stats()
    with progress_bar("Running the engine", _length(loader), progress) as advance:
        for values, labels in checked_batches(spec, loader):
            batch = (_as_inputs(spec, values), labels)
            for turn in range(rounds):
                quality = _timed(engine, batch, times)
                if turn == 0:
                    qualities.append(quality)
                plain.append(_time_plain(engine, batch[0]))
            advance(len(qualities))
    result = _result(engine, qualities, times)
    return Measured(result, 1e3 * statistics.median(plain), len(qualities))


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def run_stream(
    engine: Engine, batches: Sequence[Batch], configs: Sequence[ExitConfig], rounds: int = 3
) -> list[RunResult]:
    """Answer the same stream under each configuration, switching live, in turns.

    Args:
        engine: is switched by ``use``; no reload, no copy.
        batches: the stream.
        configs: to switch between; each sees the whole stream in every round.
        rounds: how often; times are medians over batches and rounds.
    """
    for config in configs:
        engine.prepare(config)
    times: list[list[float]] = [[] for _ in configs]
    results: list[RunResult] = []
    for turn in range(rounds):
        for i, config in enumerate(configs):
            engine.use(config)
            engine.reset_stats()
            qualities = [_timed(engine, batch, times[i]) for batch in batches]
            if turn == rounds - 1:
                results.append(_result(engine, qualities, times[i]))
    return results


def time_model(engine: Engine, batches: Sequence[Batch], rounds: int = 3) -> float:
    """Median milliseconds of one batch through the user's own model, without Offramp."""
    times = [_time_plain(engine, inputs) for _ in range(rounds) for inputs, _labels in batches]
    return 1e3 * statistics.median(times)


def _time_plain(engine: Engine, inputs: Any) -> float:
    """Seconds that the user's own model takes for one batch."""
    model, spec = engine.net.backbone, engine.net.partition.spec
    args, kwargs = spec.call([value.clone() for value in spec.flatten(inputs)])  # it may write to them
    with evaluating(model), torch.inference_mode():
        start = time.perf_counter()
        model(*args, **kwargs)
        _wait(spec.device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given: an accelerator answers before it has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _timed(engine: Engine, batch: Batch, times: list[float]) -> tuple[float, int] | None:
    """Answer one batch; returns (sum of qualities, samples) where there are labels."""
    inputs, labels = batch
    net = engine.net
    start = time.perf_counter()
    outputs = engine(inputs).outputs
    _wait(net.partition.spec.device)
    times.append(time.perf_counter() - start)
    if not bool(torch.isfinite(outputs).all()):
        raise InputError("the model's output is not finite for some inputs; check the inputs for NaN")
    if labels is None:
        return None
    answers, mask = net.task.from_model(outputs), net.mask(net.partition.spec.flatten(inputs))
    real = net.task.real_labels(labels, mask)
    net.task.check_labels(real, answers)
    return float(net.task.quality(answers, real).sum()), len(outputs)


def _result(engine: Engine, qualities: Sequence[tuple[float, int] | None], times: list[float]) -> RunResult:
    stats = engine.stats()
    known = [q for q in qualities if q is not None]
    quality = sum(q for q, _ in known) / sum(n for _, n in known) if known else None
    shares = tuple(count / stats.samples for count in stats.exits)
    return RunResult(quality, stats.macs / stats.full_macs, 1e3 * statistics.median(times), shares)


def _as_inputs(spec: InputSpec, values: list[Tensor]) -> Any:
    return dict(zip(spec.names, values, strict=True)) if spec.keyword else tuple(values)
