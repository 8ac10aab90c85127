"""A backbone cut into segments, with candidate heads at every cut and, if wished, at the input.

The backbone stays the user's object: it is not registered as a sub-module, its parameters, buffers and modes
are never touched. Positions are numbered from 0, the model's input; position i is the i-th cut, and position
P the model's own output.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offramp.core import UNKNOWN, evenly, html_table
from offramp.data import InputSpec
from offramp.errors import InputError
from offramp.graph import INPUT, Partition, eval_mode
from offramp.heads import FeatureSpec, head_factory
from offramp.tasks import Task, get_confidence, get_fitted, is_fitted, select_output, token_mean

ExitIndex = tuple[int, int]
"""(position, head index)."""

ExitFn = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""(activations at a position, the feature first; mask or None) -> an exit's outputs."""

ConfidenceFn = Callable[..., Tensor]
"""(outputs, mask=None) -> confidence (B,) float32."""

_STORED_CALIBRATORS = "gauges"  # what stored networks call them


@dataclass(frozen=True)
class OutputField:
    """Where the answer is: ``key`` of what the model returns, or None; ``index`` of its flat outputs.

    ``shape`` is of one sample's answer: (K,), or (L, K) for tasks with one per token.
    """

    key: str | int | None
    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class InputExit(nn.Module):
    """Somebody else's trained module as an exit at the input; called as the backbone is, never trained here.

    ``spec`` is of the backbone's inputs, ``key`` of the answer where the module returns a dict or a tuple.
    """

    def __init__(self, module: nn.Module, spec: InputSpec, key: str | int | None, task: Task) -> None:
        super().__init__()
        self.module, self._spec, self._key = module, spec, key
        self._per_token, self._scalar = task.per_token, task.scalar
        self._in_eval_mode = eval_mode(module)

    def train(self, mode: bool = True) -> InputExit:
        """Sets its own flag only: the module is the user's, and so are its modes."""
        self.training = mode
        return self

    def forward(self, *values: Tensor) -> Tensor:
        """The backbone's inputs, flat, to the answer (B, K) or (B, L, K), in eval mode."""
        args, kwargs = self._spec.call(values)
        with self._in_eval_mode:
            output = self.module(*args, **kwargs)
        key = None if isinstance(output, Tensor) else self._key
        return select_output(output, key, per_token=self._per_token, scalar=self._scalar)


class ExitNetwork(nn.Module):
    """Segments and heads. Made by ``attach_exits``; as a module it owns the heads only.

    The constructor takes P ``specs`` of what heads are given, None at the input where no head is trained on
    it; ``kinds`` of the heads that are trained; ``given`` modules by head index, exits at the input that are
    not; and ``mask_input``, the index of the input that tells real tokens from padding, or None.

    Attributes:
        positions: P names, "input" first.
        heads: P module dicts, head name -> head; ``head_names`` are all C names.
        outputs: K.
        answer_shape: of one sample, (K,) or (L, K).
        output: key of the answer in what the model returns, or None.
        partition: the backbone as a chain of segments.
    """

    def __init__(
        self,
        parts: Partition,
        specs: Sequence[FeatureSpec | None],
        kinds: Mapping[ExitIndex, str],
        given: Mapping[int, nn.Module],
        head_names: Sequence[str],
        task: Task,
        confidence: str,
        answer: OutputField,
        mask_input: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.partition, self.specs = parts, tuple(specs)
        self.positions: tuple[str, ...] = (INPUT, *(cut.name for cut in parts.cuts))
        self.head_names = tuple(head_names)
        self.task, self.confidence = task, confidence
        self.output_field, self.mask_input = answer, mask_input
        self.outputs, self.answer_shape = answer.shape[-1], answer.shape
        self.output = answer.key
        self._head_outputs = task.head_outputs(self.outputs)
        made = dict(self._make_heads(kinds, seed))
        self._kinds = {exit_: kind for exit_, kind in kinds.items() if exit_ in made}
        self.heads = nn.ModuleList(nn.ModuleDict() for _ in self.positions)
        for (p, c), head in made.items():
            self._heads_at(p)[self.head_names[c]] = head.to(parts.spec.device, self._dtype(p))
        for c, module in given.items():
            exit_ = InputExit(module, parts.spec, answer.key, task)
            self._heads_at(0)[self.head_names[c]] = exit_
        calibrators = nn.ModuleDict()
        if is_fitted(confidence):
            for p, c in (*((p, c) for p, c, _ in self.exits()), (len(self.positions), 0)):
                calibrators[f"{p}|{c}"] = get_fitted(confidence)(self._head_outputs).to(parts.spec.device)
        self.add_module(_STORED_CALIBRATORS, calibrators)
        self._initial = {(p, c): _versions(head) for p, c, head in self.trained_exits()}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ExitNetwork:
        """Refuse to move or cast the heads away from the backbone (``to``, ``half``, ``cuda`` ...)."""
        spec = self.partition.spec
        probe = torch.empty(0, device=spec.device)
        moved = fn(probe)
        if (moved.device, moved.dtype) != (probe.device, probe.dtype):
            raise InputError(
                f"the heads were attached to a model on {spec.device} and cannot be moved to "
                f"{moved.device}, {moved.dtype} by themselves; move the model first, then attach exits (or "
                "load the artifact) with an example on its device"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __repr__(self) -> str:
        return (
            f"ExitNetwork({type(self.backbone).__name__}, {len(self.positions)} positions, "
            f"{len(list(self.exits()))} exits of {', '.join(self.head_names)}, {self.task.name})"
        )

    def _repr_html_(self) -> str:
        """Parameters of every head by position; of many positions, evenly spread ones."""
        sizes = {(p, c): sum(each.numel() for each in head.parameters()) for p, c, head in self.exits()}
        columns = range(len(self.head_names))
        rows = []
        for p in evenly(len(self.positions)):
            spec = self.specs[p]
            feature = UNKNOWN if spec is None else " \N{MULTIPLICATION SIGN} ".join(map(str, spec.shape))
            counts = [f"{sizes[p, c]:,}" if (p, c) in sizes else UNKNOWN for c in columns]
            rows.append((self.positions[p], feature, *counts))
        caption = (
            f"{type(self.backbone).__name__} with {len(sizes)} exits at {len(self.positions)} positions, "
            f"{self.task.name}, confidence {self.confidence}: parameters of each head"
        )
        return html_table(caption, ("position", "feature", *self.head_names), rows, total=len(self.positions))

    def _make_heads(self, kinds: Mapping[ExitIndex, str], seed: int) -> Iterator[tuple[ExitIndex, nn.Module]]:
        """Fresh heads on the CPU in float32; kinds that do not apply where they are wanted are left out.

        Each has a seed of its own, so that it does not depend on which other heads and positions there are.
        The global random state is left alone.
        """
        for (p, c), kind in kinds.items():
            spec, name = self.specs[p], f"{seed}|{self.positions[p]}|{kind}"
            assert spec is not None  # there is no kind where nothing is described
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(zlib.crc32(name.encode()))
                head = head_factory(kind)(spec, self._head_outputs)
            if head is not None:
                yield (p, c), head

    def _heads_at(self, position: int) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.heads[position])

    def _dtype(self, position: int) -> torch.dtype:
        return self.partition.cuts[position - 1].dtype if position else self.partition.spec.dtypes[0]

    @property
    def calibrators(self) -> nn.ModuleDict:
        """Fitted confidences by "position|head index", and "P|0" for the model's own output.

        Empty unless the confidence is of a fitted kind.
        """
        return cast(nn.ModuleDict, self.get_submodule(_STORED_CALIBRATORS))

    def calibrator(self, position: int, column: int = 0) -> nn.Module | None:
        """The fitted confidence of an exit, or of the model's output at position P; None without one."""
        key = f"{position}|{0 if position == len(self.positions) else column}"
        return dict(self.calibrators).get(key)

    @property
    def backbone(self) -> nn.Module:
        """The user's model."""
        return self.partition.model

    def exits(self) -> Iterator[tuple[int, int, nn.Module]]:
        """(position, head index, head) of every exit there is, in order."""
        for p in range(len(self.positions)):
            here = self._heads_at(p)
            yield from ((p, c, here[name]) for c, name in enumerate(self.head_names) if name in here)

    def trained_exits(self) -> Iterator[tuple[int, int, nn.Module]]:
        """The exits whose heads ``train_exits`` trains: all but the modules given for the input."""
        return ((p, c, head) for p, c, head in self.exits() if (p, c) in self._kinds)

    @property
    def exists(self) -> npt.NDArray[np.bool_]:
        """(P, C), whether there is such a head at a position."""
        here = map(self._heads_at, range(len(self.positions)))
        return np.array([[name in heads for name in self.head_names] for heads in here], bool)

    @property
    def untrained(self) -> bool:
        """Whether every head that training would change still has its initial weights, never written to."""
        now = {(p, c): _versions(head) for p, c, head in self.trained_exits()}
        known = all(version >= 0 for each in now.values() for _, version in each)
        return bool(now) and known and now == self._initial

    def head(self, position: int, name: str) -> nn.Module:
        """The head called ``name`` at a position."""
        return self._heads_at(position)[name]

    def kind(self, position: int, column: int) -> str | None:
        """The registered kind of a head; None for a module that was given."""
        return self._kinds.get((position, column))

    def fresh_heads(self, seed: int) -> dict[ExitIndex, nn.Module]:
        """Untrained heads like those that are trained, in float32 on the network's device."""
        device = self.partition.spec.device
        return {exit_: head.to(device, torch.float32) for exit_, head in self._make_heads(self._kinds, seed)}

    def answer(self, flat: Sequence[Tensor]) -> Tensor:
        """The model's outputs as the task takes them, (B, M) or (B, L, K), from the last segment's."""
        return self.task.from_model(flat[self.output_field.index])

    def mask(self, values: Sequence[Tensor]) -> Tensor | None:
        """(B, L) bool, True at real tokens, from flat inputs; None for models without such an input."""
        return None if self.mask_input is None else values[self.mask_input] != 0

    def uses_mask(self, position: int, column: int = 0) -> bool:
        """Whether outputs or confidence of an exit, or of the model at position P, depend on the mask."""
        if self.mask_input is None or self.task.per_token:
            return self.mask_input is not None
        return position < len(self.positions) and self._head_uses_mask(position, column)

    def _head_uses_mask(self, position: int, column: int) -> bool:
        spec, head = self.specs[position], self.head(position, self.head_names[column])
        return spec is not None and spec.mask and bool(getattr(head, "uses_mask", False))

    def exit_fn(
        self, position: int, column: int = 0, replacement: Callable[..., Tensor] | None = None
    ) -> ExitFn:
        """A function of the activations at a position and of the mask that returns an exit's outputs.

        Position P is the model's own output; a ``replacement`` is called instead of the head, with the same.
        """
        task = self.task
        if position == len(self.positions):
            index = self.output_field.index
            return lambda activations, mask: task.from_model(activations[index])
        module = self.head(position, self.head_names[column])
        head = module if replacement is None else replacement
        if isinstance(module, InputExit):
            dtype = self.output_field.dtype  # the answer's type must not depend on where a sample leaves
            return lambda activations, mask: task.from_model(head(*activations).to(dtype))
        if self._head_uses_mask(position, column):
            return lambda activations, mask: task.from_head(head(activations[0], mask))
        return lambda activations, mask: task.from_head(head(activations[0]))

    def forward_exit(
        self, position: int, column: int, activations: Sequence[Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """An exit's outputs from the activations at its position (all inputs at position 0) and the mask."""
        return self.exit_fn(position, column)(activations, mask)

    def meta_inputs(self, position: int, column: int, length: int | None = None) -> list[Tensor]:
        """What a head is called with for one sample, on the meta device: for counting.

        ``length`` is that of texts, None the example's.
        """
        spec, here = self.partition.spec, self.specs[position]

        def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            return torch.empty((1, *shape), dtype=dtype, device="meta")

        if position == 0 or here is None:
            inputs = list(map(empty, spec.shapes_at(length), spec.dtypes))
            given = isinstance(self.head(position, self.head_names[column]), InputExit)
            return inputs if given else inputs[:1]
        shape = self.partition.feature_shape(position, length)
        mask = [empty(shape[:1], torch.bool)] if self._head_uses_mask(position, column) else []
        return [empty(shape, self._dtype(position)), *mask]

    def confidence_of(self, position: int, column: int = 0) -> ConfidenceFn:
        """An exit's confidence: (outputs, mask=None) -> (B,) float32; position P is the model's output."""
        fitted = self.calibrator(position, column)
        base = get_confidence(self.confidence) if fitted is None else fitted
        if not self.task.per_token:
            return lambda outputs, mask=None: base(outputs)

        return lambda outputs, mask=None: token_mean(
            base(outputs.flatten(0, 1)).view(outputs.shape[:2]), mask
        )

    def iter_activations(self, values: Sequence[Tensor]) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Run the chain on flat inputs: yields (position, activations there), and last (P, flat outputs).

        A feature is valid until the next one is computed: the backbone may change it in place.
        """
        activations = tuple(values)
        yield 0, activations
        for i, segment in enumerate(self.partition.segments, start=1):
            activations = segment(*activations)
            yield i, activations

    def features(self, values: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Run the chain on flat inputs: yields (position, feature), and last (P, the model's outputs)."""
        for p, activations in self.iter_activations(values):
            yield p, activations[0] if p < len(self.positions) else self.answer(activations)

    def forward_all(self, inputs: object) -> tuple[dict[ExitIndex, Tensor], Tensor]:
        """Every exit's answer and the full model's, of a batch of B as the model takes; heads in eval mode.

        They are ({(position, head index): (B, K)}, (B, K)), or with (B, L, K) for (B, K). ``InputError``: the
        inputs do not fit the model.
        """
        found, final = self.answers(self.partition.spec.flatten(inputs))
        return {exit_: self.task.answer(out) for exit_, out in found.items()}, self.task.answer(final)

    @torch.inference_mode()
    def answers(self, values: Sequence[Tensor]) -> tuple[dict[ExitIndex, Tensor], Tensor]:
        """``forward_all`` on flat, checked inputs, with outputs as the task takes them: (B, M)."""
        self.partition.check_unchanged()
        exits, mask = [(p, c) for p, c, _ in self.exits()], self.mask(values)
        found = dict[ExitIndex, Tensor]()
        with eval_mode(self):
            for position, activations in self.iter_activations(values):
                here = [(p, c) for p, c in exits if p == position]
                found |= {(p, c): self.forward_exit(p, c, activations, mask) for p, c in here}
        return found, self.answer(activations)

    @torch.inference_mode()
    def forward(self, inputs: object) -> Tensor:
        """The full model's answer (B, K), through the segments; heads are not run."""
        self.partition.check_unchanged()
        activations: tuple[Tensor, ...] = tuple(self.partition.spec.flatten(inputs))
        for segment in self.partition.segments:
            activations = segment(*activations)
        return self.task.answer(self.answer(activations))


def _versions(head: nn.Module) -> list[tuple[int, int]]:
    """Which parameters a head has, and how often each was written to; -1: made in inference mode."""
    return [(id(each), -1 if each.is_inference() else each._version) for each in head.parameters()]


def check_finite(net: ExitNetwork, answers: Mapping[ExitIndex, Tensor], final: Tensor) -> None:
    """Refuse NaN and infinities, naming where they come from."""
    if not net.task.usable(final):
        raise InputError("the model's output is not finite; check the inputs for NaN and the model's weights")
    for (p, c), out in answers.items():
        if not net.task.usable(out):
            raise InputError(
                f"head {net.head_names[c]!r} at {net.positions[p]!r} gives an answer that is not finite; "
                "train it again"
            )
