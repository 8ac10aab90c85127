"""``attach_exits``: cut a trained model and put candidate heads at every cut and, if wished, at the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from offramp.data import InputSpec
from offramp.errors import InputError, PartitionError
from offramp.graph import INPUT, Partition, TraceOptions, eval_mode, find_layout, partition
from offramp.heads import FeatureSpec, default_heads, head_factory
from offramp.network.network import ExitIndex, ExitNetwork, InputExit, OutputField
from offramp.tasks import (
    AUTO,
    Task,
    as_task,
    check_activation,
    check_confidence,
    joined_key,
    select_output,
    tell_of_probabilities,
)


@dataclass(frozen=True)
class HeadPlacement:
    """Exactly which kinds sit where, in which column: how a stored network is made again.

    ``names`` are those of the heads, without those at the input; ``kinds`` are by (position from 1, column).
    """

    names: tuple[str, ...]
    kinds: Mapping[ExitIndex, str]


Heads = str | Sequence[str] | Mapping[str, Sequence[str]] | HeadPlacement
"""'auto', kinds for every position, or position -> kinds."""

InputExits = Mapping[str, nn.Module | str]
"""Name -> a trained module, or a kind of head to train on the raw input."""

_MASK = "attention_mask"


def attach_exits(
    model: nn.Module,
    example_inputs: object,
    *,
    heads: Heads = "auto",
    cuts: str | Sequence[str] = "auto",
    task: str | Task = "classification",
    confidence: str | None = None,
    output: str | int | Sequence[str | int] | None = None,
    activation: str | None = AUTO,
    layouts: Mapping[str, str] | None = None,
    input_exits: InputExits | None = None,
    mask: str | None = None,
    seed: int = 0,
) -> ExitNetwork:
    """Cut a trained model and put untrained candidate heads at every cut.

    Args:
        model: trained; it is not changed, and must stay on its device, in its type and made of the same
            modules. Wrappers (DataParallel, torch.compile, averaged copies) are seen through.
        example_inputs: a tensor, or a tuple or dict of tensors, batch first; of texts as long as the longest.
        heads: "auto" chooses a few kinds for each position by what an exit there can save; or kinds to try at
            every position ("linear", "mlp", "conv", or registered ones); or a dict position -> kinds.
        cuts: "auto" (every block), "all" (every legal cut), or names such as "layer2.3".
        task: what an answer is: a registered name, or a task with parameters of its own.
        confidence: how confident an exit is: a registered name; None takes the task's default.
        output: key or index of the answer where the model returns a dict or a tuple; several of them, or
            joined by dots, where it is nested ("out.logits").
        activation: "softmax", "log_softmax" or "sigmoid" where the model's answers are probabilities already:
            exits work on the logits before it, and answer probabilities, too. "auto" finds it in the graph;
            None takes answers as they are.
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

    Warns:
        UserWarning: answers look like probabilities, but what makes them was not found.
    """
    if isinstance(model, ExitNetwork):
        raise InputError(
            "attach_exits: the model has exits already; attach to the model inside, net.backbone"
        )
    chosen = check_options(heads, input_exits, task, confidence)  # before the model is traced
    if activation != AUTO:
        check_activation(activation, chosen.activations)
    key = joined_key(output)
    options = answer_options(chosen, key, activation, mask)
    parts = cut_model(model, example_inputs, cuts, layouts, options)
    return network_on(
        parts,
        heads=heads,
        task=chosen.with_activation(parts.activation),
        confidence=confidence,
        output=key,
        input_layout=(layouts or {}).get(INPUT),
        input_exits=input_exits,
        mask=mask,
        seed=seed,
    )


def answer_options(
    task: Task, output: str | int | None, activation: str | None, mask: str | None
) -> TraceOptions:
    """How a model is traced whose one answer is wanted: what else it returns keeps no exit away."""
    return TraceOptions(
        select=partial(select_output, key=output, per_token=task.per_token, scalar=task.scalar),
        activation=activation,
        activations=task.activations,
        mask=mask or _MASK,
    )


def cut_model(
    model: nn.Module,
    example_inputs: object,
    cuts: str | Sequence[str],
    layouts: Mapping[str, str] | None,
    options: TraceOptions = TraceOptions(),  # noqa: B008
) -> Partition:
    """``partition`` with at least one cut, or a PartitionError; a layout of the input is left out."""
    inner = {name: layout for name, layout in (layouts or {}).items() if name != INPUT}
    parts = partition(model, example_inputs, cuts=cuts, layouts=inner, options=options)
    if not parts.cuts:
        reasons = "".join(f"\n  {cut.name}: {cut.reason}" for cut in parts.refused[:8])
        raise PartitionError(
            f"{type(model).__name__}: found no place for an exit{reasons or ': it calls no sub-modules'}\n"
            "  try: cuts='all', or build the model from blocks that pass one tensor on"
        )
    return parts


@torch.inference_mode(False)  # heads are trained, wherever they are attached
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
    check_options(heads, input_exits, task, confidence)
    at_input = input_exits or {}
    answer = _find_answer(parts, task, output)
    mask_input = _mask_input(parts.spec, mask)
    if task.per_token and mask_input is not None and parts.spec.shapes[mask_input][0] != answer.shape[0]:
        raise InputError(
            f"mask: expected one entry for each of the answer's {answer.shape[0]} tokens, input "
            f"{parts.spec.names[mask_input]!r} has {parts.spec.shapes[mask_input][0]}; name another input"
        )
    specs = _describe(parts, task, mask_input, input_layout, at_input)
    names, kinds = _place_heads(parts, specs, heads, task.head_outputs(answer.shape[-1]))
    taken = next((name for name in at_input if name in names), None)
    if taken is not None:
        raise InputError(f"input_exits: {taken!r} is a head's name already; choose another name")
    added = list(enumerate(at_input.values(), start=len(names)))
    kinds.update({(0, c): each for c, each in added if isinstance(each, str)})
    net = ExitNetwork(
        parts=parts,
        specs=specs,
        kinds=kinds,
        given={c: each for c, each in added if isinstance(each, nn.Module)},
        head_names=(*names, *at_input),
        task=task,
        confidence=confidence or task.confidence,
        answer=answer,
        mask_input=mask_input,
        seed=seed,
    )
    there = {(p, c) for p, c, _ in net.exits()}
    if not there:
        wanted = ", ".join(dict.fromkeys(kinds.values()))
        found = ", ".join(sorted({cut.layout for cut in parts.cuts}))
        raise InputError(f"heads: none of {wanted} applies to features laid out {found}; try 'linear'")
    for c, each in added:
        if isinstance(each, str) and (0, c) not in there:
            raise InputError(
                f"input_exits[{net.head_names[c]!r}]: a head {each!r} does not apply to {net.specs[0]}"
            )
    for _, c, head in net.exits():
        if isinstance(head, InputExit):
            _check_given(net, f"input_exits[{net.head_names[c]!r}]", head)
    return net


def check_options(
    heads: Heads, input_exits: InputExits | None, task: str | Task, confidence: str | None
) -> Task:
    """The task; refuses, with an InputError, what cannot be meant whatever the model is."""
    _check_heads(heads)
    for name, module in (input_exits or {}).items():
        if not is_name(name):
            raise InputError(f"input_exits: expected names of letters, digits, '_' and '-'; got {name!r}")
        if hasattr(nn.ModuleDict(), name):
            raise InputError(f"input_exits: {name!r} cannot be a name; try {name + '1'!r}")
        if isinstance(module, str):
            head_factory(module)
        elif not isinstance(module, nn.Module):
            what = type(module).__name__
            raise InputError(
                f"input_exits[{name!r}]: expected a trained torch.nn.Module or a kind of head, got a {what}"
            )
    chosen = as_task(task)
    check_confidence(confidence or chosen.confidence)
    return chosen


def is_name(name: object) -> bool:
    """Whether it can be a key, a module's name and a folder: letters, digits, "_" and "-"."""
    return isinstance(name, str) and name.replace("-", "_").isidentifier()


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


def _find_answer(parts: Partition, task: Task, output: str | int | None) -> OutputField:
    with torch.no_grad():
        values = [value.clone() for value in parts.flow.trace.example]
        flat = parts.span(0, len(parts.cuts) + 1)(*values)
        if parts.selected:
            answer = flat[0]
        else:
            answer = select_output(parts.pack(flat), output, per_token=task.per_token)
    index = next(i for i, value in enumerate(flat) if value is answer)
    if task.activations and task.activation is None:
        tell_of_probabilities(task.name, type(parts.model).__name__, answer, stacklevel=4)
    return OutputField(output, index, tuple(answer.shape[1:]), answer.dtype)


def _mask_input(spec: InputSpec, mask: str | None) -> int | None:
    if mask is None:
        if _MASK not in spec.names:
            return None
        mask = _MASK
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
    length = None if mask_input is None else parts.spec.shapes[mask_input][0]
    specs: list[FeatureSpec | None] = [None]
    if any(isinstance(each, str) for each in input_exits.values()):
        specs = [_describe_input(parts, input_layout, task.per_token)]
    for cut in parts.cuts:
        masked = cut.layout == "NLC" and cut.shape[0] == length
        specs.append(FeatureSpec(shape=cut.shape, layout=cut.layout, mask=masked, per_token=task.per_token))
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
    return FeatureSpec(shape=shape, layout=layout, mask=False, per_token=per_token, inputs=True)


def _place_heads(
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
        unknown = next((name for name in heads if name not in positions), None)
        if unknown is not None:
            raise InputError(f"heads: no position {unknown!r}; there are {', '.join(positions)}")
        wanted = [tuple(heads.get(name, ())) for name in positions]
    elif heads == "auto":
        remaining = [sum(parts.macs[i:]) for i in range(1, len(parts.macs))]  # MACs behind each cut
        pairs = zip(specs[1:], remaining, strict=True)
        wanted = [default_heads(spec, outputs, macs) for spec, macs in pairs if spec is not None]
    else:
        wanted = [tuple(heads)] * len(positions)
    names = tuple(dict.fromkeys(name for here in wanted for name in here))
    return names, {
        (p, c): name for p, here in enumerate(wanted, start=1) for c, name in enumerate(names) if name in here
    }


def _check_given(net: ExitNetwork, where: str, head: InputExit) -> None:
    """Run a module that was given once, on the example."""
    values = [value.clone() for value in net.partition.flow.trace.example]
    try:
        with torch.no_grad(), eval_mode(net):
            out = head(*values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:
        raise InputError(
            f"{where}: calling it as the model is called fails: {type(error).__name__}: {error}; "
            "wrap it so that it takes the same inputs"
        ) from error
    if not all(map(torch.equal, net.partition.flow.trace.example, values)):
        raise InputError(
            f"{where}: it changes its input in place, which the model still needs; "
            "wrap it so that it works on a copy"
        )
    if tuple(out.shape[1:]) != net.answer_shape:
        raise InputError(
            f"{where}: expected outputs of shape {('B', *net.answer_shape)} like the model's, "
            f"got {('B', *out.shape[1:])}; the two must know the same classes"
        )
