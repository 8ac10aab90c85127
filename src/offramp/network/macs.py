"""The MAC table of a network: multiply-accumulates of each segment and head, counted once per network."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from offramp.core import CostTable
from offramp.errors import InputError
from offramp.graph import count_macs, count_module
from offramp.network.network import ExitNetwork

_COSTS: WeakKeyDictionary[ExitNetwork, CostTable] = WeakKeyDictionary()


def count_macs_of(net: ExitNetwork) -> CostTable:
    """Multiply-accumulates of every segment and head, per sample, counted on the meta device.

    A head whose operations cannot be counted is an ``InputError``.
    """
    backbone = np.cumsum([0, *net.partition.macs])
    heads = np.zeros((len(net.positions), len(net.head_names)))
    for p, c, head in net.exits():
        meta_inputs = net.meta_inputs(p, c)
        try:
            heads[p, c] = count_macs(lambda: count_module(head, *meta_inputs))[0]  # noqa: B023 (called at once)
        except (NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"measure_cost: cannot count the operations of head {net.head_names[c]!r} at "
                f"{net.positions[p]!r}: {error}; build a CostTable of your own "
                "for search and Engine(costs=...)"
            ) from error
    return CostTable(backbone=backbone, heads=heads, unit="macs", meta={"batch_size": 1, "device": "meta"})


def counted_by(net: ExitNetwork, costs: CostTable | None) -> CostTable:
    """What an engine counts by: MACs, unless it was given a table of something else than time or energy."""
    shape = (len(net.positions), len(net.head_names))
    if costs is not None and costs.heads.shape != shape:
        raise InputError(
            f"Engine: the costs are for {costs.heads.shape} (positions, heads), the network has {shape}; "
            "measure this network"
        )
    return mac_table(net) if costs is None or costs.unit in ("seconds", "joules") else costs


def mac_table(net: ExitNetwork) -> CostTable:
    """MACs of every segment and head of a network; counted the first time."""
    return _COSTS[net] if net in _COSTS else _COSTS.setdefault(net, count_macs_of(net))
