"""A user's model -> one graph of tensor operations with a dynamic batch dimension (torch.export).

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from offramp.data import InputSpec
from offramp.errors import InputError, PartitionError
from offramp.graph.dynamic_quant import packed_layers, stand_ins
from offramp.graph.modes import evaluating, without_caches

Slot = tuple[dict[str, Any], str]
"""Where a tensor lives: the dictionary of its owner and its name there."""

_ADVICE = (
    (("data-dependent", "DataDependent", "Tensor-likes to bool", "boolean value of Tensor"),
     "forward branches on the values of a tensor; use torch.where, or move the branch out of the model"),
    (("onstraint", "specializ", "Specializ"),
     "forward fixes the batch size; use x.shape[0] instead of len(x) or a number, and -1 in view/reshape"),
    (("__obj_flatten__", "quantized::"),
     "of quantised layers only those of quantize_dynamic(model, {torch.nn.Linear}) can be traced"),
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


def trace(model: nn.Module, example: object) -> Trace:
    """Export a model with a dynamic batch dimension.

    ``InputError``: the example is no batch of tensors, or the model fails on it. ``PartitionError``: the
    model cannot be exported; the message names its line and what to try.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    spec = InputSpec.of(example)
    values = [value.detach().clone() for value in spec.flatten(example)]  # the model may write to its inputs
    if len(values[0]) == 1:  # sizes 0 and 1 are special to the tracer
        values = [torch.cat([value, value]) for value in values]
    with evaluating(model), without_caches(model):
        program = _export(model, spec, values)
    slots, parameters, inputs = _placeholders(model, program)
    return Trace(
        model=model,
        spec=spec,
        program=program,
        example=tuple(values),
        nodes=tuple(n for n in program.graph.nodes if n.op in ("call_function", "get_attr")),
        inputs=tuple(inputs),
        outputs=tuple(program.graph.output_node().args[0]),
        slots=slots,
        parameters=frozenset(parameters),
        packed=tuple(packed_layers(model)),
    )


def _export(model: nn.Module, spec: InputSpec, values: list[Tensor]) -> ExportedProgram:
    batch = Dim("batch", min=1)
    args, kwargs = spec.call(values)
    dims = [{0: batch} for _ in spec.names]
    shapes: Any = dict(zip(spec.names, dims, strict=True)) if spec.keyword else tuple(dims)
    try:
        with _quiet(), stand_ins(model):
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        if fails := _failure(model, spec, values):
            raise InputError(f"the model fails on example_inputs: {fails}{_where(fails)}") from fails
        text = str(error)
        advice = next((a for marks, a in _ADVICE if any(mark in text for mark in marks)), _DEFAULT_ADVICE)
        summary = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
        more = [torch.cat([value, value[:1]]) for value in values]
        line = _where(error) or _where(_failure(model, spec, more))  # the tracer names no fixed batch size
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
        with contextlib.redirect_stderr(io.StringIO()):
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


def _where(error: Exception | None) -> str:
    """The innermost line of the user's own code in a traceback; empty without one."""
    own = (Path(torch.__file__).parent, Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__ if error else None)):
        path = Path(frame.filename)
        if frame.lineno and path.is_file() and not any(path.is_relative_to(root) for root in own):
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
