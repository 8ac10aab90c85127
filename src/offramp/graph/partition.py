"""A model as a chain of segments that equals it bit for bit.

partition(model, example) -> Partition.segments: each a function from one border of the chain to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from offramp.data import InputSpec
from offramp.errors import InputError, PartitionError
from offramp.graph.adapter import hooks_off
from offramp.graph.cuts import Cut, RefusedCut, borders, chosen_cuts, module_calls, possible_cuts
from offramp.graph.dataflow import Flow
from offramp.graph.macs import span_macs
from offramp.graph.modes import caches_kept, evaluating
from offramp.graph.spans import Border, Span, SpanBuilder
from offramp.graph.trace import TraceOptions, trace
from offramp.tasks import activate

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
        modules = list(self.model.modules())
        self._children = [module._modules for module in modules if module._modules]
        self._expected = [child for children in self._children for child in children.values()]
        self._owner = next(  # of a parameter whose device and type stand for those of all
            (
                (module._parameters, name)
                for module in modules
                for name, parameter in module._parameters.items()
                if parameter is not None and parameter.is_floating_point()
            ),
            ({}, ""),
        )
        self._kept_as = self._where_kept()

    def _where_kept(self) -> tuple[torch.device, torch.dtype] | None:
        parameter = self._owner[0].get(self._owner[1])
        return None if parameter is None else (parameter.device, parameter.dtype)

    def check_unchanged(self) -> None:
        """Raise ``InputError`` where a sub-module was replaced or the model moved since it was cut.

        Weights may change; it takes a few microseconds.
        """
        found = list(chain.from_iterable(map(dict.values, self._children)))
        if found != self._expected:
            now = dict(self.model.named_modules(remove_duplicate=False))
            before = {id(child) for child in self._expected}
            name = next((name for name, each in now.items() if name and id(each) not in before), "")
            what = f"its part {name!r} is another module" if name else "one of its parts is gone"
            raise InputError(
                f"{type(self.model).__name__} is not the model that was cut: {what}, replaced after "
                "attach_exits; attach exits again, or load them onto the model as it was"
            )
        now_kept = self._where_kept()
        if self._kept_as is not None and now_kept is not None and now_kept != self._kept_as:
            (device, dtype), (other, another) = self._kept_as, now_kept
            raise InputError(
                f"{type(self.model).__name__} was moved or cast after attach_exits: expected parameters "
                f"in {dtype} on {device}, got {another} on {other}; move the model "
                "back, or attach exits again to the model as it is now, with an example on its device"
            )

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

    def macs_at(self, length: int) -> tuple[int, ...]:
        """``macs`` for texts of another length than the example's."""
        return tuple(span_macs(self.flow, self._borders, length))

    def feature_shape(self, position: int, length: int | None = None) -> tuple[int, ...]:
        """Shape of a feature, of one sample, for texts of this length; None: the example's."""
        value = self.cuts[position - 1].border.activations[0].meta["val"]
        return tuple(self.flow.concrete(size, length) for size in value.shape[1:])

    def span(self, start: int, stop: int) -> Span:
        """Segments ``start`` to ``stop - 1`` as one function; 0: the input, ``len(cuts) + 1``: the output."""
        return SpanBuilder(self.flow, self.border(start)).build(self.border(stop))

    @property
    def activation(self) -> str | None:
        """What the model applies to the outputs of the last segment at its end; None: nothing."""
        return self.flow.trace.activation

    @property
    def selected(self) -> bool:
        """Whether the answer is all that was traced of what the model returns."""
        return self.flow.trace.selected

    def border(self, index: int) -> Border:
        """Border by index: 0 is the input, i the i-th cut, ``len(cuts) + 1`` the output."""
        return self._borders[index]

    def carried_per_sample(self, position: int) -> tuple[bool, ...]:
        """For each value that crosses a border beside the feature: whether it has one row per sample."""
        if position == 0:
            return (True,) * (len(self.spec.names) - 1)
        return self.cuts[position - 1].carried_per_sample if position <= len(self.cuts) else ()

    def pack(self, flat: Sequence[object]) -> object:
        """The last segment's flat outputs in the structure the model returns, or its answer alone."""
        activation = self.flow.trace.activation
        if activation is not None:
            first: Any = flat[0]
            flat = [activate(activation, first), *flat[1:]]
        return _pytree.tree_unflatten(list(flat), self._structure)

    def flatten(self, inputs: object) -> list[Tensor]:
        """``spec.flatten``, of a model that is what it was when it was cut."""
        self.check_unchanged()
        return self.spec.flatten(inputs)

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
    options: TraceOptions = TraceOptions(),  # noqa: B008
) -> Partition:
    """Cut a model into segments.

    Args:
        model: any module that ``torch.export`` takes with a dynamic batch; it is not changed.
        example_inputs: a tensor, or a tuple or dict of tensors, batch first.
        cuts: "auto" (the end of every block), "all" (every legal cut), or names of cuts.
        layouts: cut name -> layout, for features whose layout the graph does not tell.
        options: how it is traced.

    Returns:
        The partition. Its segments have been compared with the model, on the example and on one sample.

    Raises:
        InputError: the example is not a batch of tensors, or the model fails on it.
        PartitionError: the model cannot be exported, changes itself, differs from its segments (it is random
            in eval mode), or a name in ``cuts`` or ``layouts`` is unknown or not legal.
    """
    result = _cut(model, example_inputs, cuts, layouts or {}, options)
    try:
        with caches_kept(result.model):
            _verify(result, options)
    except PartitionError:
        with hooks_off(result.model) as hooked:
            pass
        if not hooked or options.hooks:
            raise
        return partition(  # hooks that change what is computed are part of it
            model, example_inputs, cuts=cuts, layouts=layouts, options=replace(options, hooks=True)
        )
    return result


def _cut(
    model: nn.Module,
    example: object,
    cuts: str | Sequence[str],
    layouts: Mapping[str, str],
    options: TraceOptions,
) -> Partition:
    flow = Flow(trace(model, example, options))
    calls = module_calls(flow)
    legal, refused = possible_cuts(flow, calls, layouts)
    return Partition(flow, legal, refused, chosen_cuts(flow, calls, legal, refused, cuts))


def _verify(result: Partition, options: TraceOptions) -> None:
    """Compare the segments with the model on the example, on its first sample and on shorter texts."""
    trace, name = result.flow.trace, type(result.model).__name__
    answers = []
    for values in _samples(result):
        size = len(values[0])
        args, kwargs = result.spec.call([value.clone() for value in values])
        with evaluating(result.model), torch.compiler.set_stance("force_eager"):
            try:
                output = result.model(*args, **kwargs)
            except Exception as error:  # what tracing did not see, such as types that do not fit
                raise InputError(f"the model fails on example_inputs: {error}") from error
        try:
            wanted = _pytree.tree_leaves(output if options.select is None else options.select(output))
        except InputError:
            if size > 1:
                raise
            raise _no_batch(name) from None
        args, kwargs = result.spec.call([value.clone() for value in values])
        got = _pytree.tree_leaves(result.run(kwargs or args))
        equal = _equal if trace.exact else _close
        if len(wanted) != len(got) or not all(map(equal, wanted, got)):
            raise PartitionError(
                f"{name}: its segments differ from it at batch size {size}; it is random in eval mode or "
                "depends on more than its inputs. Make forward deterministic, then try again"
            )
        answers.append(wanted)
    coarse = 0.25 if trace.packed else 0.01  # int8 scales are those of the whole batch
    together, alone = answers[:2]
    if any(map(_lost_batch, together, alone)):
        raise _no_batch(name)
    if any(_mixed(*pair, coarse) for pair in zip(together, alone, strict=True)):
        raise PartitionError(
            f"{name}: its answer to a sample depends on the others in the batch (attention without "
            "batch_first, or a norm that uses batch statistics?), so samples cannot leave one by one"
        )


def _no_batch(name: str) -> PartitionError:
    return PartitionError(
        f"{name}: its answer to one sample has no batch dimension (squeeze() removes it); "
        "use squeeze with the dimensions to remove, such as squeeze(-1), or flatten(1)"
    )


def _samples(result: Partition) -> Iterator[list[Tensor]]:
    """The example, one sample of it, and where lengths vary the example cut short."""
    example, lengths = result.flow.trace.example, result.spec.lengths
    yield list(example)
    yield [value[:1] for value in example]
    if lengths is not None and lengths.vary:
        shorter = max(lengths.limits[0], lengths.longest - 1)
        yield [value[:, :shorter] if i in lengths.inputs else value for i, value in enumerate(example)]


def _lost_batch(together: object, alone: object) -> bool:
    """Whether the answer to one sample lacks a dimension that the answers to several have."""
    return (
        isinstance(together, Tensor)
        and isinstance(alone, Tensor)
        and together.ndim > 0
        and alone.shape != (1, *together.shape[1:])
        and alone.ndim < together.ndim
    )


def _mixed(together: object, alone: object, share: float) -> bool:
    """Whether the first sample's answer among others is far from its answer alone, by more than rounding."""
    if not (isinstance(together, Tensor) and isinstance(alone, Tensor) and alone.dtype.is_floating_point):
        return False
    if together.shape[1:] != alone.shape[1:] or alone.ndim == 0:
        return False
    tolerance = share if alone.dtype.itemsize >= 4 else 0.25
    first, alone = together[:1].nan_to_num(), alone.nan_to_num(neginf=0.0, posinf=0.0)
    first = torch.where(together[:1].isfinite(), first, 0.0)  # classes masked with -inf are equal anyway
    return bool((first - alone).abs().max() > tolerance * alone.abs().max())


def _close(a: object, b: object) -> bool:
    """Equal up to the rounding of a function and its inverse."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5)
    return bool(a == b)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and bool(((a == b) | ((a != a) & (b != b))).all())
    return bool(a == b)
