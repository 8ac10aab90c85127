"""Names of classes in data, and the model's outputs that they mean.

the model's own names   whatever their case, with "_", "-" and spaces alike; some that match and some that do
                        not are an error: numbering them anew would swap classes
whole numbers           the indices themselves
other names             in alphabetical order, where the model has no names of its own, and WordNet's numbers
                        (n01440764), as ImageNet's folders are called
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from offramp.errors import InputError

_SYNSET = re.compile(r"n[0-9]{8}")
_SEPARATORS = re.compile(r"[\s_-]+")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_INTEGRAL = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")


def class_numbers(names: Iterable[str], known: Mapping[str, int], outputs: int, where: str) -> dict[str, int]:
    """Name of a class -> index of the model's output; ``known`` are the model's own names.

    ``InputError``, opened by ``where``: names that are not the model's, two names for one class, or another
    number of classes than outputs.
    """
    found = sorted(set(names))
    matched = _matched(found, known, where)
    if matched is not None:
        return matched
    if all(_WHOLE.fullmatch(name) for name in found):
        return _indices(found, outputs, where)
    if len(found) != outputs or (known and not _all_synsets(found)):
        raise _mismatch(found, known, outputs, where)
    return {name: i for i, name in enumerate(found)}


def how_numbered(numbers: Mapping[str, int], known: Mapping[str, int]) -> str:
    """How ``class_numbers`` came to its answer, in words."""
    if all(known.get(name) == number for name, number in numbers.items()):
        return "the model's own names"
    simple = {simplified(name) for name in known}
    if all(simplified(name) in simple for name in numbers):
        return "the model's own names, whatever their case"
    if all(_WHOLE.fullmatch(name) and int(name) == number for name, number in numbers.items()):
        return "names that are numbers are indices of the model's outputs"
    if _all_synsets(numbers):
        return "WordNet's numbers in their order, as ImageNet counts its classes"
    return "numbered in alphabetical order: the model has no names of its own"


def _all_synsets(names: Iterable[str]) -> bool:
    """Whether they are folders of ImageNet, whose models call the same classes by words."""
    return all(_SYNSET.fullmatch(name) for name in names)


def simplified(name: str) -> str:
    """A name without case, and with one space for every run of spaces, "_" and "-"."""
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", name).casefold()).strip()


def parse_labels(
    labels: Sequence[str | None], where: str, floating: bool, known: Mapping[str, int]
) -> list[object]:
    """Labels as text to numbers (``floating``), to indices where all are whole (1.0 is 1), else as they are.

    Names that the model knows stay names, also where they are numbers. ``InputError``: a label that is no
    number, or not whole where classes are expected.
    """
    there = {label for label in labels if label is not None}
    if floating:
        return [None if label is None else _number(label, where) for label in labels]
    if known and there and {simplified(label) for label in there} <= {simplified(name) for name in known}:
        return list(labels)
    integral = {label: _INTEGRAL.fullmatch(label) for label in there}
    if all(integral.values()):
        return [None if label is None else int(integral[label][1]) for label in labels]  # type: ignore[index]
    broken = next((label for label in sorted(there) if _is_number(label) and not integral[label]), None)
    if broken is not None and all(map(_is_number, there)):
        raise InputError(
            f"{where}: expected classes, got the number {broken[:40]}; for numbers to be predicted say "
            "--task regression"
        )
    return list(labels)


def _matched(found: Sequence[str], known: Mapping[str, int], where: str) -> dict[str, int] | None:
    """All names by the model's; None where none is, or the model has none."""
    if all(name in known for name in found):
        numbers = {name: known[name] for name in found}
    else:
        simple: dict[str, set[int]] = defaultdict(set)
        for name, index in known.items():
            simple[simplified(name)].add(index)
        meant = {
            name: {known[name]} if name in known else simple.get(simplified(name), set()) for name in found
        }
        if not any(meant.values()):
            return None
        several = next((name for name, indices in meant.items() if len(indices) > 1), None)
        if several is not None or not all(meant.values()):
            raise _mismatch(found, known, max(known.values()) + 1, where, several)
        numbers = {name: indices.pop() for name, indices in meant.items()}
    _check_distinct(numbers, where)
    return numbers


def _check_distinct(numbers: Mapping[str, int], where: str) -> None:
    first: dict[int, str] = {}
    for name, index in numbers.items():
        if index in first:
            raise InputError(
                f"{where}: {first[index]!r} and {name!r} would both be class {index}; give it one name"
            )
        first[index] = name


def _indices(found: Sequence[str], outputs: int, where: str) -> dict[str, int]:
    numbers = {name: int(name) for name in found}
    _check_distinct(numbers, where)
    if min(numbers.values()) >= 0 and max(numbers.values()) < outputs:
        return numbers
    if len(found) == outputs and found == sorted(found, key=int):
        return {name: i for i, name in enumerate(found)}
    raise InputError(
        f"{where}: names of classes that are numbers are indices of the model's outputs: expected 0 to "
        f"{outputs - 1}, got {min(numbers.values())} to {max(numbers.values())}; rename them, or name them "
        "in the order of the outputs: classes=NAME/NAME/..."
    )


def _mismatch(
    found: Sequence[str], known: Mapping[str, int], outputs: int, where: str, several: str | None = None
) -> InputError:
    """What is there, what the model has, and how to say which is which."""
    strange = next((name for name in found if simplified(name) not in set(map(simplified, known))), None)
    why = f"; the model has no class called {strange!r}" if known and strange is not None else ""
    if several is not None:
        why = f"; {several!r} can be more than one of the model's classes"
    own = f"; its own are {_few(sorted(known, key=known.__getitem__))}" if known else ""
    wanted = f"expected {outputs} classes because the model has {outputs} outputs"
    if known and len(found) == outputs:
        wanted = "expected the model's names of classes"
    fix = "or name them in the order of the outputs: classes=NAME/NAME/..." if len(found) == outputs else ""
    return InputError(
        f"{where}: {wanted}, got {len(found)} ({_few(found)}){why}{own}; use the model trained for these "
        "classes" + (f", {fix}" if fix else "")
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _number(label: str, where: str) -> float:
    value = float(label) if _is_number(label) else float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"{where}: expected finite numbers as labels, got {label[:40]!r}")
    return value
