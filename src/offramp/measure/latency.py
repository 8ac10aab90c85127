"""Seconds and joules: what segments and heads cost on this machine, measured.

A pass runs a batch as a whole, segment by segment, and head by head, each timed by itself. Passes at
all batch sizes take turns, round after round, so that a slow minute of the machine hits all of them; medians
count. What a call of the engine takes beyond its segments (checking inputs, gathering answers) is measured
too and added to the first segment, which every sample pays.

Joules are seconds with another clock: counters tick too slowly for one segment, so each is repeated until
they have ticked often enough.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp._progress import progress_bar
from offramp.core import BatchCosts, CostTable
from offramp.errors import InputError
from offramp.graph import eval_mode, evaluating
from offramp.measure.energy import find_meter
from offramp.network import ExitNetwork
from offramp.runtime import Activations, Execution, SpanFn, SpanProvider, leaving

_LEAST_SECONDS = 1.5  # of measuring, at each batch size
_ROUNDS = (7, 200)  # passes: at least, at most
_LONG = 1.0  # seconds; of passes that take longer, fewer are enough
_LONG_ROUNDS = 3
_TICKS = 50  # of an energy counter, during which each segment is repeated for one reading


def batch_sizes(batch: int) -> list[int]:
    """1, 2, 4, ... up to ``batch``: where costs are measured.

    >>> batch_sizes(20)
    [1, 2, 4, 8, 16, 20]
    """
    sizes = [1 << i for i in range(batch.bit_length()) if 1 << i < batch]
    return [*sizes, batch]


@dataclass(frozen=True)
class _Pass:
    """Costs of one pass over the network."""

    segments: list[float]
    heads: list[float]
    whole: float
    plain: float


def measure(
    net: ExitNetwork,
    unit: str,
    batch_size: int,
    threads: int | None,
    inputs: object,
    execution: Execution | None,
    rounds: int | None,
    progress: bool | None,
) -> CostTable:
    """``measure_cost`` for seconds and joules; see there."""
    for name, value in (("batch_size", batch_size), ("threads", threads), ("rounds", rounds)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"measure_cost: expected {name} of at least 1, got {value!r}")
    device = net.partition.spec.device
    read, repeat_for = _clock(unit, device)
    values = _batch(net, batch_size, inputs)
    how = Execution() if execution is None else execution
    sizes = batch_sizes(batch_size)
    with _using(threads), _eval(net):
        walk = _Walk(net, SpanProvider(net, how), read, device, repeat_for)
        passes = _passes(walk, values, sizes, rounds, progress)
        used = torch.get_num_threads()
    table = _table(net, sizes, passes, walk.exits)
    plain = statistics.median(one.plain for one in passes[-1])
    meta = {
        "batch_size": batch_size,
        "threads": used,
        "device": str(device),
        "execution": str(how),
        "rounds": [len(each) for each in passes],
        "torch": torch.__version__,
    }
    backbone, heads = table.backbone[-1] / batch_size, table.heads[-1] / batch_size
    return CostTable(backbone, heads, unit, meta, by_batch=table, eager=plain / batch_size)


def _clock(unit: str, device: torch.device) -> tuple[Callable[[], float], float]:
    """What to read, and for how many seconds to repeat a call between two readings; 0: call it once."""
    if unit == "seconds":
        return time.perf_counter, 0.0
    meter = find_meter(device)
    return meter.read, _TICKS * meter.interval


def _batch(net: ExitNetwork, batch: int, inputs: object) -> list[Tensor]:
    """Flat inputs of exactly ``batch`` rows."""
    spec = net.partition.spec
    values = list(net.partition.flow.trace.example) if inputs is None else spec.flatten(inputs)
    rows = len(values[0])
    if rows == 0:
        raise InputError("measure_cost: expected inputs of at least one sample, got none")
    return [torch.cat([value] * -(-batch // rows))[:batch].contiguous() for value in values]


@contextmanager
def _using(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _eval(net: ExitNetwork) -> Iterator[None]:
    with eval_mode(net), evaluating(net.backbone), torch.inference_mode():
        yield


class _Walk:
    """One pass after another over a network, everything timed by itself.

    Attributes:
        exits: (position, head) in the order of a pass's heads.
    """

    def __init__(
        self,
        net: ExitNetwork,
        runner: SpanProvider,
        read: Callable[[], float],
        device: torch.device,
        repeat_for: float,
    ) -> None:
        self._net, self._read, self._repeat_for = net, read, repeat_for
        self._wait = _waiter(device)
        count = len(net.positions)
        self._spans = [runner.span(i, i + 1) for i in range(count)]
        self._whole = runner.span(0, count)
        self.exits = [(p, c) for p, c, _ in net.exits()]
        self._exit_fns = {exit_: (runner.exit_fn(*exit_), net.confidence_of(*exit_)) for exit_ in self.exits}
        self._output, self._sure = runner.exit_fn(count), net.confidence_of(count)

    def run(self, values: Sequence[Tensor]) -> _Pass:
        """One pass on flat inputs: the whole, then the segments, then the heads; none disturbs another."""
        own = [value.clone() for value in values]
        whole = self._timed(lambda: self._call(own))
        args, kwargs = self._net.partition.spec.call(own)
        plain = self._timed(lambda: self._net.backbone(*args, **kwargs))
        segments, heads = list[float](), list[float]()
        activations = tuple(value.clone() for value in values)
        for span in self._spans:
            cost, activations = self._step(span, activations)
            segments.append(cost)
        mask = self._net.mask(values)
        activations = tuple(value.clone() for value in values)
        for position, span in enumerate(self._spans):
            for exit_ in (e for e in self.exits if e[0] == position):
                heads.append(self._timed(self._question(exit_, activations, mask)))
            activations = span(*activations)
        return _Pass(segments, heads, whole, plain)

    def _step(self, span: SpanFn, activations: Activations) -> tuple[float, Activations]:
        """Cost of a span, and what it hands on. It may change its feature: each repeat gets a copy."""
        cost = 0.0
        if self._repeat_for:
            copies = self._timed(lambda: [value.clone() for value in activations])
            cost = max(0.0, self._timed(lambda: span(*(value.clone() for value in activations))) - copies)
        start = self._read()
        activations = span(*activations)
        self._wait()
        return cost or self._read() - start, activations

    def _question(
        self, exit_: tuple[int, int], activations: Activations, mask: Tensor | None
    ) -> Callable[[], object]:
        """Asking an exit and looking who leaves."""
        exit_fn, confidence_fn = self._exit_fns[exit_]
        return lambda: leaving(confidence_fn(exit_fn(activations, mask), mask), math.inf)

    def _call(self, values: list[Tensor]) -> None:
        """What an engine without exits does with a batch."""
        net = self._net
        flat = net.partition.spec.flatten(_as_given(net, values))
        outputs = self._output(self._whole(*flat), None)
        self._sure(outputs, net.mask(flat) if net.task.per_token else None)
        torch.full((len(outputs),), 0, device=outputs.device)
        net.task.answer(outputs)

    def _timed(self, call: Callable[[], object]) -> float:
        """Cost of one call; the mean of many, where the clock ticks slowly."""
        begin, times = time.perf_counter(), 0
        start = self._read()
        while True:
            call()
            self._wait()
            times += 1
            if time.perf_counter() - begin >= self._repeat_for:
                return (self._read() - start) / times


def _as_given(net: ExitNetwork, values: list[Tensor]) -> object:
    spec = net.partition.spec
    return dict(zip(spec.names, values, strict=True)) if spec.keyword else tuple(values)


def _waiter(device: torch.device) -> Callable[[], None]:
    """Until the device has done what it was given: an accelerator answers before it has."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def _passes(
    walk: _Walk, values: list[Tensor], sizes: list[int], rounds: int | None, progress: bool | None
) -> list[list[_Pass]]:
    """By batch size, passes; the sizes take turns."""
    wanted = []
    for size in sizes:  # the first pass warms up; the second, where passes are short, says how long one takes
        seconds = math.inf
        for _ in range(2):
            start = time.perf_counter()
            walk.run([value[:size] for value in values])
            seconds = time.perf_counter() - start
            if seconds > _LONG:
                break
        wanted.append(rounds or _enough(seconds))
    found: list[list[_Pass]] = [[] for _ in sizes]
    with progress_bar("Measuring", max(wanted), progress) as advance:
        for turn in range(max(wanted)):
            for i, size in enumerate(sizes):
                # spread evenly over the turns, so that drift hits all sizes alike
                if turn * wanted[i] // max(wanted) != (turn + 1) * wanted[i] // max(wanted):
                    found[i].append(walk.run([value[:size] for value in values]))
            advance(turn + 1)
    return found


def _enough(seconds: float) -> int:
    """How many passes give steady medians, where one takes so long."""
    least, most = _ROUNDS
    return min(
        max(int(_LEAST_SECONDS / max(seconds, 1e-6)), _LONG_ROUNDS if seconds > _LONG else least), most
    )


def _table(
    net: ExitNetwork, sizes: list[int], passes: list[list[_Pass]], exits: list[tuple[int, int]]
) -> BatchCosts:
    count = len(net.positions)
    backbone = np.zeros((len(sizes), count + 1))
    heads = np.zeros((len(sizes), count, len(net.head_names)))
    for i, each in enumerate(passes):
        segments = np.median([one.segments for one in each], 0)
        whole = statistics.median(one.whole for one in each)
        backbone[i, 1:] = np.cumsum(_reconciled(segments, whole))
        for (p, c), cost in zip(exits, np.median([one.heads for one in each], 0), strict=True):
            heads[i, p, c] = cost
    return BatchCosts(np.array(sizes), backbone, heads)


def _reconciled(segments: npt.NDArray[np.float64], whole: float) -> npt.NDArray[np.float64]:
    """Segments that add up to the whole call.

    What the call takes beyond them is a fixed part at its start; where they take more (each was timed by
    itself), all shrink alike.
    """
    segments = np.maximum(segments, 0.0)
    extra = whole - float(segments.sum())
    if extra < 0:
        return segments * (whole / float(segments.sum()))
    return np.concatenate([[segments[0] + extra], segments[1:]])
