"""Times of several calls on the same inputs, side by side, and figures of them.

On a shared machine a slow second must not decide who wins. Every call runs on an input before
any runs on the next, and figures are compared within one run only. The order is drawn for every second input
and reversed for the next: what ran before a call has left the caches in its own state, and must not always
be the same.

    interleaved   seconds (rounds R, inputs I, calls W)
    middle        (I, W): the median of each input's rounds
    summary       p50, p95, p99 and throughput of one call
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Call = Callable[[Any], object]

WARM = 3  # calls of each before anything counts
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def interleaved(
    calls: Sequence[Call],
    inputs: Sequence[Any],
    rounds: int = 1,
    budget: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Seconds of every call on every input.

    Args:
        calls: W functions of one input.
        inputs: I inputs.
        rounds: R passes over all inputs, at least 1.
        budget: seconds after which no further round begins; the first is always whole.
        clock: in seconds.

    Returns:
        (R', I, W) with 1 <= R' <= R.
    """
    for call in calls:
        for value in [inputs[0]] * WARM:
            call(value)
    found, begin, order = [], clock(), _orders(len(calls))
    for _ in range(rounds):
        seconds = np.zeros((len(inputs), len(calls)))
        for i, value in enumerate(inputs):
            for who in next(order):
                start = clock()
                calls[who](value)
                seconds[i, who] = clock() - start
        found.append(seconds)
        if budget is not None and clock() - begin > budget:
            break
    return np.stack(found)


def _orders(count: int) -> Iterator[list[int]]:
    """Orders of so many calls: a drawn one, the same backwards, another drawn one."""
    draw = np.random.default_rng(0)
    while True:
        order = draw.permutation(count).tolist()
        yield order
        yield order[::-1]


def middle(seconds: Seconds) -> Seconds:
    """(I, W): median over the rounds, so that one interrupted call does not count."""
    return np.asarray(np.median(seconds, axis=0))


def ratios(times: Seconds) -> dict[str, float]:
    """The first call against the second.

    Args:
        times: (I, 2) as from ``middle``.

    Returns:
        "sum": all inputs' time over all inputs' time, what a mean predicts; "median": of the ratios of single
        inputs, which at batch 1 is a typical sample's and not the mean's.
    """
    own, other = times[:, 0], times[:, 1]
    return {"sum": float(own.sum() / other.sum()), "median": float(np.median(own / other))}


def summary(times: Seconds, batch: int) -> dict[str, float]:
    """Figures of one call.

    Args:
        times: (n,) seconds of calls.
        batch: samples in each.

    Returns:
        "p50", "p95", "p99" in milliseconds of a call, "throughput" in samples per second.
    """
    told = {name: 1e3 * float(np.quantile(times, share)) for name, share in QUANTILES.items()}
    return {**told, "throughput": batch * times.size / float(times.sum())}
