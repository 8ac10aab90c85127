"""A model as a chain of segments that equals it bit for bit.

partition(model, example) -> Partition.segments: each a function from one border of the chain to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from offramp.data import InputSpec
from offramp.errors import PartitionError
from offramp.graph.cuts import Cut, RefusedCut, borders, chosen_cuts, module_calls, possible_cuts
from offramp.graph.dataflow import Flow
from offramp.graph.macs import span_macs
from offramp.graph.modes import caches_kept, evaluating
from offramp.graph.spans import Border, Span, SpanBuilder
from offramp.graph.trace import trace

INPUT = "input"
OUTPUT = "output"


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
        """From the tuple of the segment before (the model's inputs, for the first) to the next tuple.

        The first tensor of a tuple is the feature; the rest depend on the inputs alone. The last segment
        returns the model's outputs, flat; ``Partition.pack`` gives them the model's own structure.
        A segment may change the feature it is given in place, where the model does.
        """
        return self.span(*values)


class Partition:
    """A model, untouched, as a chain of segments, one more than ``cuts``; ``spec`` tells of its inputs.

    ``legal`` are the cuts there could be, in order; ``refused`` the module ends where none is possible, each
    with its reason.
    """

    def __init__(
        self, flow: Flow, legal: Sequence[Cut], refused: Sequence[RefusedCut], cuts: Sequence[Cut]
    ) -> None:
        self.flow = flow
        self._structure = flow.trace.program.call_spec.out_spec  # the program builds it anew at each access
        self.model: nn.Module = flow.trace.model
        self.spec: InputSpec = flow.trace.spec
        self.legal, self.refused, self.cuts = tuple(legal), tuple(refused), tuple(cuts)
        self._borders = borders(flow, cuts)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The links of the chain."""
        names = (INPUT, *(cut.name for cut in self.cuts), OUTPUT)
        links = enumerate(pairwise(names))
        return tuple(Segment(name, start, self.span(i, i + 1)) for i, (start, name) in links)

    @cached_property
    def macs(self) -> tuple[int, ...]:
        """Multiply-accumulates per sample of each segment; counted once."""
        return tuple(span_macs(self.flow, self._borders))

    def span(self, start: int, stop: int) -> Span:
        """Segments ``start`` to ``stop - 1`` as one function; 0: the input, ``len(cuts) + 1``: the output."""
        return SpanBuilder(self.flow, self.border(start)).build(self.border(stop))

    def border(self, index: int) -> Border:
        """Border by index: 0 is the input, i the i-th cut, ``len(cuts) + 1`` the output."""
        return self._borders[index]

    def carried_per_sample(self, position: int) -> tuple[bool, ...]:
        """For each value that crosses a border beside the feature: whether it has one row per sample."""
        if position == 0:
            return (True,) * (len(self.spec.names) - 1)
        return self.cuts[position - 1].carried_per_sample if position <= len(self.cuts) else ()

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
        PartitionError: the model cannot be exported, changes itself, differs from its segments (it is random
            in eval mode), or a name in ``cuts`` or ``layouts`` is unknown or not legal.
    """
    flow = Flow(trace(model, example_inputs))
    calls = module_calls(flow)
    legal, refused = possible_cuts(flow, calls, layouts or {})
    result = Partition(flow, legal, refused, chosen_cuts(flow, calls, legal, refused, cuts))
    with caches_kept(model):
        _verify(result)
    return result


def _verify(result: Partition) -> None:
    """Compare the segments with the model on the example and on its first sample, each on copies."""
    example, name = result.flow.trace.example, type(result.model).__name__
    answers = []
    for size in (len(example[0]), 1):
        args, kwargs = result.spec.call([value[:size].clone() for value in example])
        with evaluating(result.model):
            wanted = _pytree.tree_leaves(result.model(*args, **kwargs))
        args, kwargs = result.spec.call([value[:size].clone() for value in example])
        got = _pytree.tree_leaves(result.run(kwargs or args))
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


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and bool(((a == b) | ((a != a) & (b != b))).all())
    return bool(a == b)
