"""An exported network at work: what the engines of all runtimes have in common. NumPy only.

    input ─ span ─▶ exit? ─ stay ─▶ span ─▶ exit? ─ stay ─▶ span ─▶ output
                     └ leave            └ leave

A runtime says how to load a span and an exit; ``ChainEngine`` does the rest as ``offramp.Engine`` does it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from offramp.core import EngineStats, ExitConfig, PlanCache, check_arguments, leaves
from offramp.errors import ArtifactError, InputError
from offramp.export.manifest import ExitGraph, Port, Signature, SpanGraph, read_export, stamp

Array = npt.NDArray[Any]

Call = Callable[[Sequence[Array]], Sequence[Array]]
"""A loaded graph: its inputs to its outputs."""

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class ExportOutput:
    """Answers for a batch of B, in the order of the inputs: ``outputs`` are (B, K), or (B, L, K) per token.

    ``position`` (B,) is the index of the position where each left, P for the model's output; ``confidence``
    (B,) is that of the exit taken or of the model's output.
    """

    outputs: Array
    position: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]


class ExportedEngine(ABC, Generic[Prepared]):
    """Base of the engines: inputs are checked, configurations prepared and switched, samples counted.

    ``export`` is what the folder holds; ``frontier`` and ``costs`` were exported with the network;
    ``positions`` are P names, "input" first. It starts with ``config``, without choices the full model, and
    makes those of ``prepare`` ready too.
    """

    kind: str
    """Which exports it runs."""

    def __init__(
        self, folder: str | Path, config: ExitConfig | None = None, *, prepare: Iterable[ExitConfig] = ()
    ) -> None:
        kinds = {"folder": (folder, (str, Path)), "config": (config, (ExitConfig, NoneType))}
        check_arguments(type(self).__name__, kinds)
        self.folder = Path(folder)
        self._stamp = stamp(self.folder)
        self.export = read_export(self.folder, self.kind)
        self.frontier, self.costs = self.export.frontier, self.export.costs
        self.positions = self.export.signature.positions
        self._plans = PlanCache[ExitConfig, tuple[ExitConfig, Prepared]]()
        self._counting = threading.Lock()
        self.reset_stats()
        self.use(ExitConfig() if config is None else config)
        for each in prepare:
            self.prepare(each)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"{type(self).__name__}: cannot be copied or pickled, for it holds sessions of the runtime; make "
            "one from the folder in each process"
        )

    @property
    def config(self) -> ExitConfig:
        """The configuration that the next call will use."""
        return self._plan[0]

    def prepare(self, config: ExitConfig) -> None:
        """Make a configuration ready, so that ``use`` is a matter of microseconds."""
        self._prepared(config)

    def _prepared(self, config: ExitConfig) -> tuple[ExitConfig, Prepared]:
        if not isinstance(config, ExitConfig):
            what = type(config).__name__
            raise InputError(f"expected an ExitConfig, such as frontier.at(max_cost=0.5); got a {what}")
        return self._plans.get(config, lambda: (config, self._build(config)))

    def use(self, config: ExitConfig) -> None:
        """Switch to a configuration; calls under way finish under theirs. Safe from any thread.

        Nothing changes, and there is an ``InputError``, if it names an exit that was not exported.
        """
        self._plan = self._prepared(config)

    def stats(self) -> EngineStats:
        """Counts since the engine was made or ``reset_stats`` was called."""
        with self._counting:
            left, macs = tuple(self._exits.tolist()), self._macs
        samples = sum(left)
        return EngineStats(samples=samples, exits=left, macs=macs, full_macs=samples * self.costs.full)

    def reset_stats(self) -> None:
        """Start counting anew."""
        with self._counting:
            self._exits = np.zeros(len(self.positions) + 1, np.int64)
            self._macs = 0.0

    def __call__(self, inputs: object) -> ExportOutput:
        """Answer a batch of any size: an array, a tuple or a dict of arrays, as the model takes them.

        An ``InputError`` if a shape, dtype or structure differs from the model's.
        """
        _, plan = self._plan
        values = flatten(self.export.signature, inputs)
        if len(values[0]) == 0:
            answer = self.export.signature.answer
            nothing = np.empty((0, *map(int, answer.shape[1:])), answer.dtype)
            return ExportOutput(nothing, np.empty(0, np.int64), np.empty(0, np.float32))
        out, macs = self._answer(plan, values)
        left = np.bincount(out.position, minlength=len(self.positions) + 1)
        with self._counting:
            self._macs += macs
            self._exits += left
        return out

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Refuse, with an ``ArtifactError``, what is read inside if the folder is not the one checked."""
        yield
        if stamp(self.folder) != self._stamp:
            raise ArtifactError(
                f"{self.folder} was replaced or changed since it was checked; make a new engine"
            )

    @abstractmethod
    def _build(self, config: ExitConfig) -> Prepared:
        """What a configuration needs to run."""

    @abstractmethod
    def _answer(self, plan: Prepared, values: list[Array]) -> tuple[ExportOutput, float]:
        """Answers for a batch of at least one sample, and what they cost."""


@dataclass(frozen=True)
class ChainStep:
    """Run ``spans``; then answer, and let those leave whose confidence is above the threshold.

    ``answer`` is the exit at ``position``, or the last span at P: it takes the first ``arity`` activations,
    and the mask if ``masked``, to outputs and confidence. ``threshold`` is None in the last step: all leave.
    ``macs`` is of spans and exit per sample; ``per_sample`` tells which activations have one row per sample.
    """

    spans: tuple[Call, ...]
    answer: Call
    arity: int
    masked: bool
    position: int
    threshold: np.float32 | None
    macs: float
    per_sample: tuple[bool, ...]


class ChainEngine(ExportedEngine[tuple[ChainStep, ...]]):
    """Runs spans and exits one after the other; samples that leave are taken out of the batch."""

    def __init__(
        self,
        folder: str | Path,
        config: ExitConfig | None = None,
        *,
        prepare: Iterable[ExitConfig] = (),
        fuse: bool = True,
    ) -> None:
        self._fuse, self._calls = fuse, dict[str, Call]()
        super().__init__(folder, config, prepare=prepare)

    @abstractmethod
    def _load(self, graph: SpanGraph | ExitGraph) -> Call:
        """A graph ready to be called, from any thread."""

    def _build(self, config: ExitConfig) -> tuple[ChainStep, ...]:
        exits_at = {(each.position, each.head): each for each in self.export.exits}
        backbone, last = self.costs.backbone, len(self.positions)
        ends: list[tuple[int, int, np.float32 | None]] = [*self.export.resolve(config), (last, 0, None)]
        steps, at = list[ChainStep](), 0
        for position, head, threshold in ends:
            spans, macs = self._chain(at, position), float(backbone[position] - backbone[at])
            if threshold is not None:
                macs += float(self.costs.heads[position, head])
            answer = spans.pop() if threshold is None else exits_at[position, head]
            ports = spans[-1].outputs if spans else self.export.signature.inputs
            step = ChainStep(
                spans=tuple(map(self._loaded, spans)),
                answer=self._loaded(answer),
                arity=len(answer.inputs) - answer.masked,
                masked=answer.masked,
                position=position,
                threshold=threshold,
                macs=macs,
                per_sample=tuple(port.per_sample for port in ports),
            )
            steps.append(step)
            at = position
        return tuple(steps)

    def _chain(self, start: int, stop: int) -> list[SpanGraph]:
        fused = [each for each in self.export.fused if (each.start, each.stop) == (start, stop)]
        if fused and self._fuse:
            return fused
        return [each for each in self.export.spans if start <= each.start and each.stop <= stop]

    def _loaded(self, graph: SpanGraph | ExitGraph) -> Call:
        """One for all configurations. Only ever called while a plan is built, which one thread does."""
        if graph.file not in self._calls:
            with self.unchanged():
                self._calls[graph.file] = self._load(graph)
        return self._calls[graph.file]

    def _answer(self, plan: tuple[ChainStep, ...], values: list[Array]) -> tuple[ExportOutput, float]:
        batch = here = len(values[0])
        at_mask = self.export.signature.mask_input
        mask = [] if at_mask is None else [values[at_mask]]
        activations: Sequence[Array] = values
        rows: Array | None = None  # which samples of the batch are still here; None: all
        left: list[tuple[int, Array | None, Array, Array]] = []
        macs = 0.0
        for step in plan:
            macs += here * step.macs
            for span in step.spans:
                activations = span(activations)
            outputs, confidence = step.answer([*activations[: step.arity], *(mask if step.masked else ())])
            going = here
            if step.threshold is not None:
                leavers = leaves(confidence, step.threshold)
                going = int(np.count_nonzero(leavers))
            if going == 0:
                continue
            if going == here:
                left.append((step.position, rows, outputs, confidence))
                break
            out, stay = leavers.nonzero()[0], (~leavers).nonzero()[0]
            left.append((step.position, out if rows is None else rows[out], outputs[out], confidence[out]))
            rows = stay if rows is None else rows[stay]
            here -= going
            pairs = zip(activations, step.per_sample, strict=True)
            activations = [value[stay] if each else value for value, each in pairs]
            mask = [value[stay] for value in mask]
        return _assemble(left, batch), macs


def _assemble(left: list[tuple[int, Array | None, Array, Array]], batch: int) -> ExportOutput:
    """Answers back in the order of the inputs."""
    position, rows, outputs, confidence = left[0]
    if rows is None:  # all left together
        return ExportOutput(outputs, np.full(batch, position, np.int64), confidence)
    answers = np.empty((batch, *outputs.shape[1:]), outputs.dtype)
    found = ExportOutput(answers, np.empty(batch, np.int64), np.empty(batch, np.float32))
    for position, rows, outputs, confidence in left:
        found.outputs[rows] = outputs
        found.position[rows] = position
        found.confidence[rows] = confidence
    return found


def flatten(signature: Signature, inputs: object) -> list[Array]:
    """Arrays of a call, in the order of the model's inputs; an ``InputError`` if they do not fit the model.

    ``inputs`` is an array, a tuple or list, or a mapping, whose extra keys are ignored.
    """
    names = signature.names
    if signature.keyword != isinstance(inputs, Mapping):
        wanted = f"a dict with keys {', '.join(names)}" if signature.keyword else "an array or a tuple"
        raise InputError(f"inputs: expected {wanted}, as the model takes; got {type(inputs).__name__}")
    if isinstance(inputs, Mapping):
        named = {str(name): value for name, value in inputs.items()}
    else:
        given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        named = {str(i): value for i, value in enumerate(given)}
    if any(name not in named for name in names) or (len(named) > len(names) and not signature.keyword):
        raise InputError(f"inputs: expected {', '.join(names)}; got {', '.join(named) or 'none'}")
    values = [named[name] for name in names]
    for name, value, port in zip(names, values, signature.inputs, strict=True):
        _check(name, value, port)
        if len(value) != len(values[0]):
            raise InputError(
                f"input {name!r}: expected batch size {len(values[0])} like {names[0]!r}, got {len(value)}"
            )
    return values


def _check(name: str, value: object, port: Port) -> None:
    if not isinstance(value, np.ndarray):
        what = type(value).__name__
        raise InputError(f"input {name!r}: expected a NumPy array, got {what}; np.asarray makes one")
    if value.ndim == 0 or value.shape[1:] != port.shape[1:]:
        wanted = ", ".join(["B", *map(str, port.shape[1:])])
        raise InputError(f"input {name!r}: expected shape ({wanted}), got {value.shape}")
    if value.dtype != port.dtype:
        raise InputError(f"input {name!r}: expected {port.dtype}, got {value.dtype}; convert with .astype")
