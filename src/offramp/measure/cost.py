"""Costs of a network: MACs are counted on the meta device (nothing is computed), time and energy measured."""

from __future__ import annotations

from typing import Literal

from offramp.core import CostTable
from offramp.errors import InputError
from offramp.measure.latency import measure
from offramp.network import ExitNetwork, count_macs_of
from offramp.runtime import Execution


def measure_cost(
    net: ExitNetwork,
    *,
    unit: Literal["macs", "seconds", "joules"] = "macs",
    batch_size: int = 1,
    threads: int | None = None,
    inputs: object = None,
    execution: Execution | None = None,
    rounds: int | None = None,
    progress: bool | None = None,
) -> CostTable:
    """Cost of every segment and head, per sample.

    Args:
        net: from ``attach_exits``.
        unit: "macs": multiply-accumulates of matrix products and convolutions, counted on the meta device at
            batch size 1. "seconds": measured on the network's device; "joules": likewise, by the energy
            counters of the processor (RAPL) or the accelerator (NVML). What follows is for these two.
        batch_size: of the calls that the engine will get; smaller ones are measured too, since a batch
            shrinks on the way.
        threads: of PyTorch, while measuring; None: as now.
        inputs: a batch of real inputs; None: the example's, repeated.
        execution: how spans are computed; None is eager PyTorch.
        rounds: passes over the network at each batch size, medians of which count; None: as many as give
            steady figures.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        The table; of seconds and joules with ``by_batch``, and in ``meta`` how it was measured.

    Raises:
        InputError: another unit, a batch size or number of threads below 1, inputs that do not fit, a head
            whose operations cannot be counted, or no energy counter that can be read.
    """
    if unit in ("seconds", "joules"):
        return measure(net, unit, batch_size, threads, inputs, execution, rounds, progress)
    if unit != "macs":
        raise InputError(
            f"measure_cost: expected unit='macs', 'seconds' or 'joules', got {unit!r}; build a CostTable for "
            "other units"
        )
    return count_macs_of(net)
