"""Run an engine over batches and say what came out: quality, MACs, time, where samples left.

``run_configs`` switches between configurations on batches in memory; ``measure_loader`` goes through a loader
once, batch by batch, however large it is.
"""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp._progress import progress_bar
from offramp.core import ExitConfig
from offramp.data import InputSpec, checked_batches, threads_for
from offramp.errors import InputError
from offramp.graph import evaluating
from offramp.measure.cost import synchronize
from offramp.network import work_of
from offramp.runtime import Engine
from offramp.training import checked_labels

LabelledInputs = tuple[Any, Tensor | None]
"""Inputs of one batch as the model takes them, and labels where there are any."""


@dataclass(frozen=True)
class RunResult:
    """Figures of one configuration over all batches.

    Mean quality against the labels (None without), MACs executed as a fraction of the full model's, median
    time of one batch, and the fraction of samples that left at each position, the model's output last.
    """

    quality: float | None
    relative_macs: float
    milliseconds: float
    exit_shares: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """One configuration over a loader of so many batches, and the user's own model's median time for one."""

    result: RunResult
    unmodified_milliseconds: float
    batches: int


def read_batches(spec: InputSpec, loader: Iterable[Any]) -> list[LabelledInputs]:
    """A loader's batches in memory; ``InputError`` where it yields nothing or one does not fit the model."""
    return [(_as_inputs(spec, values), labels) for values, labels in checked_batches(spec, loader)]


def measure_loader(
    engine: Engine, loader: Iterable[Any], rounds: int = 3, progress: bool | None = None
) -> Measured:
    """Go through a loader once; each batch is answered by the engine and by the unmodified model in turns.

    Each is answered ``rounds`` times; times are medians over batches and rounds. ``InputError`` where the
    loader yields nothing, a batch does not fit the model, or an answer is not finite.
    """
    spec, times, unmodified = engine.net.partition.spec, list[float](), list[float]()
    qualities = list[list[float]]()
    engine.reset_stats()
    batches = operator.length_hint(loader) or None
    with progress_bar("Running the engine", batches, progress) as advance:
        for values, labels in checked_batches(spec, loader):
            inputs = _as_inputs(spec, values)
            with _threads(engine, len(values[0])):
                for _ in range(rounds):
                    quality = _timed(engine, (inputs, labels), times)
                    unmodified.append(_time_unmodified(engine, inputs))
            qualities.append(quality)
            advance(len(qualities))
    return Measured(_result(engine, qualities, times), 1e3 * statistics.median(unmodified), len(qualities))


def run_configs(
    engine: Engine, batches: Sequence[LabelledInputs], configs: Sequence[ExitConfig], rounds: int = 3
) -> list[RunResult]:
    """Answer the same batches under each configuration, switching live, in turns.

    The engine is switched by ``use``, without reload or copy; each configuration sees all batches in every
    round, and times are medians over batches and rounds.
    """
    for config in configs:
        engine.prepare(config)
    times: list[list[float]] = [[] for _ in configs]
    with _threads(engine, _most_rows(engine, batches)):
        for _ in range(rounds):
            results = []
            for config, taken in zip(configs, times, strict=True):
                engine.use(config)
                engine.reset_stats()
                qualities = [_timed(engine, batch, taken) for batch in batches]
                results.append(_result(engine, qualities, taken))
    return results


def time_model(engine: Engine, batches: Sequence[LabelledInputs], rounds: int = 3) -> float:
    """Median milliseconds of one batch through the user's own model, without Offramp."""
    with _threads(engine, _most_rows(engine, batches)):
        times = [_time_unmodified(engine, inputs) for _ in range(rounds) for inputs, _labels in batches]
    return 1e3 * statistics.median(times)


def _threads(engine: Engine, rows: int) -> AbstractContextManager[None]:
    return threads_for(rows * work_of(engine.net), "Running the engine")


def _most_rows(engine: Engine, batches: Sequence[LabelledInputs]) -> int:
    return max((len(engine.net.partition.spec.flatten(inputs)[0]) for inputs, _ in batches), default=0)


def _time_unmodified(engine: Engine, inputs: Any) -> float:
    """Seconds that the user's own model takes for one batch."""
    model, spec = engine.net.backbone, engine.net.partition.spec
    args, kwargs = spec.call([value.clone() for value in spec.flatten(inputs)])  # it may write to them
    with evaluating(model), torch.inference_mode():
        start = time.perf_counter()
        model(*args, **kwargs)
        synchronize(spec.device)
        return time.perf_counter() - start


def _timed(engine: Engine, batch: LabelledInputs, times: list[float]) -> list[float]:
    """Answer one batch; returns the samples' qualities where there are labels."""
    (inputs, labels), net = batch, engine.net
    start = time.perf_counter()
    outputs = engine(inputs).outputs
    synchronize(net.partition.spec.device)
    times.append(time.perf_counter() - start)
    answers = net.task.from_answer(outputs)
    if not net.task.usable(answers):
        raise InputError("the model's output is not finite for some inputs; check the inputs for NaN")
    if labels is None:
        return []
    mask = net.mask(net.partition.spec.flatten(inputs))
    labels = checked_labels(net, labels, answers, mask)
    quality, counted = net.task.quality(answers, labels), net.task.counted(labels)
    qualities: list[float] = (quality if counted is None else quality[counted]).tolist()
    return qualities


def _result(engine: Engine, qualities: Sequence[list[float]], times: list[float]) -> RunResult:
    stats, known = engine.stats(), [quality for batch in qualities for quality in batch]
    return RunResult(
        quality=statistics.fmean(known) if known else None,
        relative_macs=stats.macs / stats.full_macs,
        milliseconds=1e3 * statistics.median(times),
        exit_shares=tuple(count / stats.samples for count in stats.exits),
    )


def _as_inputs(spec: InputSpec, values: list[Tensor]) -> Any:
    args, kwargs = spec.call(values)
    return kwargs or args
