"""The MAC table of a network: multiply-accumulates of each segment and head, counted once per network."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from offramp.core import CostTable
from offramp.errors import InputError
from offramp.graph import count_macs, count_module
from offramp.network.network import ExitNetwork

_COSTS: WeakKeyDictionary[ExitNetwork, dict[int | None, CostTable]] = WeakKeyDictionary()


def count_macs_of(net: ExitNetwork, length: int | None = None) -> CostTable:
    """Multiply-accumulates of every segment and head, per sample, counted on the meta device.

    ``length`` is the number of tokens of texts, None the example's. A head whose operations cannot be counted
    is an ``InputError``.
    """
    parts = net.partition
    backbone = np.cumsum([0, *(parts.macs if length is None else parts.macs_at(length))])
    heads = np.zeros((len(net.positions), len(net.head_names)))
    for p, c, head in net.exits():
        meta_inputs = net.meta_inputs(p, c, length)
        try:
            heads[p, c] = count_macs(lambda: count_module(head, *meta_inputs))[0]  # noqa: B023 (called at once)
        except (NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"measure_cost: cannot count the operations of head {net.head_names[c]!r} at "
                f"{net.positions[p]!r}: {error}; build a CostTable of your own "
                "for search and Engine(costs=...)"
            ) from error
    return CostTable(backbone=backbone, heads=heads, unit="macs", meta={"batch_size": 1, "device": "meta"})


def work_of(net: ExitNetwork) -> float:
    """Multiply-accumulates of the backbone for one sample: about what recording and training take."""
    return float(sum(net.partition.macs))


def counted_by(net: ExitNetwork, costs: CostTable | None) -> CostTable:
    """What an engine counts by: MACs, unless it was given a table of something else than time or energy."""
    shape = (len(net.positions), len(net.head_names))
    if costs is not None and costs.heads.shape != shape:
        raise InputError(
            f"Engine: the costs are for {costs.heads.shape} (positions, heads), the network has {shape}; "
            "measure this network"
        )
    return mac_table(net) if costs is None or costs.unit in ("seconds", "joules") else costs


def mac_table(net: ExitNetwork, length: int | None = None) -> CostTable:
    """MACs of every segment and head of a network, for texts of a length; counted the first time."""
    tables = _COSTS.setdefault(net, {})
    return tables[length] if length in tables else tables.setdefault(length, count_macs_of(net, length))
