"""JSON documents with a format name and a version, written in plain values only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from offramp.errors import ArtifactError, InputError


def canonical(document: Mapping[str, Any]) -> str:
    """JSON text with sorted keys, equal for equal documents; ``InputError``: not plain or not finite."""
    return _json(document, sort_keys=True)


def dump_document(document: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """JSON text for people to read, in the document's own order or sorted by key."""
    return _json(document, indent=1, sort_keys=sort_keys) + "\n"


def _json(document: Mapping[str, Any], **options: Any) -> str:
    try:
        return json.dumps(document, allow_nan=False, **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"meta: expected plain JSON values, got one that is not ({error})") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def parse_document(text: str, wanted: str, newest: int, *, finite: bool = False) -> dict[str, Any]:
    """A versioned JSON document; ``ArtifactError``: it is none, of another format or of a newer version.

    Where it must be ``finite``, NaN and infinities are refused: Python reads them, JSON has none.
    """
    try:
        document = json.loads(text, parse_constant=_no_number if finite else None)
    except (ValueError, RecursionError) as error:  # ValueError also for integers of absurd length
        raise ArtifactError(f"expected an {wanted} document, got text that is not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != wanted:
        found = document.get("format") if isinstance(document, dict) else None
        raise ArtifactError(f"expected an {wanted} document, got format {found!r}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtifactError(f"{wanted}: expected a version number, got {version!r}")
    if version > newest:
        raise ArtifactError(
            f"{wanted}: version {version} is newer than this release reads ({newest}); upgrade offramp"
        )
    return document
