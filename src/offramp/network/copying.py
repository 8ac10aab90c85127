"""Copies of a network: ``copy.deepcopy``, pickles and ``torch.save`` hold what it was made from.

backbone + example + cuts, kinds and weights of heads ─▶ traced and attached again where it is read

A traced graph itself is of this process and this version of PyTorch. An artifact (``offramp.save``) holds the
same without the backbone, checks what it reads and executes nothing; pickles are for one's own processes.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import InputError, OfframpError
from offramp.graph import TraceOptions, partition
from offramp.network.attach import HeadPlacement, answer_options, network_on
from offramp.network.network import ExitNetwork, InputExit


def _reduced(net: ExitNetwork) -> tuple[Any, ...]:
    """What ``copyreg`` asks for: a function, and its arguments."""
    parts, spec, first = net.partition, net.partition.spec, net.specs[0]
    example = dict(zip(spec.names, parts.flow.trace.example, strict=True))
    at_input: dict[str, nn.Module | str] = {}
    kinds = {}
    for p, c, head in net.exits():
        kind = net.kind(p, c)
        if p:
            kinds[p, c] = kind
        else:
            at_input[net.head_names[c]] = head.module if isinstance(head, InputExit) else str(kind)
    recipe = {
        "example": {name: value.detach().clone() for name, value in example.items()},
        "keyword": spec.keyword,
        "selected": parts.selected,
        "layouts": {cut.name: cut.layout for cut in parts.cuts},
        "names": tuple(name for name in net.head_names if name not in at_input),
        "kinds": kinds,
        "options": {
            "task": net.task,
            "confidence": net.confidence,
            "output": net.output,
            "input_layout": None if first is None else first.layout,
            "input_exits": at_input,
            "mask": None if net.mask_input is None else spec.names[net.mask_input],
        },
    }
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return _made_again, (net.backbone, recipe, state, net.training)


def _made_again(
    model: nn.Module, recipe: Mapping[str, Any], state: Mapping[str, Tensor], training: bool
) -> ExitNetwork:
    """Trace, cut and attach as before, and put the heads' weights back."""
    example, layouts = recipe["example"], recipe["layouts"]
    called = example if recipe["keyword"] else tuple(example.values())
    try:
        given, options = recipe["options"], TraceOptions()
        if recipe["selected"]:
            options = answer_options(given["task"], given["output"], given["task"].activation, given["mask"])
        parts = partition(model, called, cuts=list(layouts), layouts=layouts, options=options)
        placed = HeadPlacement(recipe["names"], recipe["kinds"])
        net = network_on(parts, heads=placed, **given)
        with torch.no_grad():
            net.load_state_dict(state)
    except (OfframpError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(". ")
        raise InputError(
            f"the copy of a network cannot be made: {reason}; write it with offramp.save and read it with "
            "offramp.load"
        ) from error
    return net.train(training)


copyreg.dispatch_table[ExitNetwork] = _reduced  # where copies, pickles and torch.save all ask
