"""Spans as compiled code: one function for a single sample, one for every larger batch.

    editable graph ──▶ a module that holds its parameters ──inductor | aot──▶ functions of activations

Compiled code expects values laid out in memory as those it was made with. So each value is checked by its
strides and copied where they differ, and nothing is compiled later than here. Parameters become constants:
batch norms are folded into convolutions, weights are laid out as the processor likes them.
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from offramp.errors import InputError
from offramp.runtime.rewrite import EditableGraph, Parameters

Values = tuple[Tensor, ...]
CompiledFn = Callable[[list[Tensor]], Sequence[Tensor]]

_ATEN = torch.ops.aten
_NO_COMPILER = ("No working C++ compiler", "InvalidCxxCompiler", "working triton")


_FORMATS = (torch.contiguous_format, torch.channels_last)
_COMPILING = threading.Lock()  # of the whole process: compilers keep settings that threads share


@dataclass(frozen=True)
class CompiledSpan:
    """A span as compiled code: one function for a single sample, one for batches of two and more.

    ``strides`` are those of each value it takes, at every batch size; ``order`` has, for each value returned,
    its index among the results, or ~i for the i-th value it takes.
    """

    one: CompiledFn
    many: CompiledFn
    strides: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]

    def __call__(self, *activations: Tensor) -> tuple[Tensor, ...]:
        """Run it, on any batch of at least one sample."""
        given = [
            value if value.stride() == strides else _with_strides(value, strides)
            for value, strides in zip(activations, self.strides, strict=True)
        ]
        found = self.one(given) if len(activations[0]) == 1 else self.many(given)
        return tuple(found[i] if i >= 0 else activations[~i] for i in self.order)


def compile_span(
    found: EditableGraph,
    parameters: Parameters,
    compiler: str,
    example: Values,
    per_sample: Sequence[bool],
    channels_last: bool,
) -> CompiledSpan:
    """Compile an editable graph, which is used up, with "inductor" or "aot"; one at a time in this process.

    ``example`` is what the span may be called with, a batch of two or more; ``per_sample`` says which of it
    has one row per sample; ``channels_last`` is for features that are images.
    InputError: there is no compiler, or it does not take the span.
    """
    _copy_written(found, parameters, example)
    order = _without_passed_on(found)
    _lay_out_results(found, channels_last)
    module, values = found.finish(parameters)
    bound = _bound(module, found, values)
    image = channels_last and found.takes_feature
    formats = [image and i == 0 and value.ndim == 4 for i, value in enumerate(example)]
    many = tuple(
        value.clone(memory_format=_FORMATS[last]) for value, last in zip(example, formats, strict=True)
    )
    one = tuple(value[:1].clone() if each else value for value, each in zip(many, per_sample, strict=True))
    build = _inductor if compiler == "inductor" else _aot
    try:
        with _COMPILING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functions = build(bound, one, None), build(bound, many, per_sample)
    except Exception as error:
        raise _refusal(compiler, error) from error
    return CompiledSpan(*functions, tuple(value.stride() for value in many), tuple(order))


def _without_passed_on(found: EditableGraph) -> list[int]:
    """Drop results that are activations as they came; returns ``CompiledSpan.order``."""
    taken, results = found.activations, found.results()
    made = list(dict.fromkeys(node for node in results if node not in taken))
    found.set_results(made)
    return [~taken.index(node) if node in taken else made.index(node) for node in results]


def _copy_written(found: EditableGraph, parameters: Parameters, example: Values) -> None:
    """Copy what the span changes in place: a compiler would write the changes back, which is not wanted."""
    module, values = found.finish(parameters)
    with torch.inference_mode(False), torch.no_grad():
        tried = [value.clone() for value in example]
        before = [value._version for value in tried]
        module.forward(*tried, *[value.clone() if value.is_inference() else value for value in values])
    for node, value, version in zip(found.activations, tried, before, strict=True):
        if value._version > version:
            found.insert_after(node, _ATEN.clone.default)


def _lay_out_results(found: EditableGraph, channels_last: bool) -> None:
    """Make results dense in memory."""
    graph, results = found.module.graph, list[Node]()
    for i, node in enumerate(found.results()):
        order: dict[str, Any] = {
            "memory_format": _FORMATS[channels_last and i == 0 and node.meta["val"].ndim == 4]
        }
        with graph.inserting_before(found.output):
            results.append(graph.call_function(_ATEN.contiguous.default, (node,), order))
        results[-1].meta = dict(node.meta)
    found.set_results(results)


def _bound(module: GraphModule, found: EditableGraph, values: Sequence[Tensor]) -> GraphModule:
    """The module with its parameters as buffers instead of arguments."""
    graph = module.graph
    placed = [node for node in graph.nodes if node in found.slots]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for i, (node, value) in enumerate(zip(placed, values, strict=True)):
        module.register_buffer(f"parameter_{i}", value)
        with graph.inserting_before(first):
            node.replace_all_uses_with(graph.get_attr(f"parameter_{i}"))
        graph.erase_node(node)
    graph.lint()
    module.recompile()
    return module


def _with_strides(value: Tensor, strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device).copy_(value)


def _inductor(bound: GraphModule, values: Values, per_sample: Sequence[bool] | None) -> CompiledFn:
    from torch._inductor import config

    own = GraphModule(bound, bound.graph)  # what is compiled is kept by the code object
    options: dict[str, Any] = {}
    if hasattr(torch.compiler, "skip_guard_on_inbuilt_nn_modules_unsafe"):  # torch 2.8
        options["guard_filter_fn"] = lambda entries: [False] * len(entries)  # all is checked by the caller
    function = torch.compile(own, fullgraph=True, dynamic=None if per_sample else False, options=options)
    for value, each in zip(values, per_sample or (), strict=per_sample is not None):
        if each:
            torch._dynamo.mark_dynamic(value, 0)
    with config.patch(freezing=True), torch.inference_mode():
        function(*values)
    return lambda given: function(*given)


def _aot(bound: GraphModule, values: Values, per_sample: Sequence[bool] | None) -> CompiledFn:
    shapes = None
    if per_sample:
        batch = torch.export.Dim("batch", min=2)
        shapes = tuple({0: batch} if each else {} for each in per_sample)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(bound, values, dynamic_shapes=shapes, strict=False)
        path = str(Path(folder) / "span.pt2")
        torch._inductor.aoti_compile_and_package(
            program, package_path=path, inductor_configs={"freezing": True}
        )
        loaded = torch._inductor.aoti_load_package(path)
    run = getattr(loaded.loader, "boxed_run", None)
    return (lambda given: loaded(*given)) if run is None else run


def _refusal(compiler: str, error: Exception) -> InputError:
    text = f"{type(error).__name__}: {error}".strip()
    if any(mark in text for mark in _NO_COMPILER):
        return InputError(
            f"Execution(compile={compiler!r}): expected a C++ compiler (on a GPU, Triton), found none; "
            "install g++ or clang, or name one in the variable CXX, or use compile=None"
        )
    return InputError(
        f"Execution(compile={compiler!r}): expected operations that the compiler takes; it says: "
        f"{text.splitlines()[0][:300]}; use compile=None"
    )
