"""What stands on the command line for a model or for data: ``scheme:name,option=value,...``.

timm:resnet50                                   a model of a library, with its pretrained weights
timm:resnet50,classes=10,weights=mine.pth       ... with weights of one's own
csv:reviews.csv,text=body,label=stars           a table
shop:model                                      a callable of one's own: package.module:callable

Options follow commas, because "?" and "&" mean something to shells. A comma that no ``option=`` follows
belongs to the value before it.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from offramp.errors import InputError, MissingExtraError

_OPTION = re.compile(r",(?=[a-z_]+=)")
_CALLABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_UNREACHABLE = {
    "LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "ConnectTimeout",
    "ReadTimeout", "URLError", "gaierror", "TimeoutError", "MaxRetryError",
}  # fmt: skip


T = TypeVar("T")


@dataclass(frozen=True)
class Scheme:
    """What may stand before a colon, what stands after it (for messages), and the options understood."""

    name: str
    argument: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A specification of a "MODEL" or of "DATA" (``what``, for messages), parsed and as it was written.

    ``scheme`` is empty for ``package.module:callable``, whose ``name`` is the whole text; else ``name`` is
    what follows the scheme. Options that are not what they are read as raise ``InputError``.
    """

    what: str
    text: str
    scheme: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    def error(self, message: str) -> InputError:
        """An error that names this specification."""
        return InputError(f"{self.what} {self.text}: {message}")

    def flag(self, name: str, default: bool) -> bool:
        """An option that is true or false."""
        value = self.options.get(name, str(default))
        if value.lower() not in ("true", "false"):
            raise self.error(f"{name}: expected true or false, got {value!r}")
        return value.lower() == "true"

    def integer(self, name: str, default: T, least: int = 1) -> int | T:
        """An option that is an integer of at least ``least``."""
        value = self.options.get(name)
        if value is None:
            return default
        if not value.isascii() or not value.isdigit() or int(value) < least:
            raise self.error(f"{name}: expected a whole number of at least {least}, got {value!r}")
        return int(value)

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """An option that is one number or several, separated by "/"."""
        value = self.options.get(name)
        return None if value is None else numbers_in(f"{self.what} {self.text}: {name}", value)


def parse_spec(what: str, text: str, schemes: Sequence[Scheme]) -> Spec:
    """Read a specification as it is on the command line, of one of the schemes or a callable.

    ``InputError`` where it is neither, or has an option that the scheme has not. ``what`` is for messages.
    """
    name, colon, rest = text.partition(":")
    scheme = next((scheme for scheme in schemes if scheme.name == name), None)
    if scheme is None or not colon:
        if _CALLABLE.fullmatch(text):
            return Spec(what=what, text=text, scheme="", name=text)
        raise InputError(f"{what}: expected {expected(schemes)}, got {text!r}{scheme_hint(text, schemes)}")
    argument, options = split_options(rest)
    spec = Spec(what=what, text=text, scheme=name, name=argument, options=options)
    if not argument:
        raise spec.error(f"expected {name}:{scheme.argument}, got nothing after the colon")
    for option in spec.options:
        if option not in scheme.options:
            known = ", ".join(scheme.options) or "none"
            raise spec.error(f"no option {option!r}{near(option, scheme.options)}; {name}: knows {known}")
    return spec


def numbers_in(where: str, text: str) -> tuple[float, ...]:
    """Finite numbers with "/" between; ``InputError``, opened by ``where``, for anything else."""
    try:
        found = tuple(float(part) for part in text.split("/"))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise InputError(f"{where}: expected a number, or several with '/' between, got {text!r}")
    return found


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """``argument,option=value,...`` to (argument, options)."""
    argument, *parts = _OPTION.split(text)
    pairs = (part.partition("=") for part in parts)
    return argument, {name: value for name, _, value in pairs}


def expected(schemes: Sequence[Scheme]) -> str:
    """The ways there are, for a message."""
    ways = [f"{scheme.name}:{scheme.argument}" for scheme in schemes]
    return f"{', '.join(ways)} or package.module:callable"


def scheme_hint(text: str, schemes: Sequence[Scheme]) -> str:
    """What was probably meant, where what stands before the colon resembles a scheme."""
    name, colon, rest = text.partition(":")
    close = difflib.get_close_matches(name.lower(), [scheme.name for scheme in schemes], n=1)
    return f" (did you mean {close[0]}:{rest}?)" if close and colon else ""


def near(name: str, known: Iterable[str], most: int = 1) -> str:
    """Names like this one, as part of a message; empty where there is none."""
    close = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a library that the ``extra`` of this package installs, for a ``purpose``.

    ``MissingExtraError`` where it is not installed, or does not fit the torch beside it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f'{purpose} needs {module}, which cannot be imported ({error}); pip install "offramp[{extra}]"'
        ) from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise MissingExtraError(
            f"{purpose} needs torchvision, and the one installed does not fit the torch beside it ({error}); "
            "install the two as built for each other: pip install --upgrade torch torchvision"
        ) from error


def unreachable(error: BaseException) -> bool:
    """Whether an error, or what caused it, comes from a hub that cannot be reached."""
    cause: BaseException | None = error
    while cause is not None:
        names = {kind.__name__ for kind in type(cause).__mro__}
        if names & _UNREACHABLE or "couldn't connect to" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
