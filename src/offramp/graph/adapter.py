"""A model's own way of being called -> a function of tensors that returns what is wanted of its answer.

Wrappers that only pass calls on are seen through. Everything else happens in a ``forward`` that stands in for
the model's own while it is traced: an explicit signature, however the model declares its arguments; no cache
of keys and values; the answer picked out of what the model returns, so that the rest needs no place in the
graph. Names of sub-modules stay what they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from offramp.data import LABEL_KEYS, InputSpec
from offramp.errors import InputError, PartitionError

Select = Callable[[object], object]
"""What a model returns -> what of it is traced."""

_PASSES_ON = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes of torch that wrap a model and call it as it is, and where they keep it."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel, torch.compile and averaged copies."""
    while (
        isinstance(model, nn.Module)
        and type(model).__module__.startswith("torch.")
        and (inside := getattr(model, _PASSES_ON.get(type(model).__name__, ""), None)) is not None
    ):
        model = inside
    return model


def without_labels(model: nn.Module, example: object) -> object:
    """An example that is a loader's batch, without its labels; ``InputError`` for labels in a tuple."""
    known = inspect.signature(model.forward).parameters
    if isinstance(example, Mapping):
        return {name: value for name, value in example.items() if not _is_label(str(name), known)}
    if isinstance(example, (tuple, list)) and len(example) == 2:
        first, last = example
        if isinstance(first, Mapping) or (_takes_at_most(known, 1) and isinstance(last, Tensor)):
            raise InputError(
                "example_inputs: expected the inputs alone, got a pair that looks like (inputs, labels); "
                "pass its first item"
            )
    return example


def called_with(model: nn.Module, spec: InputSpec) -> InputSpec:
    """The spec, of one mapping as the only argument where ``forward`` does not take these keywords."""
    if not spec.keyword or spec.mapping:
        return spec
    signature = inspect.signature(model.forward)
    try:
        signature.bind(**dict.fromkeys(spec.names))
    except TypeError:
        required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind <= 1]
        return spec.as_mapping() if len(required) == 1 else spec
    return spec


@contextmanager
def adapted(model: nn.Module, spec: InputSpec, select: Select | None) -> Iterator[None]:
    """Inside, the model takes the tensors of ``spec`` one by one, and returns what ``select`` picks.

    It is of a class of its own meanwhile: the tracer follows attributes of the ``self`` that it passes in.
    """
    before, own = type(model), model.__dict__.pop("forward", None)
    extra = {} if "use_cache" in spec.names else _without_cache(model)

    def stand_in(self: nn.Module, *values: Tensor) -> object:
        args, kwargs = spec.call(values)
        forward = before.forward.__get__(self) if own is None else own
        output = forward(*args, **kwargs, **extra)
        return output if select is None else select(output)

    kind, names = inspect.Parameter.POSITIONAL_OR_KEYWORD, ("self", *_argument_names(model, spec))
    stand_in.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    about = {"forward": stand_in, "__module__": before.__module__, "__qualname__": before.__qualname__}
    model.__class__ = type(before.__name__, (before,), about)
    try:
        yield
    finally:
        model.__class__ = before
        if own is not None:
            model.__dict__["forward"] = own


@contextmanager
def hooks_off(model: nn.Module) -> Iterator[bool]:
    """No forward hooks but torch's own (weight norm, pruning) inside; whether there were any others."""
    removed = []
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not _of_torch(hook)]:
                removed.append((hooks, list(hooks.items())))
                del hooks[key]
    try:
        yield bool(removed)
    finally:
        for hooks, before in reversed(removed):
            hooks.clear()
            hooks.update(before)  # in their order


def refuse_scripted(model: nn.Module) -> None:
    """A ``PartitionError`` for a scripted or exported model, or one with such parts."""
    for name, part in model.named_modules():
        if why := _why_not_traced(part):
            what = f"its part {name!r} is" if name else "it is"
            raise PartitionError(
                f"cannot cut {type(model).__name__}: {what} {why}; pass the Python module that it was made "
                "from"
            )


def _why_not_traced(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "a scripted module (torch.jit), whose operations cannot be traced again"
    if any(base.__module__.startswith("torch.export") for base in type(module).__mro__):
        return "a program of torch.export already, without modules to name exits after"
    return ""


def _without_cache(model: nn.Module) -> dict[str, Any]:
    """``use_cache=False`` where the model has that switch: what a classifier answers needs no cache."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _argument_names(model: nn.Module, spec: InputSpec) -> list[str]:
    """Names for the inputs: the keywords, else the model's own names for its arguments."""
    if spec.keyword:
        names = list(spec.names)
    else:
        own = inspect.signature(model.forward).parameters.values()
        names = [parameter.name for parameter in own if parameter.kind <= 1][: len(spec.names)]
        names += [f"input_{i}" for i in range(len(names), len(spec.names))]
    plain = [name if name.isidentifier() else f"input_{i}" for i, name in enumerate(names)]
    return plain if len(set(plain)) == len(plain) else [f"input_{i}" for i in range(len(plain))]


def _is_label(name: str, known: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a key of an example is of labels that the model can do without."""
    return name in LABEL_KEYS and (name not in known or known[name].default is not inspect.Parameter.empty)


def _takes_at_most(known: Mapping[str, inspect.Parameter], count: int) -> bool:
    kinds = [parameter.kind for parameter in known.values()]
    return inspect.Parameter.VAR_POSITIONAL not in kinds and sum(kind <= 1 for kind in kinds) <= count


def _of_torch(hook: object) -> bool:
    return str(getattr(hook, "__module__", type(hook).__module__)).split(".")[0] == "torch"
