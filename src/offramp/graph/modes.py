"""Context managers that leave a module as they found it: eval mode, tracing mode, its caches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_OWN_DICTIONARIES = frozenset(vars(nn.Module()))
_CHANGING = threading.RLock()
_INSIDE: dict[int, tuple[int, list[nn.Module]]] = {}
"""By id of a module: how many calls hold it in eval mode, and the parts that were in training mode before."""


class eval_mode:  # noqa: N801 (used as a context manager, like torch.no_grad)
    """Every part of a module in eval mode inside; the modes as they were afterwards.

    Calls of several threads may overlap: the first one in sets the modes, the last one out restores them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._parts = module, tuple(module.modules())

    def __enter__(self) -> None:
        with _CHANGING:
            calls, changed = _INSIDE.get(id(self._module), (0, []))
            if calls == 0:
                training = [part for part in self._parts if part.training]
                if training:
                    self._module.eval()
                changed = [part for part in training if not part.training]
            _INSIDE[id(self._module)] = calls + 1, changed

    def __exit__(self, *_: object) -> None:
        with _CHANGING:
            calls, changed = _INSIDE.pop(id(self._module))
            if calls > 1:
                _INSIDE[id(self._module)] = calls - 1, changed
                return
            for part in changed:
                part.training = True


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's training flag as it was afterwards.

    The fused path of ``nn.MultiheadAttention`` is off inside: it cannot be traced, and its last bits differ.
    That is a switch of the whole process, so this is for one-off work such as tracing, not for inference.
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
        _restore(kept)


def _caches(model: nn.Module) -> list[tuple[dict[str, Any], str, dict[Any, Any], dict[Any, Any]]]:
    """(attributes of a module, name, a dictionary it keeps, a copy of that) for each."""
    return [
        (vars(module), name, value, dict(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is dict and name not in _OWN_DICTIONARIES
    ]


def _restore(kept: list[tuple[dict[str, Any], str, dict[Any, Any], dict[Any, Any]]]) -> None:
    for attributes, name, value, content in kept:
        value.clear()
        value.update(content)
        attributes[name] = value


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Calls inside find no tables of earlier calls, which the tracer takes for constants, and leave none."""
    with caches_kept(model):
        try:
            model.train()  # modules that keep tables in eval mode drop them here
        finally:
            model.eval()
        empty = _caches(model)
        hook = model.register_forward_hook(lambda *_: _restore(empty), always_call=True)
        try:
            yield
        finally:
            hook.remove()
