"""What readers of files have in common: samples by set, and errors that name the file."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.core import counted
from offramp.errors import InputError
from offramp.sources.spec import Spec
from offramp.sources.splits import split_of
from offramp.sources.summary import listed

Sample = tuple[Any, Any]
"""(what to read, label): the name of a class, a number, a row of numbers, or None."""

Sets = Mapping[str, Mapping[str, Sequence[Sample]]]
"""Name of a set ("" for the only one) -> name of a group to be divided evenly -> samples."""


@dataclass(frozen=True)
class Readings:
    """All samples that a reader found, and how to read some of them as the inputs that the model takes.

    ``prepared``: whether ``read`` does all that the model's configuration asks for. ``inputs`` and ``notes``
    go into the ``DataSummary``; ``warned`` are those notes that people should not miss. ``label_hint`` says
    where labels could be, if there are none.
    """

    sets: Sets
    read: Callable[[Sequence[Any]], Any]
    prepared: bool
    inputs: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    label_hint: str = ""


@contextmanager
def reading(spec: Spec, path: Path) -> Iterator[None]:
    """What the system or a format says about a file, with its name: libraries have errors of all kinds."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise spec.error(f"{path} cannot be read: it does not fit into memory; give less") from error
    except Exception as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise spec.error(f"{path} cannot be read: {said}") from error


def place(spec: Spec, name: str | None = None) -> Path:
    """The path that a specification, or its option ``name``, names.

    ``InputError`` where the system has no such user or no names like it.
    """
    text = spec.name if name is None else spec.options[name]
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise spec.error(f"{text[:80]} is no path here: {said}; check it") from error
    return path


def named_file(spec: Spec) -> Path:
    """The file that a specification names; ``InputError``: there is none, or it is a pipe or a device."""
    path = place(spec)
    with reading(spec, path):
        if not path.exists():
            raise spec.error(f"no file {path}")
        if not stat.S_ISREG(path.stat().st_mode):
            raise spec.error(f"no file {path}: it is a folder, a pipe or a device; name a file")
    return path


def sets_among(names: Iterable[str]) -> dict[str, str]:
    """Those names that are names of sets, in any case -> the split that is meant."""
    return {name: split for name in names if (split := split_of(name)) is not None}


def grouped(names: Iterable[str], samples: Iterable[tuple[str, str, Sample]]) -> Sets:
    """(set, group, sample) to sets of groups; all ``names`` are sets, also those without samples."""
    sets: dict[str, dict[str, list[Sample]]] = {name: {} for name in names}
    for name, group, sample in samples:
        sets[name].setdefault(group, []).append(sample)
    return sets


def left_out(names: Sequence[str], unit: str, why: str) -> tuple[str, ...]:
    """A note that so many files or folders are not used, with the first few names; none where none is."""
    if not names:
        return ()
    are = "is" if len(names) == 1 else "are"
    return (f"{counted(len(names), unit)} {are} not used, {why}: {listed(list(names))}",)
