"""A backbone cut into segments, with candidate heads at every cut.

The backbone stays the user's object: it is not registered as a sub-module, its parameters, buffers and modes
are never touched. Positions are numbered from 0, the model's input; position i is the i-th cut.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offramp.confidence import get_confidence
from offramp.errors import InputError, PartitionError
from offramp.heads import FeatureSpec, head_factory
from offramp.partition import INPUT, Partition, partition
from offramp.tasks import Task, make_task, select_output


class ExitNetwork(nn.Module):
    """Segments and heads. Made by ``attach_exits``; as a module it owns the heads only.

    Attributes:
        partition: the backbone as a chain of segments.
        positions: P names, "input" first.
        head_names: C names.
        heads: P module dicts, head name -> head.
        task: what an answer is.
        confidence: name of the confidence.
        outputs: K.
        output: key of the answer in what the model returns, or None.
    """

    def __init__(
        self,
        parts: Partition,
        specs: Sequence[FeatureSpec | None],
        heads: Mapping[tuple[int, int], nn.Module],
        head_names: Sequence[str],
        task: Task,
        confidence: str,
        answer: Tensor,
        answer_at: int,
        output: str | int | None,
    ) -> None:
        super().__init__()
        self.partition, self.specs = parts, tuple(specs)
        self.positions: tuple[str, ...] = (INPUT, *(cut.name for cut in parts.cuts))
        self.head_names = tuple(head_names)
        self.heads = nn.ModuleList(nn.ModuleDict() for _ in self.positions)
        for (p, c), head in heads.items():
            here = self.heads[p]
            assert isinstance(here, nn.ModuleDict)
            here[self.head_names[c]] = head.to(answer.device, parts.cuts[p - 1].dtype)
        self.task, self.confidence = task, confidence
        self.outputs, self.output = answer.shape[1], output
        self._answer_at = answer_at

    @property
    def backbone(self) -> nn.Module:
        """The user's model."""
        return self.partition.model

    def exits(self) -> Iterator[tuple[int, int, nn.Module]]:
        """(position, head index, head) of every exit there is, in order."""
        for p, here in enumerate(self.heads):
            assert isinstance(here, nn.ModuleDict)
            for c, name in enumerate(self.head_names):
                if name in here:
                    yield p, c, here[name]

    @property
    def exists(self) -> npt.NDArray[np.bool_]:
        """(P, C), whether there is such a head at a position."""
        there = np.zeros((len(self.positions), len(self.head_names)), bool)
        for p, c, _ in self.exits():
            there[p, c] = True
        return there

    def head(self, position: int, name: str) -> nn.Module:
        """The head called ``name`` at a position."""
        here = self.heads[position]
        assert isinstance(here, nn.ModuleDict)
        return here[name]

    def fresh_heads(self, seed: int) -> dict[tuple[int, int], nn.Module]:
        """Untrained heads like this network's, in float32 on its device, by (position, head index)."""
        device = self.partition.spec.device
        made = _make_heads(self.positions, self.specs, self.head_names, self.outputs, seed)
        return {exit_: head.to(device) for exit_, head in made.items()}

    def answer(self, flat: Sequence[Tensor]) -> Tensor:
        """The (B, K) answer in the last segment's outputs."""
        return flat[self._answer_at]

    def features(self, values: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Run the chain on flat inputs: yields (position, feature), and last (P, answer (B, K)).

        A feature is valid until the next one is asked for: the backbone may change it in place.
        """
        handed = tuple(values)
        yield 0, handed[0]
        for i, segment in enumerate(self.partition.segments, start=1):
            handed = segment(*handed)
            yield i, handed[0] if i < len(self.positions) else self.answer(handed)

    def forward_all(self, inputs: object) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
        """Every exit's answer and the full model's.

        Args:
            inputs: as the model takes them, a batch of B.

        Returns:
            ({(position, head index): (B, K)}, (B, K)); heads run in eval mode.

        Raises:
            InputError: the inputs do not fit the model.
        """
        return self.answers(self.partition.spec.flatten(inputs))

    @torch.inference_mode()
    def answers(self, values: Sequence[Tensor]) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
        """``forward_all`` on flat, checked inputs."""
        by_position: dict[int, list[tuple[int, nn.Module]]] = {}
        for p, c, head in self.exits():
            by_position.setdefault(p, []).append((c, head))
        found: dict[tuple[int, int], Tensor] = {}
        final = torch.empty(0)
        with heads_evaluating(self):
            for p, feature in self.features(values):
                final = feature  # the last one is the model's answer
                for c, head in by_position.get(p, []):
                    found[p, c] = head(feature)
        return found, final

    def forward(self, inputs: object) -> Tensor:
        """The full model's answer (B, K), through the segments."""
        return self.forward_all(inputs)[1]


class heads_evaluating:  # noqa: N801 (used as a context manager, like torch.no_grad)
    """Heads in eval mode inside; their modes as they were afterwards."""

    def __init__(self, net: ExitNetwork) -> None:
        self._modes = [(module, module.training) for module in net.modules()]
        self._net = net

    def __enter__(self) -> None:
        self._net.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self._modes:
            module.training = training


def attach_exits(
    model: nn.Module,
    example_inputs: object,
    *,
    heads: Sequence[str] = ("linear", "mlp", "conv"),
    cuts: str | Sequence[str] = "auto",
    task: str = "classification",
    confidence: str | None = None,
    output: str | int | None = None,
    layouts: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ExitNetwork:
    """Cut a trained model and put untrained candidate heads at every cut.

    Args:
        model: trained; it is not changed, and must stay on its device.
        example_inputs: a tensor, or a tuple or dict of tensors, batch first.
        heads: kinds of heads to try at each position ("linear", "mlp", "conv", or registered ones).
        cuts: "auto" (every block), "all" (every legal cut), or names such as "layer2.3".
        task: what an answer is.
        confidence: how sure an exit is; None takes the task's default.
        output: key or index of the (B, K) answer where the model returns a dict or a tuple.
        layouts: cut name -> layout, for features whose layout the graph does not tell.
        seed: of the heads' initial weights.

    Raises:
        InputError: an unknown head, task or confidence, no head that applies anywhere, or an output that is
            not (B, K).
        PartitionError: the model cannot be exported or cut.
    """
    if isinstance(heads, str) or not heads or len(set(heads)) != len(heads):
        raise InputError(f"heads: expected distinct names such as ('linear', 'mlp'); got {heads!r}")
    for name in heads:
        head_factory(name)
    chosen = make_task(task)
    get_confidence(confidence or chosen.confidence)
    parts = partition(model, example_inputs, cuts=cuts, layouts=layouts)
    if not parts.cuts:
        raise PartitionError(_no_cut(parts))
    with torch.no_grad():
        values = [value.clone() for value in parts.flow.trace.example]
        flat = parts.span(0, len(parts.cuts) + 1)(*values)
        answer = select_output(parts.pack(flat), output)
    answer_at = next(i for i, value in enumerate(flat) if value is answer)
    specs = (None, *(FeatureSpec(cut.shape, cut.layout) for cut in parts.cuts))
    names = (INPUT, *(cut.name for cut in parts.cuts))
    made = _make_heads(names, specs, heads, answer.shape[1], seed)
    if not made:
        kinds = sorted({cut.layout for cut in parts.cuts})
        raise InputError(
            f"heads: none of {', '.join(heads)} applies to features laid out {', '.join(kinds)}; try 'linear'"
        )
    return ExitNetwork(
        parts, specs, made, heads, chosen, confidence or chosen.confidence, answer, answer_at, output
    )


def _make_heads(
    positions: Sequence[str],
    specs: Sequence[FeatureSpec | None],
    names: Sequence[str],
    outputs: int,
    seed: int,
) -> dict[tuple[int, int], nn.Module]:
    """Fresh heads on the CPU in float32, by (position, head index); the global random state is left alone.

    Each has a seed of its own, so that it does not depend on which other heads and positions there are.
    """
    made: dict[tuple[int, int], nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for p, (position, spec) in enumerate(zip(positions, specs, strict=True)):
            for c, name in enumerate(names):
                torch.default_generator.manual_seed(zlib.crc32(f"{seed}|{position}|{name}".encode()))
                head = None if spec is None else head_factory(name)(spec, outputs)
                if head is not None:
                    made[p, c] = head
    return made


def _no_cut(parts: Partition) -> str:
    reasons = "".join(f"\n  {cut.name}: {cut.reason}" for cut in parts.refused[:8])
    return (
        f"{type(parts.model).__name__}: found no place for an exit{reasons or ': it calls no sub-modules'}\n"
        "  try: cuts='all', or build the model from blocks that pass one tensor on"
    )
