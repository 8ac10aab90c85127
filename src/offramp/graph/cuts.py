"""Where a model can be cut, and which of these places are taken by default.

A cut is legal where one value computed with parameters is alive (the feature) beside values that depend on
the inputs alone. Automatic cuts sit at the ends of blocks, far enough apart in MACs. A block is what an
engineer would call one: a module with parts of its own that is not itself a list of blocks. Models without
blocks are cut before each leaf with weights.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.fx import Node

from offramp.errors import PartitionError
from offramp.graph.dataflow import Flow, is_tensor
from offramp.graph.dynamic_quant import is_packed
from offramp.graph.layout import LAYOUTS, find_layout
from offramp.graph.macs import span_macs
from offramp.graph.spans import Border

_LEAST_SHARE = 0.005
"""Automatic cuts closer than this share of the MACs to their neighbour or the end are left out."""


@dataclass
class ModuleCall:
    """One call of a module, operations ``first`` to ``last``; ``name`` is its path, then "path@2" and so on.

    ``listed``: it is a numbered element ("3", "layer_3") of a list of blocks.
    """

    name: str
    path: str
    module: nn.Module
    listed: bool
    first: int
    last: int

    @property
    def composite(self) -> bool:
        """Whether the module has parts that are called."""
        return _has_parts(self.module)

    def inside(self, others: Sequence[ModuleCall]) -> bool:
        """Whether it was called inside one of ``others``."""
        return any(
            self.path.startswith(other.path + ".") and other.first <= self.first and self.last <= other.last
            for other in others
        )


def module_calls(flow: Flow) -> list[ModuleCall]:
    """Every call of every sub-module, in order of their first operation."""
    modules = dict(flow.trace.model.named_modules(remove_duplicate=False))
    calls: dict[str, ModuleCall] = {}
    times = Counter[str]()
    for i, node in enumerate(flow.nodes):
        if flow.is_free(node):  # sizes are hoisted out of their call, and weights may be computed anywhere
            continue
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if not path or path not in modules:
                continue
            if key not in calls:
                times[path] += 1
                calls[key] = ModuleCall(
                    name=path if times[path] == 1 else f"{path}@{times[path]}",
                    path=path,
                    module=modules[path],
                    listed=_is_listed_block(path, modules),
                    first=i,
                    last=i,
                )
            calls[key].last = i
    return list(calls.values())


@dataclass(frozen=True)
class Cut:
    """A legal place to cut: the end of the module call ``name``.

    ``layout`` (one of ``offramp.graph.layout.LAYOUTS``), ``shape`` (of one sample, without the batch) and
    ``dtype`` are the feature's; ``carried_per_sample`` tells of each carried tensor whether it has one row
    per sample.
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


def borders(flow: Flow, cuts: Sequence[Cut]) -> list[Border]:
    """In front of the first operation, at every cut, and behind the last operation."""
    end = Border(len(flow.nodes) - 1, ())
    return [Border(-1, flow.trace.inputs), *(cut.border for cut in cuts), end]


def possible_cuts(
    flow: Flow, calls: Sequence[ModuleCall], layouts: Mapping[str, str]
) -> tuple[list[Cut], list[RefusedCut]]:
    """The ends of module calls where the model can be cut, in order, and those where it cannot."""
    names = [call.name for call in calls]
    for name, layout in layouts.items():
        if layout not in LAYOUTS:
            raise PartitionError(f"layouts[{name!r}]: expected one of {', '.join(LAYOUTS)}; got {layout!r}")
        if name not in names:
            raise PartitionError(f"layouts: {_unknown(name, names)}")
    legal: list[Cut] = []
    refused: list[RefusedCut] = []
    for call in sorted(calls, key=lambda call: (call.last, len(call.name))):
        following = min((c.first for c in calls if c.first > call.last), default=len(flow.nodes))
        places = range(call.last, following)
        tried = (_cut(flow, call.name, after, layouts.get(call.name)) for after in places)
        first = next(tried)
        cut = first if isinstance(first, Cut) else next((c for c in tried if isinstance(c, Cut)), first)
        if isinstance(cut, Cut):
            legal.append(cut)
        else:
            refused.append(RefusedCut(call.name, cut))
    return legal, refused


def _cut(flow: Flow, name: str, after: int, layout: str | None) -> Cut | str:
    """The cut after an operation, or why there is none."""
    if after == len(flow.nodes) - 1:
        return "the model is finished here"
    alive = flow.alive(after)
    features = [node for node in alive if flow.is_feature(node)]
    if not features:
        return "nothing has been computed with the model's parameters yet"
    if len(features) > 1:
        names = ", ".join(node.name for node in features)
        return f"{len(features)} values are alive, expected one feature: {names}"
    carried = [node for node in alive if node is not features[0]]
    if reason := _why_not_passed(flow, features[0], carried, after):
        return reason
    value = features[0].meta["val"]
    shape = tuple(flow.concrete(size) for size in value.shape[1:])
    found = layout or find_layout(flow, features[0])
    if found is None or len(found) != value.ndim:
        if not 1 <= len(shape) <= 4:
            return f"the feature has shape {('B', *shape)}; heads take features of 2 to 5 dimensions"
        if found is not None:
            return f"layout {found!r} was given for a feature of shape {('B', *shape)}"
        fitting = " or ".join(repr(each) for each in LAYOUTS if len(each) == value.ndim)
        return (
            f"the layout of the feature is unclear; its shape is {('B', *shape)}, give it as "
            f"layouts={{{name!r}: ...}}, {fitting}"
        )
    if isinstance(value.shape[found.index("C")], torch.SymInt):
        return "the width of the feature follows the number of tokens; heads need one width"
    return Cut(
        name=name,
        border=Border(after, (features[0], *carried)),
        layout=found,
        shape=shape,
        dtype=value.dtype,
        carried_per_sample=tuple(map(flow.batch_first, carried)),
    )


def _why_not_passed(flow: Flow, feature: Node, carried: Sequence[Node], after: int) -> str:
    """Why these values cannot be passed from one segment to the next; empty where they can."""
    values = [feature, *carried]
    for node in values:
        if not is_tensor(node):
            return f"{node.name} is alive, which is no tensor but {type(node.meta['val']).__name__}"
    dtype = feature.meta["val"].dtype
    if not flow.batch_first(feature):
        return _misplaced_batch("feature", feature)
    if not dtype.is_floating_point:
        return f"the feature {feature.name} is of type {dtype}, expected floating point"
    for node in carried:
        if not (flow.batch_first(node) or flow.batch_free(node)):
            return _misplaced_batch("mask", node)
    if (
        flow.trace.length is not None
        and flow.dimension_of_length(values) is None
        and flow.needs_length(after)
    ):
        return "the number of tokens, which is needed later, cannot be told here"
    if any(flow.changed_through_an_alias(node, after, values) for node in values):
        return "two values share storage here and one is changed in place later"
    return ""


def _misplaced_batch(kind: str, node: Node) -> str:
    shape = tuple(node.meta["val"].shape)
    return f"the {kind} {node.name} has shape {shape}: the batch must be first, and only there"


def chosen_cuts(
    flow: Flow,
    calls: Sequence[ModuleCall],
    legal: Sequence[Cut],
    refused: Sequence[RefusedCut],
    cuts: str | Sequence[str],
) -> list[Cut]:
    """The legal cuts that ``cuts`` ("auto", "all" or names) stands for, one per place, in order."""
    if cuts == "auto":
        return _automatic(flow, calls, legal)
    if cuts == "all":
        blocks = _block_ends(calls, legal)
        return _in_order(sorted(legal, key=lambda cut: (cut.name not in blocks, -len(cut.name))))
    if isinstance(cuts, str):
        raise PartitionError(f"cuts: expected 'auto', 'all' or a list of names; got {cuts!r}")
    known = {cut.name: cut for cut in legal}
    reasons = {cut.name: cut.reason for cut in refused}
    for name in cuts:
        if name in reasons and name not in known:
            raise PartitionError(f"cannot cut after {name!r}: {reasons[name]}")
        if name not in known:
            raise PartitionError(f"cuts: {_unknown(name, list(known))}")
    return _in_order([known[name] for name in cuts])


def _unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3) or known[:5]
    return f"no module call {name!r} to cut after; try {', '.join(close) or 'another model'}"


def _in_order(cuts: Sequence[Cut]) -> list[Cut]:
    """One cut per place; of several names the first given wins."""
    places = {cut.border.after: cut for cut in reversed(cuts)}
    return [places[after] for after in sorted(places)]


def _automatic(flow: Flow, calls: Sequence[ModuleCall], legal: Sequence[Cut]) -> list[Cut]:
    by_name = {cut.name: cut for cut in legal}
    found: list[Cut] = []
    for ends in (_block_ends(calls, legal), _leaf_ends(calls)):
        at_ends = _in_order([by_name[name] for name in ends if name in by_name])
        found = max(found, _spaced(flow, at_ends), key=len)
        if len(found) > 1:  # with fewer than two blocks to stop after, it is no model of blocks
            break
    return found


def _block_ends(calls: Sequence[ModuleCall], legal: Sequence[Cut]) -> list[str]:
    """Names of the calls of blocks, in order.

    Parts inside a block that cannot be cut right at their own end (inside a residual block) are none.
    """
    after = {cut.name: cut.border.after for cut in legal}
    listed = [call for call in calls if call.listed]
    listed = [call for call in listed if after.get(call.name) == call.last or not call.inside(listed)]
    composite = [call for call in calls if call.composite]
    blocks = [call for call in composite if not any(part.inside([call]) for part in listed)]
    return [call.name for call in composite if not call.inside(blocks)]


def _leaf_ends(calls: Sequence[ModuleCall]) -> list[str]:
    """Names of the leaf calls after which a leaf with weights follows."""
    leaves = [call for call in calls if not call.composite]
    return [
        before.name
        for before, after in pairwise(leaves)
        if any(parameter.ndim >= 2 for parameter in after.module.parameters())
    ]


def _is_listed_block(path: str, modules: dict[str, nn.Module]) -> bool:
    """A numbered element of a list whose parts are mostly blocks: more than sequences of leaves."""
    owner = modules[path.rpartition(".")[0]]
    if not (path[-1].isdigit() and isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict))):
        return False
    elements = [element for element in owner.children() if _has_parts(element)]
    blocks = [element for element in elements if not isinstance(element, nn.Sequential)]
    return modules[path] in blocks and 2 * len(blocks) >= len(elements)


def _has_parts(module: nn.Module) -> bool:
    return not is_packed(module) and any(True for _ in module.children())


def _spaced(flow: Flow, cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts far enough, in MACs, from the one before and from the end for an exit to make a difference."""
    macs = span_macs(flow, borders(flow, cuts))
    total, done, last = sum(macs), 0, 0
    kept: list[Cut] = []
    for cut, cost in zip(cuts, macs, strict=False):
        done += cost
        if min(done - last, total - done) > _LEAST_SHARE * total:
            kept.append(cut)
            last = done
    return kept
