"""``attach_exits``: cut a trained model and put candidate heads at every cut and, if wished, at the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.data import InputSpec
from offramp.errors import InputError, PartitionError
from offramp.graph import INPUT, Partition, eval_mode, find_layout, partition
from offramp.heads import FeatureSpec, default_heads, head_factory
from offramp.network.network import Answer, ExitIndex, ExitNetwork, InputExit
from offramp.tasks import Task, as_task, check_confidence, select_output


@dataclass(frozen=True)
class HeadPlacement:
    """Exactly which kinds sit where, in which column: how a stored network is made again.

    Args:
        names: of the heads, those at the input aside.
        kinds: (position from 1, column) -> kind.
    """

    names: tuple[str, ...]
    kinds: Mapping[ExitIndex, str]


Heads = str | Sequence[str] | Mapping[str, Sequence[str]] | HeadPlacement
"""'auto', kinds for every position, or position -> kinds."""

InputExits = Mapping[str, nn.Module | str]
"""Name -> a trained module, or a kind of head to train on the raw input."""

_MASK = "attention_mask"
_EMPTY = nn.ModuleDict()


def attach_exits(
    model: nn.Module,
    example_inputs: object,
    *,
    heads: Heads = "auto",
    cuts: str | Sequence[str] = "auto",
    task: str | Task = "classification",
    confidence: str | None = None,
    output: str | int | None = None,
    layouts: Mapping[str, str] | None = None,
    input_exits: InputExits | None = None,
    mask: str | None = None,
    seed: int = 0,
) -> ExitNetwork:
    """Cut a trained model and put untrained candidate heads at every cut.

    Args:
        model: trained; it is not changed, and must stay on its device.
        example_inputs: a tensor, or a tuple or dict of tensors, batch first.
        heads: "auto" chooses a few kinds for each position by what an exit there can save; or kinds to try at
            every position ("linear", "mlp", "conv", or registered ones); or a dict position -> kinds.
        cuts: "auto" (every block), "all" (every legal cut), or names such as "layer2.3".
        task: what an answer is: a registered name, or a task with parameters of its own.
        confidence: how sure an exit is; None takes the task's default.
        output: key or index of the answer where the model returns a dict or a tuple.
        layouts: cut name -> layout, for features whose layout the graph does not tell; "input" for the input.
        input_exits: exits at position "input", by name: a trained module that is called as the model is, for
            instance a smaller model, and stays as it is; or a kind of head, trained on the raw input.
        mask: name of the input that is not 0 at real tokens, for heads that must not see padding; None takes
            "attention_mask" where there is one.
        seed: of the heads' initial weights.

    Raises:
        InputError: an unknown head, task, confidence or mask, no head that applies anywhere, an output that
            is not what the task wants, or an input exit that fails, or has other outputs than the model.
        PartitionError: the model cannot be exported or cut.
    """
    check_exits(heads, input_exits)  # before the model is traced, which takes long
    chosen = as_task(task)
    check_confidence(confidence or chosen.confidence)
    parts = partition(model, example_inputs, cuts=cuts, layouts=_without_input(layouts))
    if not parts.cuts:
        raise PartitionError(_no_cut(parts))
    return network_on(
        parts,
        heads=heads,
        task=chosen,
        confidence=confidence,
        output=output,
        input_layout=(layouts or {}).get(INPUT),
        input_exits=input_exits,
        mask=mask,
        seed=seed,
    )


def network_on(
    parts: Partition,
    *,
    heads: Heads,
    task: Task,
    confidence: str | None = None,
    output: str | int | None = None,
    input_layout: str | None = None,
    input_exits: InputExits | None = None,
    mask: str | None = None,
    seed: int = 0,
) -> ExitNetwork:
    """``attach_exits`` on a model that is cut already; several networks may share one partition."""
    check_exits(heads, input_exits)
    check_confidence(confidence or task.confidence)
    answer = _find_answer(parts, task, output)
    mask_input = _mask_input(parts.spec, mask)
    if task.per_token and mask_input is not None and parts.spec.shapes[mask_input][0] != answer.shape[0]:
        raise InputError(
            f"mask: expected one entry for each of the answer's {answer.shape[0]} tokens, input "
            f"{parts.spec.names[mask_input]!r} has {parts.spec.shapes[mask_input][0]}; name another input"
        )
    specs = _describe(parts, task, mask_input, input_layout, input_exits or {})
    names, kinds = _columns(parts, specs, heads, task.head_outputs(answer.shape[-1]))
    given: dict[int, nn.Module] = {}
    for c, (name, each) in enumerate((input_exits or {}).items(), start=len(names)):
        if name in names:
            raise InputError(f"input_exits: {name!r} is a head's name already; choose another name")
        if isinstance(each, str):
            kinds[0, c] = each
        else:
            given[c] = each
    names = (*names, *(input_exits or {}))
    net = ExitNetwork(
        parts, specs, kinds, given, names, task, confidence or task.confidence, answer, mask_input, seed
    )
    _check_applied(net, kinds, input_exits or {})
    _check_given(net, parts, answer)
    return net


def check_exits(heads: Heads, input_exits: InputExits | None) -> None:
    """Refuse heads and exits at the input that cannot be meant, before anything is known of the model.

    Raises:
        InputError: a kind is unknown, a name twice or no name, or an exit at the input is no module.
    """
    _check_heads(heads)
    _check_input_exits(input_exits or {})


def _check_heads(heads: Heads) -> None:
    if isinstance(heads, HeadPlacement):
        for name in (*heads.names, *heads.kinds.values()):
            head_factory(name)
        return
    if heads == "auto":
        return
    for each in heads.values() if isinstance(heads, Mapping) and heads else (heads,):
        if isinstance(each, str) or not each or len(set(each)) != len(each):
            raise InputError(
                f"heads: expected distinct names such as ('linear', 'mlp'), or 'auto'; got {each!r}"
            )
        for name in each:
            head_factory(name)


def _check_input_exits(input_exits: InputExits) -> None:
    for name, module in input_exits.items():
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise InputError(f"input_exits: expected names of letters, digits, '_' and '-'; got {name!r}")
        if hasattr(_EMPTY, name):
            raise InputError(f"input_exits: {name!r} cannot be a name; try {name + '1'!r}")
        if isinstance(module, str):
            head_factory(module)
        elif not isinstance(module, nn.Module):
            what = type(module).__name__
            raise InputError(
                f"input_exits[{name!r}]: expected a trained torch.nn.Module or a kind of head, got a {what}"
            )


def _without_input(layouts: Mapping[str, str] | None) -> dict[str, str]:
    return {name: layout for name, layout in (layouts or {}).items() if name != INPUT}


def _find_answer(parts: Partition, task: Task, output: str | int | None) -> Answer:
    with torch.no_grad():
        values = [value.clone() for value in parts.flow.trace.example]
        flat = parts.span(0, len(parts.cuts) + 1)(*values)
        answer = select_output(parts.pack(flat), output, per_token=task.per_token)
    index = next(i for i, value in enumerate(flat) if value is answer)
    return Answer(output, index, tuple(answer.shape[1:]), answer.dtype)


def _mask_input(spec: InputSpec, mask: str | None) -> int | None:
    if mask is None:
        mask = _MASK if _MASK in spec.names else None
    if mask is None:
        return None
    if mask not in spec.names:
        raise InputError(f"mask: expected the name of an input, one of {', '.join(spec.names)}; got {mask!r}")
    index = spec.names.index(mask)
    if len(spec.shapes[index]) != 1:
        raise InputError(
            f"mask: expected input {mask!r} to be of shape (B, L), got (B, "
            f"{', '.join(map(str, spec.shapes[index]))}); name another input"
        )
    return index


def _describe(
    parts: Partition, task: Task, mask_input: int | None, input_layout: str | None, input_exits: InputExits
) -> list[FeatureSpec | None]:
    """What heads are given at each position."""
    per_token = task.per_token
    length = None if mask_input is None else parts.spec.shapes[mask_input][0]
    specs: list[FeatureSpec | None] = [None]
    if any(isinstance(each, str) for each in input_exits.values()):
        specs[0] = _describe_input(parts, input_layout, per_token)
    for cut in parts.cuts:
        masked = cut.layout == "NLC" and cut.shape[0] == length
        specs.append(FeatureSpec(cut.shape, cut.layout, masked, per_token))
    return specs


def _describe_input(parts: Partition, layout: str | None, per_token: bool) -> FeatureSpec:
    first, dtype = parts.flow.trace.inputs[0], parts.spec.dtypes[0]
    shape, name = parts.spec.shapes[0], parts.spec.names[0]
    if not dtype.is_floating_point:
        raise InputError(
            f"input_exits: a head trained on the raw input needs floating point, {name!r} is {dtype}; "
            "pass a module that takes it"
        )
    layout = layout or find_layout(parts.flow, first)
    if layout is None or len(layout) != len(shape) + 1:
        raise InputError(
            f"input_exits: the layout of input {name!r} of shape {('B', *shape)} is unclear; "
            "give it as layouts={'input': 'NCHW'}"
        )
    return FeatureSpec(shape, layout, False, per_token, inputs=True)


def _columns(
    parts: Partition, specs: Sequence[FeatureSpec | None], heads: Heads, outputs: int
) -> tuple[tuple[str, ...], dict[ExitIndex, str]]:
    """Head names, and which kind goes where."""
    positions = [cut.name for cut in parts.cuts]
    if isinstance(heads, HeadPlacement):
        for p, c in heads.kinds:
            if not (0 < p <= len(positions) and 0 <= c < len(heads.names)):
                raise InputError(f"heads: there is no position {p} with a head number {c}")
        return heads.names, dict(heads.kinds)
    if isinstance(heads, Mapping):
        strange = [name for name in heads if name not in positions]
        if strange:
            raise InputError(f"heads: no position {strange[0]!r}; there are {', '.join(positions)}")
        wanted = [tuple(heads.get(name, ())) for name in positions]
    elif heads == "auto":
        remaining = _remaining(parts)
        pairs = zip(specs[1:], remaining, strict=True)
        wanted = [default_heads(spec, outputs, macs) for spec, macs in pairs if spec is not None]
    else:
        wanted = [tuple(heads)] * len(positions)
    names = tuple(dict.fromkeys(name for here in wanted for name in here))
    kinds = {
        (p, names.index(name)): name
        for p, here in enumerate(wanted, start=1)
        for name in sorted(here, key=names.index)
    }
    return names, kinds


def _remaining(parts: Partition) -> list[int]:
    """MACs of the backbone behind each cut."""
    return [sum(parts.macs[i:]) for i in range(1, len(parts.macs))]


def _check_applied(net: ExitNetwork, kinds: Mapping[ExitIndex, str], input_exits: InputExits) -> None:
    there = {(p, c) for p, c, _ in net.exits()}
    if not there:
        asked = ", ".join(dict.fromkeys(kinds.values()))
        layouts = ", ".join(sorted({cut.layout for cut in net.partition.cuts}))
        raise InputError(f"heads: none of {asked} applies to features laid out {layouts}; try 'linear'")
    for name, each in input_exits.items():
        if isinstance(each, str) and (0, net.head_names.index(name)) not in there:
            raise InputError(f"input_exits[{name!r}]: a head {each!r} does not apply to {net.specs[0]}")


def _check_given(net: ExitNetwork, parts: Partition, answer: Answer) -> None:
    """Run every module that was given once, on the example."""
    values: list[Tensor] = [value.clone() for value in parts.flow.trace.example]
    for _, c, head in net.exits():
        if not isinstance(head, InputExit):
            continue
        name = net.head_names[c]
        before = [value.clone() for value in values]
        try:
            with torch.no_grad(), eval_mode(net):
                out = head(*values)
        except InputError as error:
            raise InputError(f"input_exits[{name!r}]: {error}") from error
        except Exception as error:
            raise InputError(
                f"input_exits[{name!r}]: calling it as the model is called fails: "
                f"{type(error).__name__}: {error}; wrap it so that it takes the same inputs"
            ) from error
        if not all(map(torch.equal, before, values)):
            raise InputError(
                f"input_exits[{name!r}]: it changes its input in place, which the model still needs; "
                "wrap it so that it works on a copy"
            )
        if tuple(out.shape[1:]) != answer.shape:
            raise InputError(
                f"input_exits[{name!r}]: expected outputs of shape {('B', *answer.shape)} like the model's, "
                f"got {('B', *out.shape[1:])}; the two must know the same classes"
            )


def _no_cut(parts: Partition) -> str:
    reasons = "".join(f"\n  {cut.name}: {cut.reason}" for cut in parts.refused[:8])
    return (
        f"{type(parts.model).__name__}: found no place for an exit{reasons or ': it calls no sub-modules'}\n"
        "  try: cuts='all', or build the model from blocks that pass one tensor on"
    )
