"""What was found in a model and its data: printed by every build, stored in the artifact, used to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from offramp.core import counted, printable
from offramp.errors import ArtifactError, InputError

_COMPARED = ("transform", "mean", "std", "size", "key", "tokenizer", "max_length")
_MOST = 8


class DataWarning(UserWarning):
    """Something in the data is not used, or is used otherwise than it may have been meant."""


@dataclass(frozen=True)
class DataSummary:
    """What a model and its data turned out to be; plain values only, so that it can be stored as JSON.

    Args:
        model: the MODEL as it was named; empty for a module that was not.
        data: the DATA as they were named.
        inputs: how samples become inputs: the "kind" of data, and what is known of it ("transform", "mean",
            "std", "size", "tokenizer", "max_length" ...).
        splits: how many samples each split has; a split whose loader does not say is left out.
        classes: name of a class -> index of the model's output.
        matched: how names became indices, in words.
        notes: what was left out or converted, one sentence each.
    """

    model: str = ""
    data: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    matched: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, document: Any) -> DataSummary:
        """From what ``to_dict`` gave; ``ArtifactError`` where it is something else."""
        kinds = {"model": str, "data": str, "matched": str, "inputs": dict, "splits": dict, "classes": dict}
        if not isinstance(document, dict) or set(document) != {*kinds, "notes"}:
            raise ArtifactError(f"what it says of its data: expected {', '.join(kinds)} and notes")
        for name, kind in kinds.items():
            if not isinstance(document[name], kind):
                raise ArtifactError(f"what it says of its data: {name} is not of type {kind.__name__}")
        counts = (*document["splits"].values(), *document["classes"].values())
        notes = document["notes"]
        if any(type(value) is not int or value < 0 for value in counts) or not (
            isinstance(notes, list) and all(isinstance(note, str) for note in notes)
        ):
            raise ArtifactError("what it says of its data: expected whole numbers, and notes of text")
        return cls(**{**document, "notes": tuple(notes)})

    def facts(self) -> dict[str, str]:
        """What people should see of it, by label; names from files are made printable."""
        sizes = ", ".join(f"{name} {counted(size, 'sample')}" for name, size in self.splits.items())
        found = {
            "model": self.model,
            "data": self.data,
            "splits": sizes,
            "classes": self._classes(),
            "inputs": self._inputs(),
            "note": "; ".join(self.notes),
        }
        return {name: printable(fact) for name, fact in found.items() if fact}

    def names(self) -> dict[int, str]:
        """Index of the model's output -> name of its class."""
        return {index: name for name, index in self.classes.items()}

    def _classes(self) -> str:
        first = sorted(self.classes.items(), key=lambda item: item[1])
        listed = ", ".join(f"{name} = {index}" for name, index in first[:_MOST])
        more = f", ... {len(first)} in all" if len(first) > _MOST else ""
        how = f" ({self.matched})" if self.matched else ""
        return f"{listed}{more}{how}" if first else self.matched

    def _inputs(self) -> str:
        parts = [f"{key} {in_words(value)}" for key, value in self.inputs.items() if value not in (None, "")]
        return ", ".join(parts).removeprefix("kind ")


def check_same_inputs(where: str, stored: DataSummary, inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that are prepared otherwise than those of the build: ``InputError`` that names both."""
    for key in _COMPARED:
        was, now = (in_words(each.get(key)) for each in (stored.inputs, inputs))
        if key in stored.inputs and key in inputs and was != now:
            raise InputError(
                f"{where}: the artifact was built with {key} {was}, this has {key} {now}; its "
                f"exits are for the former: give the same (it was built from MODEL {stored.model} and DATA "
                f"{stored.data}), or build again"
            )


def in_words(value: Any) -> str:
    """A value of ``inputs`` for a message: numbers with four digits, several with "/" between."""
    if isinstance(value, (list, tuple)):
        return "/".join(map(in_words, value))
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def listed(names: list[str], most: int = 3) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
