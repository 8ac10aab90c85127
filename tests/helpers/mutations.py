"""Documents of JSON with one value changed, as a fault or an attacker would leave them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**30, 1.5, -0.0, 1e308, "", "x", "batch", "../x.onnx", "/etc/hostname",
    "inf", "a\0b", [], [[]], {}, {"name": "x"}, ["batch", 3], "float64", "int64",
)  # fmt: skip


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document: keys and indices from the top."""
    if not isinstance(document, (dict, list)):
        return [path]
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    below = [each for key, value in inner for each in places(value, (*path, key))]
    return [*([path] if path else []), *below]


def mutated(document: dict[str, Any], random: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """A copy with one value replaced, removed, doubled or exchanged with another; and what was done."""
    found = copy.deepcopy(document)
    every = places(found)
    *above, last = every[random.integers(len(every))]
    holder = found
    for key in above:
        holder = holder[key]
    kind = ("replace", "replace", "remove", "double", "exchange")[random.integers(5)]
    if kind == "remove":
        del holder[last]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(last, copy.deepcopy(holder[last]))
    elif kind == "exchange" and isinstance(holder, (list, dict)) and len(holder) > 1:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        other = keys[random.integers(len(keys))]
        holder[last], holder[other] = holder[other], holder[last]
    else:
        holder[last] = copy.deepcopy(STRANGE[random.integers(len(STRANGE))])
    return f"{kind} {[*above, last]}", found
