"""A user's model -> one graph of tensor operations with a dynamic batch dimension (torch.export).

For models of texts the number of tokens is dynamic too, where the model can be traced so. A model whose last
operation makes probabilities is traced up to the logits before it.

Parameters and buffers stay the model's own and are looked up at each call, so weights that are replaced or
updated in place are seen. Nothing of the model is changed: it is traced in eval mode and every training flag
is put back, also after an error. Tracing comes before any real call, so that a model that changes its own
buffers is refused before it has done so. Tables that modules make at their first call and keep (in a
dictionary) are made anew in the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from offramp.data import InputSpec, Lengths, as_tensors
from offramp.errors import InputError, PartitionError
from offramp.graph.adapter import (
    Select,
    adapted,
    called_with,
    hooks_off,
    refuse_scripted,
    unwrapped,
    without_labels,
)
from offramp.graph.dynamic_quant import packed_layers, stand_ins
from offramp.graph.ending import last_activation
from offramp.graph.modes import evaluating, without_caches
from offramp.tasks import AUTO, undone

Slot = tuple[dict[str, Any], str]
"""Where a tensor lives: the dictionary of its owner and its name there."""

_ADVICE = (
    (("data-dependent", "DataDependent", "Tensor-likes to bool", "boolean value of Tensor"),
     "forward branches on the values of a tensor; use torch.where, or move the branch out of the model"),
    (("onstraint", "specializ", "Specializ"),
     "forward fixes the batch size; use x.shape[0] instead of len(x) or a number, and -1 in view/reshape"),
    (("__obj_flatten__", "quantized::"),
     "of quantised layers only those of quantize_dynamic(model, {torch.nn.Linear}) can be traced"),
    (("uninitialized parameter",),
     "run the model once on a batch, so that its lazy modules know their shapes"),
    (("is not a known type",),
     "return a tensor, or a tuple or dict of tensors, or pass the class to torch.export.register_dataclass"),
)  # fmt: skip
_DEFAULT_ADVICE = (
    "make that line traceable, or wrap the model; `torch.export.export` must accept it with a dynamic batch"
)


@dataclass(frozen=True)
class Trace:
    """The user's model, untouched, and its exported program, which owns constants and sub-graphs.

    ``nodes`` are the operations in order of execution, ``inputs`` the placeholders in the order of
    ``spec.names``, ``outputs`` flat (nodes or constants), ``example`` a flat batch of 2 samples or more, and
    ``packed`` the layers whose weights the tracer cannot see, in the order their operations count them.
    ``activation`` names what the model applies to ``outputs`` at its end; ``exact`` is false where it had to
    be undone by its inverse. ``length`` is the number of tokens, where that is dynamic.
    """

    model: nn.Module
    spec: InputSpec
    program: ExportedProgram
    example: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Any, ...]
    slots: dict[Node, Slot]
    parameters: frozenset[Node]
    packed: tuple[nn.Module, ...]
    activation: str | None = None
    exact: bool = True
    selected: bool = False
    length: torch.SymInt | None = None


@dataclass(frozen=True)
class TraceOptions:
    """How a model is traced.

    Args:
        select: picks the answer out of what the model returns; None traces all of it.
        activation: what an answer that was selected ends with; "auto" finds out, None leaves it as it is.
        activations: those that "auto" looks for.
        hooks: whether hooks of the user's are part of the computation.
        mask: name of the input that tells real tokens from padding, for models of texts.
    """

    select: Select | None = None
    activation: str | None = None
    activations: tuple[str, ...] = ()
    hooks: bool = False
    mask: str | None = "attention_mask"


def trace(model: nn.Module, example: object, options: TraceOptions = TraceOptions()) -> Trace:
    """Export a model with a dynamic batch dimension, and with dynamic lengths of texts where that works.

    ``InputError``: the example is no batch of tensors, or the model fails on it. ``PartitionError``: the
    model cannot be exported; the message names its line and what to try.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    refuse_scripted(model)
    example = without_labels(model, as_tensors(example))
    spec = called_with(model, InputSpec.of(example))
    values = [value.detach().clone() for value in spec.flatten(example)]  # the model may write to its inputs
    if len(values[0]) == 1:  # sizes 0 and 1 are special to the tracer
        values = [torch.cat([value, value]) for value in values]
    lengths = _lengths(model, spec, values, options.mask)
    with contextlib.ExitStack() as stack:
        if not options.hooks:
            stack.enter_context(hooks_off(model))
        stack.enter_context(evaluating(model))
        stack.enter_context(without_caches(model))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if lengths is not None:
            try:
                program = _export(model, spec, values, options.select, lengths)
                return _traced(model, spec.with_lengths(lengths), program, values, options)
            except PartitionError:  # other operations than those of one length
                spec = spec.with_lengths(replace(lengths, limits=(lengths.longest,) * 2))
        program = _export(model, spec, values, options.select)
        return _traced(model, spec, program, values, options)


def _traced(
    model: nn.Module, spec: InputSpec, program: ExportedProgram, values: list[Tensor], options: TraceOptions
) -> Trace:
    outputs, activation, exact = tuple(program.graph.output_node().args[0]), options.activation, True
    if options.select is not None and activation is not None:
        wanted = options.activations if activation == AUTO else (activation,)
        found, before = last_activation(outputs[0], wanted)
        if found is not None:
            outputs = (before, *outputs[1:])
        elif activation != AUTO:
            program, exact = _export_undone(model, spec, values, options, activation), False
            outputs, found = tuple(program.graph.output_node().args[0]), activation
        activation = found
    slots, parameters, inputs = _placeholders(model, program)
    length = None
    if spec.lengths is not None and spec.lengths.vary:
        length = inputs[spec.lengths.inputs[0]].meta["val"].shape[1]
        bounds = program.range_constraints[length.node.expr]
        limits = int(bounds.lower), spec.lengths.longest
        spec = spec.with_lengths(replace(spec.lengths, limits=limits))
    return Trace(
        model=model,
        spec=spec,
        program=program,
        example=tuple(values),
        nodes=tuple(n for n in program.graph.nodes if n.op in ("call_function", "get_attr")),
        inputs=tuple(inputs),
        outputs=outputs,
        slots=slots,
        parameters=frozenset(parameters),
        packed=tuple(packed_layers(model)),
        activation=activation,
        exact=exact,
        selected=options.select is not None,
        length=length,
    )


def _export_undone(
    model: nn.Module, spec: InputSpec, values: list[Tensor], options: TraceOptions, activation: str
) -> ExportedProgram:
    """The model with the inverse of a function behind its answer."""
    select: Any = options.select
    lengths = spec.lengths if spec.lengths is not None and spec.lengths.vary else None
    return _export(model, spec, values, lambda output: undone(activation, select(output)), lengths)


def _lengths(model: nn.Module, spec: InputSpec, values: list[Tensor], mask: str | None) -> Lengths | None:
    """Which inputs have the length of the texts; None for models without a mask (B, L)."""
    if not spec.keyword or mask not in spec.names or len(spec.shapes[spec.names.index(mask)]) != 1:
        return None
    at = spec.names.index(mask)
    longest = spec.shapes[at][0]
    inputs = tuple(i for i, shape in enumerate(spec.shapes) if shape[:1] == (longest,))
    padded = values[at] == 0
    return Lengths(
        inputs=inputs,
        padding=tuple(_padding(model, spec.names[i], values[i], padded, i == at) for i in inputs),
        longest=longest,
        limits=(1, longest),
    )


def _padding(model: nn.Module, name: str, value: Tensor, padded: Tensor, is_mask: bool) -> int:
    """What an input holds where there is no token: the tokenizer's padding for its ids, else 0."""
    if is_mask or value.dtype.is_floating_point or "mask" in name or "type" in name or "position" in name:
        return 0
    known = getattr(getattr(model, "config", None), "pad_token_id", None)
    if isinstance(known, int):
        return known
    seen: Tensor = torch.unique(value[padded]) if value.shape == padded.shape else value[:0]
    return int(seen[0]) if len(seen) == 1 else 0


def _export(
    model: nn.Module,
    spec: InputSpec,
    values: list[Tensor],
    select: Select | None,
    lengths: Lengths | None = None,
) -> ExportedProgram:
    batch = Dim("batch", min=1)
    vary = () if lengths is None else lengths.inputs
    shapes: Any = tuple(
        {0: batch, 1: Dim.DYNAMIC} if i in vary else {0: batch} for i in range(len(spec.names))
    )
    try:
        with _quiet(), stand_ins(model), adapted(model, spec, select):
            return torch.export.export(model, tuple(values), dynamic_shapes=shapes, strict=False)
    except InputError:
        raise
    except Exception as error:
        if fails := _failure(model, spec, values):
            hint = _unbatched(model, spec, values)
            raise InputError(
                f"the model fails on example_inputs: {fails}{_where(_frames(fails))}{hint}"
            ) from fails
        text = str(error)
        advice = next((a for marks, a in _ADVICE if any(mark in text for mark in marks)), _DEFAULT_ADVICE)
        summary = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
        more = [torch.cat([value, value[:1]]) for value in values]
        failure = _failure(model, spec, more)  # the tracer names no fixed batch size
        line = _where(_frames(error)) or _where(_frames(failure))
        line = line or _where(_fixed_at(model, spec, values, select, shapes))
        raise PartitionError(
            f"cannot export {type(model).__name__}: {summary}{line}\n  try: {advice}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer logs and prints whole graphs before it raises; the error we raise says what matters."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # pruning and weight norm set the weight anew in every call
            warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export")
            yield
    finally:
        log.setLevel(level)


def _failure(model: nn.Module, spec: InputSpec, values: list[Tensor]) -> Exception | None:
    """The error of a real call, if any; buffers that the call changes are put back."""
    owners = [(module, dict(module._buffers)) for module in model.modules()]
    kept = [(b, b.clone()) for _, buffers in owners for b in buffers.values() if b is not None]
    args, kwargs = spec.call([value.clone() for value in values])
    try:
        model(*args, **kwargs)
    except Exception as error:
        return error
    finally:
        for module, buffers in owners:
            module._buffers.update(buffers)
        for buffer, value in kept:
            buffer.copy_(value)
    return None


def _unbatched(model: nn.Module, spec: InputSpec, values: list[Tensor]) -> str:
    """A hint, where the model takes the example as one sample."""
    alone = _failure(model, spec, [value.unsqueeze(0) for value in values]) is None
    return (
        "\n  the example is one sample without a batch dimension: pass example.unsqueeze(0)" if alone else ""
    )


def _fixed_at(
    model: nn.Module, spec: InputSpec, values: list[Tensor], select: Select | None, shapes: Any
) -> Sequence[traceback.FrameSummary]:
    """The stack when the tracer takes the batch size for a constant; empty where it does not."""
    found: list[Sequence[traceback.FrameSummary]] = []
    replace_symbol = ShapeEnv._set_replacement

    def watched(env: ShapeEnv, symbol: Any, value: Any, *rest: Any) -> None:
        if getattr(value, "is_Integer", False):
            found.append(traceback.extract_stack())
        replace_symbol(env, symbol, value, *rest)

    with (
        patch.object(ShapeEnv, "_set_replacement", watched),
        contextlib.suppress(Exception),
        _quiet(),
        stand_ins(model),
        adapted(model, spec, select),
    ):
        torch.export.export(model, tuple(values), dynamic_shapes=shapes, strict=False)
    return found[0] if found else ()


def _frames(error: Exception | None) -> Sequence[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__ if error else None)


def _where(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of the user's own code in a stack; empty without one."""
    own = (Path(torch.__file__).parent, Path(__file__).parents[1])
    for frame in reversed(frames):
        path = Path(frame.filename)
        if frame.lineno and path.is_file() and not any(path.is_relative_to(root) for root in own):
            inside = frame.name in ("<module>", "_call_impl", "_wrapped_call_impl")
            if not inside:
                return f"\n  in {frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line}"
    return ""


def _placeholders(
    model: nn.Module, program: ExportedProgram
) -> tuple[dict[Node, Slot], list[Node], list[Node]]:
    """Where the tensor of each parameter, buffer and constant lives; the parameters; the model's inputs."""
    modules = dict(model.named_modules(remove_duplicate=False))
    slots: dict[Node, Slot] = {}
    parameters: list[Node] = []
    inputs: list[Node] = []
    nodes = program.graph.find_nodes(op="placeholder")
    for node, given in zip(nodes, program.graph_signature.input_specs, strict=True):
        owner, _, name = str(given.target).rpartition(".")
        if given.kind is InputKind.USER_INPUT:
            inputs.append(node)
        elif given.kind is InputKind.PARAMETER:
            slots[node] = modules[owner]._parameters, name
            parameters.append(node)
        elif given.kind is InputKind.BUFFER:
            slots[node] = modules[owner]._buffers, name
        elif given.kind is InputKind.CONSTANT_TENSOR:
            slots[node] = program.constants, str(given.target)
        else:
            raise PartitionError(f"unsupported input {node.name!r} of the exported graph; wrap the model")
    return slots, parameters, inputs
