"""A user's model -> one graph of tensor operations with a dynamic batch dimension (torch.export).

The graph keeps, for every operation, the module call it came from; parameters and buffers stay the model's
own and are looked up at each call, so weights that are replaced or updated in place are seen. Nothing of
the model is changed: it is traced in eval mode and every training flag is put back, also after an error.
Tracing comes before any real call, so that a model that changes its own buffers is refused before it has
done so. Tables that modules make at their first call and keep (in a dictionary) are made anew in the graph.
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
    """An exported model.

    Args:
        model: the user's model, untouched.
        spec: structure of its inputs.
        nodes: operations in order of execution.
        inputs: placeholders of the inputs, in the order of ``spec.names``.
        slots: placeholder of each parameter, buffer or constant -> where the tensor lives.
        parameters: the placeholders that are parameters.
        outputs: the flat outputs (nodes or constants).
        program: the exported program, owner of constants and of sub-graphs.
        example: the example batch, flat, of batch size 2 or more.
        packed: layers whose weights the tracer cannot see, in the order their operations count them.
    """

    model: nn.Module
    spec: InputSpec
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    slots: dict[Node, Slot]
    parameters: frozenset[Node]
    outputs: tuple[Any, ...]
    program: ExportedProgram
    example: tuple[Tensor, ...]
    packed: tuple[nn.Module, ...] = ()


def trace(model: nn.Module, example: object) -> Trace:
    """Export a model with a dynamic batch dimension.

    Args:
        model: takes tensors, batch first; any output structure.
        example: a tensor, or a tuple or dict of tensors, of any batch size of at least 1.

    Raises:
        InputError: the example is not a batch of tensors, or the model itself fails on it.
        PartitionError: the model cannot be exported; the message names the line of the model and what to try.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    spec = InputSpec.of(example)
    values = [value.detach().clone() for value in spec.flatten(example)]  # the model may write to its inputs
    if len(values[0]) == 1:  # sizes 0 and 1 are special to the tracer
        values = [torch.cat([value, value]) for value in values]
    with evaluating(model), without_caches(model):
        program = _export(model, spec, values)
    return _read(model, spec, program, tuple(values))


def _export(model: nn.Module, spec: InputSpec, values: list[Tensor]) -> ExportedProgram:
    batch = Dim("batch", min=1)
    args, kwargs = spec.call(values)
    dims = [{0: batch} for _ in spec.names]
    shapes: Any = dict(zip(spec.names, dims, strict=True)) if spec.keyword else tuple(dims)
    try:
        with _quiet(), stand_ins(model):
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        _refuse_failing_model(model, spec, values)
        text = str(error)
        advice = next((a for marks, a in _ADVICE if any(mark in text for mark in marks)), _DEFAULT_ADVICE)
        summary = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
        line = _where(error) or _where_batch_is_fixed(model, spec, values)
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


def _refuse_failing_model(model: nn.Module, spec: InputSpec, values: list[Tensor]) -> None:
    if error := _failure(model, spec, values):
        raise InputError(f"the model fails on example_inputs: {error}{_where(error)}") from error


def _where_batch_is_fixed(model: nn.Module, spec: InputSpec, values: list[Tensor]) -> str:
    """The line that fails when one sample is added: the tracer does not name it."""
    error = _failure(model, spec, [torch.cat([value, value[:1]]) for value in values])
    return _where(error) if error else ""


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


def _where(error: BaseException) -> str:
    """The innermost line of the user's own code in a traceback."""
    own = (Path(torch.__file__).parent, Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        f for f in frames if f.lineno and not any(Path(f.filename).is_relative_to(root) for root in own)
    ]
    theirs = [f for f in theirs if Path(f.filename).is_file()]
    if not theirs:
        return ""
    last = theirs[-1]
    return f"\n  in {last.filename}, line {last.lineno}, in {last.name}: {last.line}"


def _read(model: nn.Module, spec: InputSpec, program: ExportedProgram, example: tuple[Tensor, ...]) -> Trace:
    signature = program.graph_signature
    modules = dict(model.named_modules(remove_duplicate=False))
    user = {name: i for i, name in enumerate(signature.user_inputs)}
    inputs: dict[int, Node] = {}
    slots: dict[Node, Slot] = {}
    parameters: set[Node] = set()
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in user:
            inputs[user[node.name]] = node
        elif node.name in signature.inputs_to_parameters:
            slots[node] = _slot(modules, signature.inputs_to_parameters[node.name])
            parameters.add(node)
        elif node.name in signature.inputs_to_buffers:
            slots[node] = _slot(modules, signature.inputs_to_buffers[node.name])
        elif node.name in signature.inputs_to_lifted_tensor_constants:
            slots[node] = (program.constants, signature.inputs_to_lifted_tensor_constants[node.name])
        else:
            raise PartitionError(f"unsupported input {node.name!r} of the exported graph; wrap the model")
    operations = tuple(n for n in program.graph.nodes if n.op in ("call_function", "get_attr"))
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    ordered = tuple(inputs[i] for i in range(len(inputs)))
    return Trace(
        model,
        spec,
        operations,
        ordered,
        slots,
        frozenset(parameters),
        tuple(output.args[0]),
        program,
        example,
        tuple(packed_layers(model)),
    )


def _slot(modules: dict[str, nn.Module], target: str) -> Slot:
    owner, _, name = target.rpartition(".")
    module = modules[owner]
    return (module._parameters if name in module._parameters else module._buffers), name
