"""Cut a trained model into a chain of segments that together equal it bit for bit.

    model ──trace──▶ operations ──legal cuts──▶ segment ─▶ segment ─▶ ... ─▶ output

A cut sits where a module call ends and is named after it (``layer2.3``; the second call of a shared module is
``block@2``); where it is not legal there, at the first legal place before the next call (``x + block(x)``).
It is legal where what is alive is one feature tensor, plus tensors that depend on the inputs alone. "Equal"
means: as the model computes with ``torch.backends.mha.set_fastpath_enabled(False)``; the fused path of
``nn.TransformerEncoderLayer`` differs from its own plain path in the last bits.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree

from offramp.errors import PartitionError
from offramp.flow import Flow, batch_free, is_tensor
from offramp.inputs import InputSpec
from offramp.layout import LAYOUTS, find_layout
from offramp.macs import count_macs
from offramp.modes import caches_kept, evaluating
from offramp.modules import ModuleCall, block_ends, leaf_ends, module_calls
from offramp.spans import Border, Span, build_span
from offramp.tracing import trace

INPUT = "input"
OUTPUT = "output"
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

        The first tensor of a tuple is the feature; the rest depend on the inputs alone. The last segment
        returns the model's outputs, flat; ``Partition.pack`` gives them the model's own structure.
        A segment may change the feature it is handed in place, where the model does.
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
        self._structure = flow.trace.program.call_spec.out_spec  # the program builds it anew at each access
        self.model: nn.Module = flow.trace.model
        self.spec: InputSpec = flow.trace.spec
        self.legal, self.refused, self.cuts = tuple(legal), tuple(refused), tuple(cuts)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The links of the chain."""
        names = (INPUT, *(cut.name for cut in self.cuts), OUTPUT)
        count = len(self.cuts) + 1
        return tuple(Segment(names[i + 1], names[i], self.span(i, i + 1)) for i in range(count))

    @cached_property
    def macs(self) -> tuple[int, ...]:
        """Multiply-accumulates per sample of each segment; counted once, however many networks ask."""
        return tuple(span_macs(self.flow, [self.border(i) for i in range(len(self.cuts) + 2)]))

    def span(self, start: int, stop: int, device: str | None = None) -> Span:
        """Segments ``start`` to ``stop - 1`` as one function; 0: the input, ``len(cuts) + 1``: the output."""
        return build_span(self.flow, self.border(start), self.border(stop), device)

    def border(self, index: int) -> Border:
        """Border by index: 0 is the input, i the i-th cut, ``len(cuts) + 1`` the output."""
        if index == 0:
            return Border(-1, self.flow.trace.inputs)
        return self.cuts[index - 1].border if index <= len(self.cuts) else output_border(self.flow)

    def pack(self, flat: Sequence[object]) -> object:
        """The last segment's flat outputs in the structure the model returns."""
        return _pytree.tree_unflatten(list(flat), self._structure)

    def run(self, inputs: object) -> object:
        """The whole chain, segment by segment, on inputs as the model takes them; returns what it returns."""
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
        PartitionError: the model cannot be exported, changes itself, differs from its segments (it is
        random in
            eval mode), or a name in ``cuts`` or ``layouts`` is unknown or not legal.
    """
    flow = Flow(trace(model, example_inputs))
    calls = module_calls(flow)
    legal, refused = _sort_out(flow, calls, dict(layouts or {}))
    chosen = _choose(flow, calls, legal, refused, cuts)
    result = Partition(flow, legal, refused, chosen)
    with caches_kept(model):
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
    handed = (features[0], *(node for node in alive if node is not features[0]))
    reason = _objection(flow, handed, after)
    if reason:
        return RefusedCut(name, reason)
    value = features[0].meta["val"]
    layout = layout or find_layout(flow, features[0])
    if layout is None or len(layout) != value.ndim:
        return RefusedCut(name, _unclear(layout, tuple(value.shape[1:])))
    rows = tuple(flow.batch_first(node) for node in handed[1:])
    return Cut(name, Border(after, handed), layout, tuple(value.shape[1:]), value.dtype, rows)


def _objection(flow: Flow, handed: tuple[Node, ...], after: int) -> str:
    """Why these values, the feature first, cannot be handed on; empty where they can."""
    feature = handed[0]
    for node in handed:
        if not is_tensor(node):
            return f"{node.name} is alive, which is no tensor but {type(node.meta['val']).__name__}"
    shape, dtype = tuple(feature.meta["val"].shape), feature.meta["val"].dtype
    if not flow.batch_first(feature):
        return f"the feature {feature.name} has shape {shape}: the batch must be first, and only there"
    if not dtype.is_floating_point:
        return f"the feature {feature.name} is of type {dtype}, expected floating point"
    for node in handed[1:]:
        if not (flow.batch_first(node) or batch_free(node)):
            shape = tuple(node.meta["val"].shape)
            return f"the mask {node.name} has shape {shape}: the batch must be first, and only there"
    if any(flow.changed_through_an_alias(node, after, list(handed)) for node in handed):
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


def span_macs(flow: Flow, borders: Sequence[Border]) -> list[int]:
    """Multiply-accumulate operations per sample between neighbouring borders, counted on the meta device."""
    values = tuple(torch.empty_like(value[:1], device="meta") for value in flow.trace.example)
    counts = []
    for start, stop in pairwise(borders):
        span = build_span(flow, start, stop, device="meta")
        try:
            count, values = count_macs(lambda: span.on_meta(*values))  # noqa: B023 (called at once)
        except (NotImplementedError, RuntimeError) as error:
            raise PartitionError(
                f"cannot count the operations of {type(flow.trace.model).__name__}: {error}\n"
                "  try: avoid shapes that depend on values (nonzero, masks as indices)"
            ) from error
        counts.append(count)
    return counts


def _verify(result: Partition) -> None:
    example, name = result.flow.trace.example, type(result.model).__name__
    answers = []
    for size in (len(example[0]), 1):
        wanted, got = map(_pytree.tree_leaves, _both(result, [value[:size] for value in example]))
        if len(wanted) != len(got) or not all(map(_equal, wanted, got)):
            raise PartitionError(
                f"{name}: its segments differ from it at batch size {size}; it is random in eval mode or "
                "depends on more than its inputs. Make forward deterministic, then try again"
            )
        answers.append(wanted)
    coarse = 0.25 if result.flow.trace.packed else 0.01  # int8 scales are those of the whole batch
    if any(_mixed(together, alone, coarse) for together, alone in zip(*answers, strict=True)):
        raise PartitionError(
            f"{name}: its answer to a sample depends on the others in the batch (attention without "
            "batch_first, or a norm that uses batch statistics?), so samples cannot leave one by one"
        )


def _mixed(together: object, alone: object, share: float) -> bool:
    """Whether the first sample's answer among others is far from its answer alone, by more than rounding."""
    if not (isinstance(together, Tensor) and isinstance(alone, Tensor) and alone.dtype.is_floating_point):
        return False
    if together.shape[1:] != alone.shape[1:] or alone.ndim == 0:
        return False
    tolerance = share if alone.dtype.itemsize >= 4 else 0.25
    return bool((together[:1] - alone).abs().max() > tolerance * alone.abs().max())


def _both(result: Partition, values: Sequence[Tensor]) -> tuple[object, object]:
    """Output of the model and of its segments, each on copies of the inputs."""
    args, kwargs = result.spec.call([value.clone() for value in values])
    with evaluating(result.model):
        output = result.model(*args, **kwargs)
    args, kwargs = result.spec.call([value.clone() for value in values])
    return output, result.run(kwargs or args)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and bool(((a == b) | ((a != a) & (b != b))).all())
    return bool(a == b)
