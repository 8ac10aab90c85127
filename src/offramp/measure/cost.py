"""Costs of a network: MACs are counted on the meta device (nothing is computed), time and energy measured.

A pass runs a batch in one call, segment by segment, and head by head, each timed by itself. Passes at all
batch sizes take turns, round after round, so that a slow minute of the machine hits all of them; medians
count. What a call of the engine takes beyond its segments (checking inputs, gathering answers) is measured
too and added to the first segment, which every sample pays.

Joules are seconds with another clock: counters tick too slowly for one segment, so each is repeated until
they have ticked often enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp._progress import progress_bar
from offramp.core import BatchCosts, CostTable
from offramp.errors import InputError
from offramp.graph import eval_mode, evaluating
from offramp.measure.energy import find_meter
from offramp.network import ConfidenceFn, ExitFn, ExitNetwork, count_macs_of, mac_table
from offramp.runtime import Activations, Execution, SpanFn, SpanProvider, leaving

Floats = npt.NDArray[np.float64]

_LEAST_SECONDS = 1.5  # of measuring, at each batch size
_ROUNDS = (7, 200)  # passes: at least, at most
_LONG = 1.0  # seconds; of passes that take longer, fewer are enough
_LONG_ROUNDS = 3
_TICKS = 50  # of an energy counter, during which each segment is repeated for one reading


def measure_cost(
    net: ExitNetwork,
    *,
    unit: Literal["macs", "seconds", "joules"] = "macs",
    batch_size: int = 1,
    threads: int | None = None,
    inputs: object = None,
    lengths: npt.ArrayLike | None = None,
    execution: Execution | None = None,
    rounds: int | None = None,
    progress: bool | None = None,
) -> CostTable:
    """Cost of every segment and head, per sample.

    Args:
        net: from ``attach_exits``.
        unit: "macs": multiply-accumulates of matrix products and convolutions, counted on the meta device at
            batch size 1. "seconds": measured on the network's device; "joules": measured by the energy
            counters of the processor (RAPL) or the accelerator (NVML). What follows is for these two.
        batch_size: of the calls that the engine will get; smaller ones are measured too, since a batch
            shrinks on the way.
        threads: of PyTorch, while measuring; None: as now.
        inputs: a batch of real inputs; None: the example's, repeated.
        lengths: (N,) numbers of tokens of texts as the engine will get them; MACs are the mean over these.
            None: all as long as the example. For networks whose texts may vary in length.
        execution: how spans are computed; None is eager PyTorch.
        rounds: passes over the network at each batch size, medians of which count; None: as many as give
            steady figures.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        The table; of seconds and joules with ``by_batch``, and in ``meta`` how it was measured.

    Raises:
        InputError: another unit, a batch size, number of threads or rounds that is no integer of at least 1,
            inputs that do not fit, lengths that the network does not take, a head whose operations cannot be
            counted, or no energy counter that can be read.
    """
    _check_positive(batch_size=batch_size)
    _check_positive(**{name: n for name, n in (("threads", threads), ("rounds", rounds)) if n is not None})
    if unit == "macs":
        return count_macs_of(net) if lengths is None else _mean_macs(net, lengths)
    if lengths is not None:
        raise InputError(
            f"measure_cost: lengths are for unit='macs'; for {unit!r} give inputs of the usual length"
        )
    if unit not in ("seconds", "joules"):
        raise InputError(
            f"measure_cost: expected unit='macs', 'seconds' or 'joules', got {unit!r}; build a CostTable for "
            "other units"
        )
    device = net.partition.spec.device
    stopwatch = _Stopwatch(device, *_clock(unit, device))
    values = _batch(net, batch_size, inputs)
    provider, sizes = SpanProvider(net, execution), batch_sizes(batch_size)
    with _using(threads), eval_mode(net), evaluating(net.backbone), torch.inference_mode():

        def run_pass(size: int) -> list[float]:
            return _pass(provider, stopwatch, [value[:size] for value in values])

        passes = _passes(run_pass, sizes, rounds, progress)
        used = torch.get_num_threads()
    medians = np.array([np.median(each, 0) for each in passes])
    count = len(net.positions)
    segments = [_reconciled(row[2 : count + 2], row[0]) for row in medians]
    backbone = np.pad(np.cumsum(segments, 1), ((0, 0), (1, 0)))
    heads = np.zeros((len(sizes), *net.exists.shape))
    heads[:, net.exists] = medians[:, count + 2 :]
    return CostTable(
        backbone=backbone[-1] / batch_size,
        heads=heads[-1] / batch_size,
        unit=unit,
        meta={
            "batch_size": batch_size,
            "threads": used,
            "device": str(device),
            "execution": str(provider.execution),
            "rounds": [len(each) for each in passes],
            "torch": torch.__version__,
        },
        by_batch=BatchCosts(np.array(sizes), backbone, heads),
        eager=float(medians[-1, 1]) / batch_size,
    )


def _mean_macs(net: ExitNetwork, lengths: npt.ArrayLike) -> CostTable:
    """The mean of the tables of several lengths."""
    known = net.partition.spec.lengths
    if known is None or not known.vary:
        raise InputError(
            "measure_cost(lengths=...): expected a network whose texts may vary in length (inputs by name, "
            "an attention mask, a model that can be traced so); this one has one cost for every input"
        )
    values = np.asarray(lengths)
    fewest, most = known.limits
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
        raise InputError(
            f"measure_cost: expected lengths (N,) in whole tokens, got {values.dtype}{values.shape}"
        )
    if not fewest <= values.min() <= values.max() <= most:
        raise InputError(
            f"measure_cost: expected lengths of {fewest} to {most} tokens, got {values.min()} to "
            f"{values.max()}"
        )
    each, counts = np.unique(values, return_counts=True)
    tables, share = [mac_table(net, int(length)) for length in each], counts / counts.sum()
    return CostTable(
        backbone=np.tensordot(share, [table.backbone for table in tables], 1),
        heads=np.tensordot(share, [table.heads for table in tables], 1),
        unit="macs",
        meta={"batch_size": 1, "device": "meta", "mean_tokens": float(values.mean())},
    )


def _check_positive(**numbers: object) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"measure_cost: expected {name} to be an integer of at least 1, got {value!r}; leave it out "
                "for the default"
            )


def batch_sizes(batch: int) -> list[int]:
    """1, 2, 4, ... up to ``batch``: where costs are measured.

    >>> batch_sizes(20)
    [1, 2, 4, 8, 16, 20]
    """
    sizes = [1 << i for i in range(batch.bit_length()) if 1 << i < batch]
    return [*sizes, batch]


def _clock(unit: str, device: torch.device) -> tuple[Callable[[], float], float]:
    """What to read, and for how many seconds to repeat a call between two readings; 0: call it once."""
    if unit == "seconds":
        return time.perf_counter, 0.0
    meter = find_meter(device)
    return meter.read, _TICKS * meter.interval


def _batch(net: ExitNetwork, batch: int, inputs: object) -> list[Tensor]:
    """Flat inputs of exactly ``batch`` rows."""
    values = list(net.partition.flow.trace.example) if inputs is None else net.partition.flatten(inputs)
    rows = len(values[0])
    if rows == 0:
        raise InputError("measure_cost: expected inputs of at least one sample, got none")
    return [torch.cat([value] * -(-batch // rows))[:batch].contiguous() for value in values]


@contextmanager
def _using(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given: an accelerator answers before it has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class _Stopwatch:
    """Costs of calls on a device, by a clock; where it ticks slowly, calls are repeated for some seconds."""

    device: torch.device
    read: Callable[[], float]
    repeat_for: float

    def cost(self, call: Callable[[], object]) -> float:
        """Cost of one call; the mean of many, where the clock ticks slowly."""
        begin, times = time.perf_counter(), 0
        start = self.read()
        while True:
            call()
            synchronize(self.device)
            times += 1
            if time.perf_counter() - begin >= self.repeat_for:
                return (self.read() - start) / times

    def step(self, span: SpanFn, activations: Activations) -> tuple[float, Activations]:
        """Cost of a span, and its results. It may change its feature: each repeat gets a copy."""
        cost = 0.0
        if self.repeat_for:
            copies = self.cost(lambda: _copies(activations))
            cost = max(0.0, self.cost(lambda: span(*_copies(activations))) - copies)
        start = self.read()
        activations = span(*activations)
        synchronize(self.device)
        return cost or self.read() - start, activations


def _copies(values: Activations | list[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


def _pass(provider: SpanProvider, stopwatch: _Stopwatch, values: list[Tensor]) -> list[float]:
    """One pass on flat inputs: costs of a call of the engine, of the eager model, of segments, of heads.

    None disturbs another: each starts from copies.
    """
    net, count = provider.net, len(provider.net.positions)
    spec, mask = net.partition.spec, net.mask(values)
    spans = [provider.span(i, i + 1) for i in range(count)]
    backbone, output = provider.span(0, count), provider.exit_fn(count)
    confidence_fn = net.confidence_of(count)
    args, kwargs = spec.call(_copies(values))

    def call() -> None:
        """What an engine without exits does with a batch."""
        flat = spec.flatten(kwargs or args)
        outputs = output(backbone(*flat), None)
        confidence_fn(outputs, net.mask(flat) if net.task.per_token else None)
        torch.full((len(outputs),), 0, device=outputs.device)
        net.task.answer(outputs)

    costs = [stopwatch.cost(call), stopwatch.cost(lambda: net.backbone(*args, **kwargs))]
    activations: Activations = tuple(_copies(values))
    for span in spans:
        cost, activations = stopwatch.step(span, activations)
        costs.append(cost)
    activations = tuple(_copies(values))
    for position, span in enumerate(spans):
        for p, c, _ in net.exits():
            if p == position:
                run = partial(_run_exit, provider.exit_fn(p, c), net.confidence_of(p, c), activations, mask)
                costs.append(stopwatch.cost(run))
        activations = span(*activations)
    return costs


def _run_exit(
    exit_fn: ExitFn, confidence_fn: ConfidenceFn, activations: Activations, mask: Tensor | None
) -> None:
    """Run an exit and look who leaves."""
    leaving(confidence_fn(exit_fn(activations, mask), mask), math.inf)


def _passes(
    run_pass: Callable[[int], list[float]], sizes: list[int], rounds: int | None, progress: bool | None
) -> list[list[list[float]]]:
    """Passes at every size, in turns, after two to warm up (or one that takes long)."""
    wanted = []
    for size in sizes:
        for _ in range(2):
            start = time.perf_counter()
            run_pass(size)
            seconds = time.perf_counter() - start
            if seconds > _LONG:
                break
        wanted.append(rounds or _enough(seconds))
    found: list[list[list[float]]] = [[] for _ in sizes]
    most = max(wanted)
    with progress_bar("Measuring", most, progress) as advance:
        for turn in range(most):
            for size, count, passes in zip(sizes, wanted, found, strict=True):
                # spread evenly over the turns, so that drift hits all sizes alike
                if turn * count // most != (turn + 1) * count // most:
                    passes.append(run_pass(size))
            advance(turn + 1)
    return found


def _enough(seconds: float) -> int:
    """How many passes give steady medians, where one takes so long."""
    least, most = _ROUNDS
    least = _LONG_ROUNDS if seconds > _LONG else least
    return min(max(int(_LEAST_SECONDS / max(seconds, 1e-6)), least), most)


def _reconciled(segments: Floats, call: float) -> Floats:
    """Segments that add up to the whole call.

    What the call takes beyond them is a fixed part at its start; where they take more (each was timed by
    itself), all shrink alike.
    """
    segments = np.maximum(segments, 0.0)
    total = float(segments.sum())
    if call < total:
        return segments * (call / total)
    return np.concatenate([[segments[0] + (call - total)], segments[1:]])
