"""Context managers that leave a module as they found it: eval mode, tracing mode, tables that it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_OWN_DICTIONARIES = frozenset(vars(nn.Module()))


class eval_mode:  # noqa: N801 (used as a context manager, like torch.no_grad)
    """Every part of a module in eval mode inside; the modes as they were afterwards."""

    def __init__(self, module: nn.Module) -> None:
        self._modes = [(part, part.training) for part in module.modules()]
        self._module = module

    def __enter__(self) -> None:
        self._module.eval()

    def __exit__(self, *_: object) -> None:
        for part, training in self._modes:
            part.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's training flag as it was afterwards.

    The fused path of ``nn.MultiheadAttention`` is off inside: it cannot be traced, and its last bits differ.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eval_mode(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def caches_kept(model: nn.Module) -> Iterator[None]:
    """Dictionaries that modules keep beside their parameters hold afterwards what they hold now."""
    kept = _caches(model)
    try:
        yield
    finally:
        _put_back(kept)


def _caches(model: nn.Module) -> list[tuple[dict[str, Any], str, dict[Any, Any], dict[Any, Any]]]:
    """(attributes of a module, name, a dictionary it keeps, a copy of that) for each."""
    return [
        (vars(module), name, value, dict(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is dict and name not in _OWN_DICTIONARIES
    ]


def _put_back(kept: list[tuple[dict[str, Any], str, dict[Any, Any], dict[Any, Any]]]) -> None:
    for attributes, name, value, content in kept:
        value.clear()
        value.update(content)
        attributes[name] = value


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Calls inside find no tables of earlier calls, which the tracer takes for constants, and leave none."""
    with caches_kept(model):
        model.train()  # modules that keep tables in eval mode drop them here
        model.eval()
        empty = _caches(model)
        hook = model.register_forward_hook(lambda *_: _put_back(empty), always_call=True)
        try:
            yield
        finally:
            hook.remove()
