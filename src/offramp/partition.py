"""Cut a trained model into a chain of segments that together equal it bit for bit.

    model ──trace──▶ operations ──legal cuts──▶ segment ─▶ segment ─▶ ... ─▶ output

A cut sits where a module call ends and is named after it (``layer2.3``; the second call of a shared module is
``block@2``). It is legal where what is alive is one feature tensor, plus tensors that depend on the inputs alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree

from offramp.errors import PartitionError
from offramp.flow import Flow
from offramp.inputs import InputSpec
from offramp.layout import LAYOUTS, find_layout
from offramp.macs import count_macs
from offramp.modules import ModuleCall, block_ends, leaf_ends, module_calls
from offramp.spans import Border, Span, batch_first, batch_free, build_span
from offramp.tracing import evaluating, trace

INPUT = "input"
OUTPUT = "output"
_LEAST_SHARE = (
    0.005  # automatic cuts closer than this share of the MACs to their neighbour or the end are left out
)


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


@dataclass(frozen=True)
class Segment:
    """One link of the chain.

    Args:
        name: of the cut at its end, or "output".
        start: of the cut at its beginning, or "input".
        span: what it computes.
    """

    name: str
    start: str
    span: Span

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The tuple handed on by the segment before (the model's inputs, for the first) to the next tuple.

        The first tensor of a tuple is the feature; the rest depend on the inputs alone. The last segment returns
        the model's outputs, flat; ``Partition.pack`` gives them the model's own structure.
        """
        return self.span(*values)


class Partition:
    """A model as a chain of segments.

    Attributes:
        model: the user's model, untouched.
        spec: structure of its inputs.
        cuts: the chosen cuts, in order.
        legal: every legal cut, in order.
        refused: module ends where no cut is possible, each with its reason.
        segments: one more than cuts.
    """

    def __init__(
        self, flow: Flow, legal: Sequence[Cut], refused: Sequence[RefusedCut], cuts: Sequence[Cut]
    ) -> None:
        self.flow = flow
        self.model: nn.Module = flow.trace.model
        self.spec: InputSpec = flow.trace.spec
        self.legal, self.refused, self.cuts = tuple(legal), tuple(refused), tuple(cuts)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The links of the chain."""
        names = (INPUT, *(cut.name for cut in self.cuts), OUTPUT)
        count = len(self.cuts) + 1
        return tuple(Segment(names[i + 1], names[i], self.span(i, i + 1)) for i in range(count))

    def span(self, start: int, stop: int, device: str | None = None) -> Span:
        """Segments ``start`` to ``stop - 1`` as one function; 0 is the input, ``len(cuts) + 1`` the output."""
        return build_span(self.flow, self.border(start), self.border(stop), device)

    def border(self, index: int) -> Border:
        """Border by index: 0 is the input, i the i-th cut, ``len(cuts) + 1`` the output."""
        if index == 0:
            return Border(-1, self.flow.trace.inputs)
        return self.cuts[index - 1].border if index <= len(self.cuts) else output_border(self.flow)

    def pack(self, flat: Sequence[object]) -> object:
        """The last segment's flat outputs in the structure the model returns."""
        return _pytree.tree_unflatten(list(flat), self.flow.trace.program.call_spec.out_spec)

    def run(self, inputs: object) -> object:
        """The whole chain, segment by segment, on inputs as the model takes them; the model's output comes back."""
        values: tuple[Tensor, ...] = tuple(self.spec.flatten(inputs))
        with torch.no_grad():
            for segment in self.segments:
                values = segment(*values)
        return self.pack(values)


def partition(
    model: nn.Module,
    example_inputs: object,
    *,
    cuts: str | Sequence[str] = "auto",
    layouts: Mapping[str, str] | None = None,
) -> Partition:
    """Cut a model into segments.

    Args:
        model: any module that ``torch.export`` takes with a dynamic batch; it is not changed.
        example_inputs: a tensor, or a tuple or dict of tensors, batch first.
        cuts: "auto" (the end of every block), "all" (every legal cut), or names of cuts.
        layouts: cut name -> layout, for features whose layout the graph does not tell.

    Returns:
        The partition. Its segments have been compared with the model, on the example and on one sample.

    Raises:
        InputError: the example is not a batch of tensors, or the model fails on it.
        PartitionError: the model cannot be exported, changes itself, differs from its segments (it is random in eval
            mode), or a name in ``cuts`` is unknown or not legal.
    """
    flow = Flow(trace(model, example_inputs))
    calls = module_calls(flow)
    legal, refused = _sort_out(flow, calls, dict(layouts or {}))
    chosen = _choose(flow, calls, legal, refused, cuts)
    result = Partition(flow, legal, refused, chosen)
    _verify(result)
    return result


def output_border(flow: Flow) -> Border:
    """The border behind the last operation."""
    return Border(len(flow.nodes) - 1, ())


def _sort_out(
    flow: Flow, calls: Sequence[ModuleCall], layouts: Mapping[str, str]
) -> tuple[list[Cut], list[RefusedCut]]:
    for name, layout in layouts.items():
        if layout not in LAYOUTS:
            raise PartitionError(f"layouts[{name!r}]: expected one of {', '.join(LAYOUTS)}; got {layout!r}")
    legal, refused = [], []
    for call in sorted(calls, key=lambda c: (c.last, len(c.name))):
        cut = _cut(flow, call, layouts)
        (legal if isinstance(cut, Cut) else refused).append(cut)
    return legal, refused  # type: ignore[return-value]


def _cut(flow: Flow, call: ModuleCall, layouts: Mapping[str, str]) -> Cut | RefusedCut:
    alive = flow.alive(call.last)
    features = [node for node in alive if flow.is_feature(node)]
    if not features:
        return RefusedCut(call.name, "nothing has been computed with the model's parameters yet")
    if call.last == len(flow.nodes) - 1:
        return RefusedCut(call.name, "the model is finished here")
    if len(features) > 1:
        names = ", ".join(node.name for node in features)
        return RefusedCut(call.name, f"{len(features)} tensors are alive, expected one feature: {names}")
    feature, carried = features[0], [node for node in alive if not flow.is_feature(node)]
    reason = _objection(flow, feature, carried, call.last)
    if reason:
        return RefusedCut(call.name, reason)
    layout = layouts.get(call.name) or find_layout(flow, feature)
    if layout is None:
        return RefusedCut(
            call.name, "the layout of the feature is unclear; give it as layouts={name: 'NCHW'}"
        )
    value = feature.meta["val"]
    rows = tuple(batch_first(flow, node) for node in carried)
    shape = tuple(int(size) for size in value.shape[1:])
    return Cut(call.name, Border(call.last, (feature, *carried)), layout, shape, value.dtype, rows)


def _objection(flow: Flow, feature: Node, carried: Sequence[Node], after: int) -> str:
    if not batch_first(flow, feature):
        return f"the feature {feature.name} has shape {tuple(feature.meta['val'].shape)}: the batch must be first"
    if not feature.meta["val"].dtype.is_floating_point:
        return f"the feature {feature.name} is of type {feature.meta['val'].dtype}, expected floating point"
    for node in carried:
        if not (batch_first(flow, node) or batch_free(node)):
            return (
                f"the mask {node.name} has the batch in an inner dimension: {tuple(node.meta['val'].shape)}"
            )
    everything = [feature, *carried]
    if any(flow.changed_through_an_alias(node, after, everything) for node in everything):
        return "two values share storage here and one is changed in place later"
    return ""


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
        blocks = set(block_ends(calls))
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
            close = difflib.get_close_matches(name, known, n=3) or list(known)[:5]
            raise PartitionError(
                f"no module call {name!r} to cut after; try {', '.join(close) or 'another model'}"
            )
    return _distinct(sorted((known[name] for name in cuts), key=lambda cut: cut.border.after))


def _distinct(cuts: Sequence[Cut]) -> list[Cut]:
    """One cut per place; of several names the first given wins."""
    return list({cut.border.after: cut for cut in reversed(cuts)}.values())[::-1]


def _automatic(flow: Flow, calls: Sequence[ModuleCall], legal: Sequence[Cut]) -> list[Cut]:
    by_name = {cut.name: cut for cut in legal}
    for ends in (block_ends(calls), leaf_ends(calls)):
        candidates = [by_name[name] for name in ends if name in by_name]
        spaced = _spaced(flow, _distinct(candidates))
        if spaced:
            return spaced
    return []


def _spaced(flow: Flow, cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts far enough, in MACs, from the one before and from the end for an exit to make a difference."""
    if not cuts:
        return []
    borders = [Border(-1, flow.trace.inputs), *(cut.border for cut in cuts), output_border(flow)]
    macs = span_macs(flow, borders)
    total, done, kept, last = sum(macs), 0, [], 0
    for cut, cost in zip(cuts, macs, strict=False):
        done += cost
        if done - last > _LEAST_SHARE * total and total - done > _LEAST_SHARE * total:
            kept.append(cut)
            last = done
    return kept


def span_macs(flow: Flow, borders: Sequence[Border]) -> list[int]:
    """Multiply-accumulate operations per sample between neighbouring borders, counted on the meta device."""
    values = tuple(torch.empty_like(value[:1], device="meta") for value in flow.trace.example)
    counts = []
    for start, stop in zip(borders, borders[1:], strict=False):
        span = build_span(flow, start, stop, device="meta")
        count, values = count_macs(lambda: span.on_meta(*values))  # noqa: B023 (called at once)
        counts.append(count)
    return counts


def _verify(result: Partition) -> None:
    trace_, model = result.flow.trace, result.model
    for size in (len(trace_.example[0]), 1):
        batch = [value[:size].clone() for value in trace_.example]
        args, kwargs = result.spec.call([value.clone() for value in batch])
        with evaluating(model):
            wanted = _pytree.tree_leaves(model(*args, **kwargs))
            got = _pytree.tree_leaves(
                result.run((kwargs and dict(zip(result.spec.names, batch, strict=True))) or batch)
            )
        if len(wanted) != len(got) or not all(_equal(a, b) for a, b in zip(wanted, got, strict=True)):
            raise PartitionError(
                f"{type(model).__name__}: its segments differ from it at batch size {size}; it is random in eval mode "
                "or depends on more than its inputs. Make forward deterministic, then try again"
            )


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return bool(a == b)
