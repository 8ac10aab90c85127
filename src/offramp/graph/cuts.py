"""Where a model can be cut, and which of these places are taken by default.

A cut is legal where one value computed with parameters is alive (the feature) beside values that depend on
the inputs alone. Automatic cuts sit at the ends of blocks, far enough apart in MACs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from offramp.errors import PartitionError
from offramp.graph.blocks import ModuleCall, block_ends, leaf_ends
from offramp.graph.dataflow import Flow, batch_free, is_tensor
from offramp.graph.layout import LAYOUTS, find_layout
from offramp.graph.macs import span_macs
from offramp.graph.spans import Border, output_border

# automatic cuts closer than this share of the MACs to their neighbour or the end are left out
_LEAST_SHARE = 0.005


@dataclass(frozen=True)
class Cut:
    """A legal place to cut.

    Args:
        name: of the module call that ends here.
        border: the operations before it and the values handed over it.
        layout: of the feature: one of "NC", "NCL", "NLC", "NCHW", "NHWC".
        shape: of one sample's feature, without the batch.
        dtype: of the feature.
        carried_per_sample: for each carried tensor, whether it has one row per sample.
    """

    name: str
    border: Border
    layout: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    carried_per_sample: tuple[bool, ...]


@dataclass(frozen=True)
class RefusedCut:
    """A place where the model cannot be cut, and why."""

    name: str
    reason: str


def _sort_out(
    flow: Flow, calls: Sequence[ModuleCall], layouts: Mapping[str, str]
) -> tuple[list[Cut], list[RefusedCut]]:
    for name, layout in layouts.items():
        if layout not in LAYOUTS:
            raise PartitionError(f"layouts[{name!r}]: expected one of {', '.join(LAYOUTS)}; got {layout!r}")
        if name not in {call.name for call in calls}:
            raise PartitionError(f"layouts: {_unknown(name, [call.name for call in calls])}")
    in_order = sorted(calls, key=lambda call: (call.last, len(call.name)))
    found = [_first_cut(flow, call, calls, layouts) for call in in_order]
    legal = [cut for cut in found if isinstance(cut, Cut)]
    return legal, [cut for cut in found if isinstance(cut, RefusedCut)]


def _first_cut(
    flow: Flow, call: ModuleCall, calls: Sequence[ModuleCall], layouts: Mapping[str, str]
) -> Cut | RefusedCut:
    following = min((c.first for c in calls if c.first > call.last), default=len(flow.nodes))
    tried = (_cut(flow, call.name, after, layouts.get(call.name)) for after in range(call.last, following))
    refused = next(tried)
    if isinstance(refused, Cut):
        return refused
    return next((cut for cut in tried if isinstance(cut, Cut)), refused)


def _cut(flow: Flow, name: str, after: int, layout: str | None) -> Cut | RefusedCut:
    if after == len(flow.nodes) - 1:
        return RefusedCut(name, "the model is finished here")
    alive = flow.alive(after)
    features = [node for node in alive if flow.is_feature(node)]
    if not features:
        return RefusedCut(name, "nothing has been computed with the model's parameters yet")
    if len(features) > 1:
        names = ", ".join(node.name for node in features)
        return RefusedCut(name, f"{len(features)} values are alive, expected one feature: {names}")
    activations = (features[0], *(node for node in alive if node is not features[0]))
    reason = _objection(flow, activations, after)
    if reason:
        return RefusedCut(name, reason)
    value = features[0].meta["val"]
    layout = layout or find_layout(flow, features[0])
    if layout is None or len(layout) != value.ndim:
        return RefusedCut(name, _unclear(layout, tuple(value.shape[1:])))
    rows = tuple(flow.batch_first(node) for node in activations[1:])
    return Cut(name, Border(after, activations), layout, tuple(value.shape[1:]), value.dtype, rows)


def _objection(flow: Flow, activations: tuple[Node, ...], after: int) -> str:
    """Why these values, the feature first, cannot be handed on; empty where they can."""
    feature = activations[0]
    for node in activations:
        if not is_tensor(node):
            return f"{node.name} is alive, which is no tensor but {type(node.meta['val']).__name__}"
    shape, dtype = tuple(feature.meta["val"].shape), feature.meta["val"].dtype
    if not flow.batch_first(feature):
        return f"the feature {feature.name} has shape {shape}: the batch must be first, and only there"
    if not dtype.is_floating_point:
        return f"the feature {feature.name} is of type {dtype}, expected floating point"
    for node in activations[1:]:
        if not (flow.batch_first(node) or batch_free(node)):
            shape = tuple(node.meta["val"].shape)
            return f"the mask {node.name} has shape {shape}: the batch must be first, and only there"
    if any(flow.changed_through_an_alias(node, after, list(activations)) for node in activations):
        return "two values share storage here and one is changed in place later"
    return ""


def _unclear(layout: str | None, shape: tuple[int, ...]) -> str:
    if not 1 <= len(shape) <= 3:
        return f"the feature has shape {('B', *shape)}; heads take features of 2 to 4 dimensions"
    if layout is not None:
        return f"layout {layout!r} was given for a feature of shape {('B', *shape)}"
    return "the layout of the feature is unclear; give it as layouts={name: 'NCHW'}"


def _choose(
    flow: Flow,
    calls: Sequence[ModuleCall],
    legal: Sequence[Cut],
    refused: Sequence[RefusedCut],
    cuts: str | Sequence[str],
) -> list[Cut]:
    if cuts == "auto":
        return _automatic(flow, calls, legal)
    if cuts == "all":
        blocks = set(_block_ends(calls, legal))
        return _distinct(
            sorted(legal, key=lambda cut: (cut.border.after, cut.name not in blocks, -len(cut.name)))
        )
    if isinstance(cuts, str):
        raise PartitionError(f"cuts: expected 'auto', 'all' or a list of names; got {cuts!r}")
    known = {cut.name: cut for cut in legal}
    reasons = {cut.name: cut.reason for cut in refused}
    for name in cuts:
        if name in reasons and name not in known:
            raise PartitionError(f"cannot cut after {name!r}: {reasons[name]}")
        if name not in known:
            raise PartitionError(f"cuts: {_unknown(name, list(known))}")
    return _distinct(sorted((known[name] for name in cuts), key=lambda cut: cut.border.after))


def _unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3) or known[:5]
    return f"no module call {name!r} to cut after; try {', '.join(close) or 'another model'}"


def _distinct(cuts: Sequence[Cut]) -> list[Cut]:
    """One cut per place; of several names the first given wins."""
    return list({cut.border.after: cut for cut in reversed(cuts)}.values())[::-1]


def _automatic(flow: Flow, calls: Sequence[ModuleCall], legal: Sequence[Cut]) -> list[Cut]:
    by_name = {cut.name: cut for cut in legal}
    found: list[Cut] = []
    for ends in (_block_ends(calls, legal), leaf_ends(calls)):
        at_ends = sorted((by_name[n] for n in ends if n in by_name), key=lambda cut: cut.border.after)
        spaced = _spaced(flow, _distinct(at_ends))
        found = max(found, spaced, key=len)
        if len(found) > 1:  # with fewer than two blocks to stop after, it is no model of blocks
            break
    return found


def _block_ends(calls: Sequence[ModuleCall], legal: Sequence[Cut]) -> list[str]:
    ends = {call.name: call.last for call in calls}
    return block_ends(calls, {cut.name for cut in legal if cut.border.after == ends[cut.name]})


def _spaced(flow: Flow, cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts far enough, in MACs, from the one before and from the end for an exit to make a difference."""
    borders = [Border(-1, flow.trace.inputs), *(cut.border for cut in cuts), output_border(flow)]
    macs = span_macs(flow, borders)
    total, done, last = sum(macs), 0, 0
    kept: list[Cut] = []
    for cut, cost in zip(cuts, macs, strict=False):
        done += cost
        if done - last > _LEAST_SHARE * total and total - done > _LEAST_SHARE * total:
            kept.append(cut)
            last = done
    return kept
