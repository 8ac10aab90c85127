"""Entries of the race: a model alone, exits as others implement them, exits as the engine runs them.

    plain         a model, called
    static        the same on another execution backend (compiled, int8, ONNX Runtime, ...)
    in_parts      the same, a large batch in smaller pieces where that is faster
    naive         every enabled exit is computed for every sample, the answer is picked afterwards
    hooks         forward hooks run the exits, and an exception carries a confident answer out of the model
    earlyon       the same by the package of that name, where it is installed
    ours          the engine, with any execution
    onnx_runtime  the exported engine

Each takes a batch as the model does and returns class scores (B, K). All run without autograd.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import offramp
from offramp import CostTable, Execution, ExitConfig, ExitNetwork, Frontier
from offramp.core.evaluate import resolve

Call = Callable[[Any], Tensor]
Select = Callable[[Any], Tensor]
EAGER, ONNX = "eager", "onnx runtime"
EXECUTIONS = {
    "channels last": Execution(channels_last=True),
    "bfloat16": Execution(channels_last=True, dtype="bfloat16"),
    "int8": Execution(int8=True),
    "inductor": Execution(compile="inductor"),
}
PIECES = (8, 16, 32)  # samples; what ``in_parts`` tries


@dataclass(frozen=True)
class Entry:
    """One entry of the race, a line of its table.

    Args:
        name: of the line.
        kind: "static" (no exits), "others" or "ours".
        call: a batch to class scores (B, K).
        config: of its exits, if it has any.
        execution: the execution backend; entries are compared within one.
        foretold: whether it leaves where the records say, so that its accuracy follows from them.
        any_batch: whether its answers and speed do not depend on the batch size.
    """

    name: str
    kind: str
    call: Call
    config: ExitConfig | None = None
    execution: str = EAGER
    foretold: bool = False
    any_batch: bool = True


def plain(model: nn.Module, select: Select) -> Call:
    """A model by itself."""

    @torch.inference_mode()
    def call(inputs: Any) -> Tensor:
        return select(model(**inputs) if isinstance(inputs, dict) else model(inputs))

    return call


def in_parts(call: Call, batch: Any, tries: int = 5) -> tuple[int, Call] | None:
    """A large batch in pieces of the size that was fastest just now; None where whole it is as fast."""
    size = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
    pieces = [each for each in PIECES if each < size]
    calls = [call, *(_pieced(call, each) for each in pieces)]
    least = [math.inf] * len(calls)
    for _ in range(tries):
        for i, each in enumerate(calls):
            start = time.perf_counter()
            each(batch)
            least[i] = min(least[i], time.perf_counter() - start)
    best = least.index(min(least))
    return (pieces[best - 1], calls[best]) if best and least[best] < 0.97 * least[0] else None


def _pieced(call: Call, size: int) -> Call:
    def split(inputs: Any) -> Sequence[Any]:
        if not isinstance(inputs, dict):
            return inputs.split(size)
        parts = {name: value.split(size) for name, value in inputs.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    return lambda inputs: torch.cat([call(part) for part in split(inputs)])


def static(model: nn.Module, select: Select, execution: str, example: Any, file: Path) -> Call:
    """A model without exits on an execution backend; "int8" quantises its linear layers.

    Args:
        model: in eval mode; left as it is.
        select: what it returns to class scores.
        execution: one of ``EXECUTIONS`` or ``ONNX``.
        example: a batch.
        file: where an ONNX graph is kept.
    """
    if execution == ONNX:
        return _session(model, example, file)
    how, own = EXECUTIONS[execution], copy.deepcopy(model)
    if how.channels_last and isinstance(example, dict):
        raise ValueError("channels last is for images")
    if how.int8:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and still what PyTorch has without a package
            own = torch.ao.quantization.quantize_dynamic(own, {nn.Linear}, dtype=torch.qint8)
    if how.compile:
        own.compile(dynamic=False)
    if not how.channels_last:
        return plain(own, select)
    dtype = getattr(torch, how.dtype) if how.dtype else None
    call = plain(own.to(dtype=dtype, memory_format=torch.channels_last), select)
    return lambda inputs: call(inputs.to(dtype=dtype, memory_format=torch.channels_last)).float()


def _session(model: nn.Module, example: Any, file: Path) -> Call:
    from offramp.export.ort import open_session, session_options

    if not file.exists():
        given: dict[str, Any] = {"kwargs": example} if isinstance(example, dict) else {"args": (example,)}
        rows = {0: torch.export.Dim("batch", min=1, max=4096)}
        shapes = dict.fromkeys(example, rows) if isinstance(example, dict) else (rows,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            made = torch.onnx.export(model, **given, dynamo=True, dynamic_shapes=shapes, verbose=False)
        made.save(str(file))
    session = open_session(file, session_options(torch.get_num_threads()))
    names = [port.name for port in session.get_inputs()]

    def call(inputs: Any) -> Tensor:
        arrays = _arrays(inputs)
        values = [arrays[name] for name in names] if isinstance(arrays, dict) else [arrays]
        return torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])

    return call


def naive(net: ExitNetwork, config: ExitConfig) -> Call:
    """Every enabled exit for every sample."""
    plan = resolve(net.positions, net.head_names, net.exists, config)
    stops = [0, *(p for p, _, _ in plan), len(net.positions)]
    spans = [net.partition.span(a, b) if b > a else None for a, b in pairwise(stops)]
    exits = [(net.exit_fn(p, c), net.confidence_of(p, c), float(t)) for p, c, t in plan]

    @torch.inference_mode()
    def call(inputs: Any) -> Tensor:
        values = net.partition.spec.flatten(inputs)
        boundary, mask = tuple(values), net.mask(values)
        found: Tensor | None = None
        gone = torch.zeros(len(values[0]), dtype=torch.bool)
        for span, (run_exit, confidence_fn, threshold) in zip(spans, exits, strict=False):
            boundary = boundary if span is None else span(*boundary)
            outputs = run_exit(boundary, mask)
            leaves = ~gone & (confidence_fn(outputs, mask) > threshold)
            found = outputs.clone() if found is None else torch.where(leaves[:, None], outputs, found)
            gone |= leaves
        last = spans[-1]
        assert last is not None  # no exit sits at the model's output
        outputs = net.answer(last(*boundary))
        return outputs if found is None else torch.where(gone[:, None], found, outputs)

    return call


# ------------------------------------------------------------------------------------ hooks and an exception


class _Leave(Exception):  # noqa: N818 (not an error)
    def __init__(self, outputs: Tensor, position: int, confidence: Tensor) -> None:
        super().__init__()
        self.answer = outputs, torch.full((len(outputs),), position), confidence


def hooks(net: ExitNetwork, config: ExitConfig, select: Select) -> Call:
    """Exits in forward hooks of a copy of the model; a batch leaves where all of its samples are confident.

    Like the engine it also returns where each sample left, and its confidence.

    Raises:
        ValueError: an exit sits where no module ends, so that there is nothing to hook.
    """
    model, last = copy.deepcopy(net.backbone), len(net.positions)
    modules, confidence_fn = dict(model.named_modules()), net.confidence_of(last)
    for p, c, threshold in resolve(net.positions, net.head_names, net.exists, config):
        check = _check(net, p, c, float(threshold))
        if p == 0:
            model.register_forward_pre_hook(lambda _, args, check=check: check(args[0]))
        elif net.positions[p] in modules:
            modules[net.positions[p]].register_forward_hook(lambda _, __, out, check=check: check(out))
        else:
            raise ValueError(f"hooks: expected a module that ends at {net.positions[p]!r}, there is none")

    @torch.inference_mode()
    def whole(inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        try:
            outputs = select(model(inputs))
        except _Leave as left:
            return left.answer
        return outputs, torch.full((len(outputs),), last), confidence_fn(outputs)

    return lambda inputs: whole(inputs)[0]


def _check(net: ExitNetwork, position: int, column: int, threshold: float) -> Callable[[Tensor], None]:
    run_exit, confidence_fn = net.exit_fn(position, column), net.confidence_of(position, column)

    def check(feature: Tensor) -> None:
        outputs = run_exit((feature,), None)
        confidence = confidence_fn(outputs)
        if confidence.item() > threshold if len(outputs) == 1 else bool((confidence > threshold).all()):
            raise _Leave(outputs, position, confidence)

    return check


def earlyon(net: ExitNetwork, config: ExitConfig) -> Call | str:
    """The package ``earlyon`` with the same heads and thresholds, or why it cannot be had.

    It has no exits at the input, and leaves at a confidence equal to the threshold, where the engine stays.
    """
    if importlib.util.find_spec("earlyon") is None:
        return "earlyon is not installed; run: pip install --no-deps earlyon"
    if any(choice.position == "input" for choice in config.choices):
        return "earlyon has no exits at the input"
    from earlyon.core.types import EarlyExitConfig, ExitPoint
    from earlyon.core.wrappers import EarlyExitWrapper

    points, heads, thresholds = [], {}, []
    for p, c, threshold in resolve(net.positions, net.head_names, net.exists, config):
        spec = net.specs[p]
        assert spec is not None  # there are exits here
        points.append(ExitPoint(f"e{p}", net.positions[p], spec.channels))
        heads[f"e{p}"] = copy.deepcopy(net.head(p, net.head_names[c]))
        thresholds.append(float(np.nextafter(threshold, np.float32(np.inf))))
    settings = EarlyExitConfig("custom", net.outputs, points, confidence_thresholds=thresholds)
    shape = (1, *net.partition.spec.shapes[0])
    wrapped = EarlyExitWrapper(
        copy.deepcopy(net.backbone), heads, _unchanged, settings, input_shape=shape
    ).eval()

    def call(inputs: Tensor) -> Tensor:
        found = wrapped(inputs) if len(inputs) == 1 else wrapped.forward_inference_batched(inputs)
        answer: Tensor = found.prediction if len(inputs) == 1 else found.predictions
        return answer

    return call


def _unchanged(value: Tensor) -> Tensor:
    return value


# ---------------------------------------------------------------------------------------------- ours


def ours(
    net: ExitNetwork, config: ExitConfig, costs: CostTable | None = None, execution: Execution | None = None
) -> Call:
    """The engine; with a table of seconds it knows which batches to run in parts."""
    engine = offramp.Engine(net, config, costs=costs, execution=execution)
    return lambda inputs: engine(inputs).outputs


def onnx_runtime(net: ExitNetwork, config: ExitConfig, costs: CostTable, folder: Path) -> Call:
    """The engine on ONNX Runtime, with as many threads as PyTorch has; exported the first time."""
    from offramp.export.onnx import to_onnx
    from offramp.export.ort import OrtEngine

    if not folder.exists():
        to_onnx(net, Frontier.of([config]), costs, folder)
    engine = OrtEngine(folder, config, threads=torch.get_num_threads())
    return lambda inputs: torch.from_numpy(engine(_arrays(inputs)).outputs)


def _arrays(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: value.numpy() for name, value in inputs.items()}
    return inputs.numpy()
