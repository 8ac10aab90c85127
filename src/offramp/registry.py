"""Name -> factory, loud on duplicates and unknown names.

heads = Registry("head")

@heads.register("linear")
class LinearHead: ...

heads["linear"]          # the factory; an unknown name raises with the valid ones
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from offramp.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """A dictionary of named factories that refuses to be overwritten.

    Args:
        kind: what is registered here, for messages ("head", "confidence").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its argument under ``name``.

        Raises:
            InputError: ``name`` is taken by something else, or is not an identifier-like string.
        """
        if not name or not name.replace("-", "_").isidentifier():
            raise InputError(f"a {self.kind} needs a name of letters, digits, '_' and '-'; got {name!r}")

        def file(entry: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and taken is not entry:
                raise InputError(
                    f"{self.kind} {name!r} is already registered as {taken!r}; choose another name"
                )
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            close = difflib.get_close_matches(str(name), self._entries, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            known = ", ".join(sorted(self._entries))
            raise InputError(f"unknown {self.kind} {name!r}{hint}; known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
