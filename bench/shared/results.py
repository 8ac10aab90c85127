"""Where results are kept, how they are written, and tables of them on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


def read(path: Path, absent: Any = None) -> Any:
    """A JSON document, or ``absent`` (an empty object by default) where there is no file."""
    if path.exists():
        return json.loads(path.read_text())
    return {} if absent is None else absent


def write(path: Path, document: Any, *, indent: int | None = 1, flat: bool = False) -> None:
    """Write a JSON document, whole or not at all; the folder is made if need be.

    Args:
        path: of the file.
        document: to write.
        indent: spaces for each level; None puts everything in one line.
        flat: lists of numbers and strings take one line each.
    """
    text = json.dumps(document, indent=indent)
    if flat:
        text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(text + "\n")
    partial.replace(path)


def table(title: str, names: Iterable[str], rows: Iterable[Sequence[str]] = (), **options: Any) -> Table:
    """A table whose first column is aligned left and whose others are aligned right."""
    made = Table(title=title, **options)
    for i, name in enumerate(names):
        made.add_column(name, justify="right" if i else "left")
    for row in rows:
        made.add_row(*row)
    return made
