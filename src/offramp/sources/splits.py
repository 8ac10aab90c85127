"""Three disjoint sets of samples: as loaders, and how one set becomes three.

train    heads learn from it
search   configurations are found on it
report   nothing is chosen on it; figures are of it
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offramp.errors import InputError
from offramp.sources.summary import DataSummary

NAMES = ("train", "search", "report")
ALIASES = {
    "training": "train", "val": "search", "valid": "search", "validation": "search", "dev": "search",
    "development": "search", "eval": "search", "evaluation": "search", "test": "report", "testing": "report",
    "holdout": "report", "hold-out": "report", "hold_out": "report",
}  # fmt: skip
"""What others call the splits -> the split; in any case."""
_DIVISIONS: dict[frozenset[str], dict[str, tuple[Sequence[str], Sequence[float]]]] = {
    frozenset({"train"}): {"train": (NAMES, (0.6, 0.2, 0.2))},
    frozenset({"train", "search"}): {"search": (("search", "report"), (0.5, 0.5))},
    frozenset({"train", "report"}): {"train": (("train", "search"), (0.8, 0.2))},
}
"""Splits that there are -> which of them is divided into what, by which shares."""

Check = Callable[[int, object], None]
"""(index of the batch, batch); raises ``InputError`` where it does not fit the model."""


@dataclass(frozen=True)
class Splits:
    """Loaders of three disjoint sets of samples, which go through the same batches each time.

    Args:
        train: what heads learn from.
        search: what configurations are found on.
        report: what nothing is chosen on, or None.
        example: inputs as the model takes them, for tracing.
        classes: how many there are, where the data say so.
        groups: by split ("search", "report"), (N,) whole numbers: which samples belong together, such as
            views of one picture.
        summary: what was found in the data, where somebody looked.
        label_hint: where labels could be, for the error where there are none.
    """

    train: Iterable[Any]
    search: Iterable[Any]
    report: Iterable[Any] | None
    example: Any
    classes: int | None = None
    groups: Mapping[str, Any] = field(default_factory=dict)
    summary: DataSummary | None = None
    label_hint: str = ""


class Guarded:
    """A loader whose failures, and those of a check of every batch, name the split and the batch."""

    def __init__(self, where: str, loader: Iterable[Any], check: Check | None = None) -> None:
        self._where, self._loader, self._check = where, loader, check

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        i = 0
        try:
            for batch in self._loader:
                if self._check is not None:
                    self._check(i, batch)
                yield batch
                i += 1
        except InputError as error:
            # a worker process of a DataLoader puts its traceback before the message
            message = str(error).rsplit("InputError: ", 1)[-1].strip()
            raise InputError(f"{self._where}: batch {i}: {message}") from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{self._where}: reading batch {i} fails: {what}") from error


def divided(
    groups: Mapping[str, Sequence[Any]], names: Sequence[str], shares: Sequence[float], seed: int
) -> dict[str, list[Any]]:
    """Divide every group of samples (content, label) among splits by their shares, disjointly.

    A group's division is random and depends on the seed, its name and its members alone: another group
    changes nothing. Samples of one group with the same content, such as a mail that was sent twice, stay
    together. Each split comes in a random order fixed by the seed.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    for group, members in groups.items():
        random = np.random.default_rng((seed, zlib.crc32(group.encode())))
        alike: dict[Any, list[Any]] = {}
        for member in members:
            alike.setdefault(member[0], []).append(member)
        units = list(alike.values())
        order = random.permutation(len(units))
        # rounding at random keeps the shares where groups are small
        bounds = np.floor(np.cumsum(shares[:-1]) * len(units) + random.random()).astype(int)
        for name, part in zip(names, np.split(order, bounds.clip(0, len(units))), strict=True):
            found[name].extend(member for i in sorted(part) for member in units[i])
    return {name: shuffled(members, seed) for name, members in found.items()}


def split_of(name: str) -> str | None:
    """The split that the name of a set means, in any case; None where it is no such name."""
    name = name.strip().casefold()
    return name if name in NAMES else ALIASES.get(name)


def three_sets(
    found: Mapping[str, Mapping[str, Sequence[Any]]], seed: int, where: str
) -> dict[str, list[Any]]:
    """The sets of samples that data come in, as train, search and report.

    ======================  ==============================================================================
    one set                 divided 60 : 20 : 20, class by class
    train, search, report   as they are; "val" is search and "test" is report
    train, search           as they are; nothing to report on
    train, val              val is halved, class by class: the model has seen neither half in training
    train, report           a fifth of train becomes search
    ======================  ==============================================================================

    ``found`` is name of a set ("" for the only one) -> class -> samples. ``InputError``, opened by ``where``:
    no set called train, two of one meaning, or a split without samples.
    """
    named: dict[str, str] = {}
    for name in found:
        split = split_of(name or "train")
        if split is None:
            known = ", ".join((*NAMES, *ALIASES))
            raise InputError(f"{where}: expected sets called {known}, got {name!r}; rename it")
        if split in named:
            raise InputError(
                f"{where}: both {named[split]!r} and {name!r} would be the {split} split; keep one"
            )
        named[split] = name
    if "train" not in named:
        raise InputError(f"{where}: expected a set 'train', got {', '.join(sorted(found))}")
    sets = {split: found[name] for split, name in named.items()}
    division = {} if named.get("search", "").casefold() == "search" else _DIVISIONS.get(frozenset(sets), {})
    splits: dict[str, list[Any]] = {}
    for split, groups in sets.items():
        if split in division:
            splits |= divided(groups, *division[split], seed)
        else:
            splits[split] = shuffled([*itertools.chain(*groups.values())], seed)
    for split, members in splits.items():
        if not members:
            raise InputError(f"{where}: no samples for the {split} split; give more")
    return splits


def shuffled(members: Sequence[Any], seed: int) -> list[Any]:
    """In a random order fixed by the seed: a stream as it would come, not class by class."""
    return [members[i] for i in np.random.default_rng((seed, len(members))).permutation(len(members))]


def limited(members: Sequence[Any], group_of: Callable[[Any], object], most: int) -> list[Any]:
    """At most so many, as evenly from all groups as there are, in the order they came in."""
    counts: dict[object, itertools.count[int]] = defaultdict(itertools.count)
    ranks = [(next(counts[group_of(member)]), i) for i, member in enumerate(members)]
    return [members[i] for i in sorted(i for _, i in sorted(ranks)[:most])]
