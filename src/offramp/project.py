"""A user's own model and data, named on the command line as ``package.module:callable``.

MODEL   () -> torch.nn.Module, trained
DATA    () -> mapping with loaders "train", "search" and, to report on, "report"; disjoint samples
        a loader yields (inputs, labels), or inputs alone; optional "example_inputs" where those are ambiguous
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from offramp.errors import InputError
from offramp.inputs import LABEL_KEYS


@dataclass(frozen=True)
class Splits:
    """Loaders of three disjoint sets of samples, and example inputs for tracing."""

    train: Iterable[Any]
    search: Iterable[Any]
    report: Iterable[Any] | None
    example: Any


def load_model(spec: str) -> nn.Module:
    """Call the user's model function.

    Raises:
        InputError: it cannot be found, fails, or returns something else than a module.
    """
    model = _call(spec, "MODEL")
    if not isinstance(model, nn.Module):
        raise InputError(f"MODEL {spec}: expected it to return a torch.nn.Module, got {type(model).__name__}")
    return model


def load_data(spec: str) -> Splits:
    """Call the user's data function.

    Raises:
        InputError: it cannot be found, fails, or returns something else than the loaders.
    """
    found = _call(spec, "DATA")
    if not isinstance(found, Mapping) or not {"train", "search"} <= set(found):
        got = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise InputError(
            f"DATA {spec}: expected a mapping with 'train', 'search' and 'report' loaders, got {got}"
        )
    for split in ("train", "search", "report"):
        loader = found.get(split)
        if loader is None and split == "report":
            continue
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise InputError(
                f"DATA {spec}: expected {split!r} to be a loader that can be gone through more than once, "
                f"got a {type(loader).__name__}; a list of batches or a DataLoader will do"
            )
    train, search = _Guarded(spec, "train", found["train"]), _Guarded(spec, "search", found["search"])
    report = found.get("report")
    example = found.get("example_inputs")
    if example is None:
        example = _example(spec, train)
    return Splits(train, search, None if report is None else _Guarded(spec, "report", report), example)


class _Guarded:
    """A user's loader whose own failures come out as a message that names the split and the batch."""

    def __init__(self, spec: str, split: str, loader: Iterable[Any]) -> None:
        self._where, self._loader = f"DATA {spec}: {split}", loader

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        i = 0
        try:
            for batch in self._loader:
                yield batch
                i += 1
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{self._where}: reading batch {i} fails: {what}") from error


def _call(spec: str, what: str) -> Any:
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise InputError(f"{what}: expected package.module:callable, got {spec!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{what} {spec}: no module {error.name!r}; run from its folder or install it"
            ) from error
        raise InputError(f"{what} {spec}: importing it fails: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} {spec}: importing it fails: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{what} {spec}: {module_name} has no callable {name!r}")
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} {spec}: calling it fails: {type(error).__name__}: {error}") from error


def _example(spec: str, loader: Iterable[Any]) -> Any:
    batch = next(iter(loader), None)
    if batch is None:
        raise InputError(f"DATA {spec}: the train loader yields nothing; expected at least one batch")
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in LABEL_KEYS}
    if not isinstance(batch, (tuple, list)):
        return batch
    if not batch:
        raise InputError(f"DATA {spec}: the first train batch is an empty {type(batch).__name__}")
    return batch[0] if len(batch) <= 2 else tuple(batch[:-1])
