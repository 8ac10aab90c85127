"""Tables of texts: which column is what, and every row or an error with its line.

The delimiter is found in the first line, or given. In .tsv files quotes are ordinary characters, as the
format has it and as the data sets of GLUE are written; ``quotes=true`` reads those of spreadsheets.
"""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.sources.labels import parse_labels
from offramp.sources.models import SourceModel
from offramp.sources.preprocessing import TextInput
from offramp.sources.readings import Readings, grouped, left_out, named_file, place, reading, sets_among
from offramp.sources.spec import Spec, near

_TEXTS = ("text", "sentence", "review", "content", "comment", "message", "tweet")
_LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic")
_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_SNIFFED = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS = (  # the longer first: one begins with another
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip
_SUFFIXES = (".csv", ".tsv")
_END = "\x00\x00\x00"
_LONGEST = 2**31 - 1  # characters of a field: a mail is longer than the module's default


@dataclass(frozen=True)
class TableColumns:
    """Names and places of the columns that are used; ``texts`` are one, or two for a pair."""

    texts: tuple[str, ...]
    label: str | None
    split: str | None
    places: dict[str, int]
    count: int
    others: tuple[str, ...]


def read_tables(spec: Spec, source: SourceModel, text: TextInput, floating: bool) -> Readings:
    """Read the rows of ``csv:FILE``, or of train.csv, val.csv ... in ``csv:DIR``, tokenized to one length.

    The options text, pair, label and split (with "train", "val" ...) name columns. Labels are numbers to be
    predicted (``floating``) or classes. ``InputError``: no such file or column, or a row of another length.
    """
    files, unused = _files(spec)
    length = spec.integer("max_length", min(128, text.longest))
    if length > text.longest:
        raise spec.error(f"max_length: the model takes at most {text.longest} tokens, got {length}")
    rows: dict[str, list[tuple[Any, str | None]]] = {}
    used: TableColumns | None = None
    for name, file in files.items():
        with reading(spec, file):
            encoding = _encoding(file)
            delimiter = _delimiter(spec, file, encoding)
            for split, content, label, columns in _rows(spec, file, encoding, delimiter):
                used = used or columns
                rows.setdefault(split or name, []).append((content, label))
    if used is None:
        raise spec.error(f"no rows in {', '.join(map(str, files.values()))}")
    found = [(name, content, label) for name, part in rows.items() for content, label in part]
    where = f"DATA {spec.text}: column {used.label!r}"
    labels = parse_labels([label for _, _, label in found], where, floating, source.classes)
    samples = (
        (name, "all" if floating else str(label), (content, value))
        for (name, content, label), value in zip(found, labels, strict=True)
    )
    warned = left_out(unused, "file", "called neither train, val nor test")
    return Readings(
        sets=grouped(rows, samples),
        read=partial(text.encode, length=length),
        prepared=True,
        inputs={"kind": "texts", **text.described(), "max_length": length, "columns": list(used.texts)},
        notes=(*warned, *_notes(used)),
        warned=warned,
        label_hint=_label_hint(used),
    )


def _notes(used: TableColumns) -> tuple[str, ...]:
    label = "no labels" if used.label is None else f"labels in column {used.label!r}"
    texts = " and ".join(map(repr, used.texts))
    return (f"texts in column{'s' * (len(used.texts) > 1)} {texts}, {label}",)


def _label_hint(used: TableColumns) -> str:
    if used.label is not None or not used.others:
        return ""
    return f"the table also has {', '.join(used.others)}: say label=COLUMN, if one of these is it"


def _files(spec: Spec) -> tuple[dict[str, Path], list[str]]:
    """Tables by set ("" for the only one), and names of those that are not used."""
    path = place(spec)
    if not path.is_dir():
        return {"": named_file(spec)}, []
    with reading(spec, path):
        tables = sorted(
            entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES and entry.is_file()
        )
    sets = sets_among([entry.stem for entry in tables])
    if not sets:
        raise spec.error(f"no train.csv in {path}; name the file instead: csv:{path}/FILE")
    files = {entry.stem: entry for entry in tables if entry.stem in sets}
    return files, [entry.name for entry in tables if entry not in files.values()]


def _encoding(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(4)
    return next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")


def _is_quoted(spec: Spec, file: Path) -> bool:
    """Whether quotes hold a field together."""
    return spec.flag("quotes", file.suffix.lower() != ".tsv")


def _parsed(lines: Iterator[str], delimiter: str, quoted: bool) -> Any:
    if quoted:
        return csv.reader(lines, delimiter=delimiter)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _delimiter(spec: Spec, file: Path, encoding: str) -> str:
    """The one given, or tabs in .tsv, or what divides the first line into the most columns."""
    if "delimiter" in spec.options:
        given = _DELIMITERS.get(spec.options["delimiter"], spec.options["delimiter"])
        if len(given) != 1 or given in '\r\n"':
            raise spec.error(
                f"delimiter: expected one character, or {', '.join(_DELIMITERS)}; got "
                f"{spec.options['delimiter']!r}"
            )
        return given
    if file.suffix.lower() == ".tsv":
        return "\t"
    quoted = _is_quoted(spec, file)
    with file.open(encoding=encoding, newline="") as stream:
        first = next((line for line in stream if line.strip()), "")
    counts = {each: len(next(_parsed(iter([first]), each, quoted), [])) for each in _SNIFFED}
    return max(counts, key=counts.__getitem__)


def _lines(stream: Any) -> Iterator[str]:
    """Lines, and a last row of its own: where that is swallowed, a quote was not closed."""
    yield from stream
    yield _END


def _rows(
    spec: Spec, file: Path, encoding: str, delimiter: str
) -> Iterator[tuple[str, Any, str | None, TableColumns]]:
    """(set, text or a pair of texts, label, columns) of every row."""
    allowed = csv.field_size_limit(_LONGEST)
    quoted = _is_quoted(spec, file)
    try:
        with file.open(encoding=encoding, newline="") as stream:
            table = _parsed(_lines(stream), delimiter, quoted)
            row: list[str] = next((row for row in table if any(map(str.strip, row))), [])
            columns = _columns(spec, file, [] if row == [_END] else [name.strip() for name in row], delimiter)
            for row in table:
                if row and row[-1].endswith(_END) and row != [_END]:
                    raise spec.error(f'{file}: a quote (") is opened and never closed before its end')
                if row == [_END] or not any(map(str.strip, row)):
                    continue
                yield _row(spec, file, columns, row, table.line_num, quoted)
    finally:
        csv.field_size_limit(allowed)


def _row(
    spec: Spec, file: Path, columns: TableColumns, row: list[str], line: int, quoted: bool
) -> tuple[str, Any, str | None, TableColumns]:
    if len(row) != columns.count:
        hint = "put quotes around texts with delimiters in them" if quoted else "quotes=true if it has quotes"
        raise spec.error(f"{file}, line {line}: expected {columns.count} columns, got {len(row)}; {hint}")
    texts = tuple(row[columns.places[name]] for name in columns.texts)
    label = None if columns.label is None else row[columns.places[columns.label]].strip()
    if label == "":
        raise spec.error(f"{file}, line {line}: no label in column {columns.label!r}; leave the row out")
    split = "" if columns.split is None else row[columns.places[columns.split]].strip()
    if columns.split is not None and not split:
        raise spec.error(
            f"{file}, line {line}: column {columns.split!r} is empty; expected train, val or test"
        )
    return split, texts[0] if len(texts) == 1 else texts, label, columns


def _columns(spec: Spec, file: Path, names: list[str], delimiter: str) -> TableColumns:
    texts = _text_columns(spec, file, names, delimiter)
    label = _column(spec, file, names, "label", _LABELS, delimiter)
    split = _column(spec, file, names, "split", (), delimiter)
    used = [*texts, *(name for name in (label, split) if name is not None)]
    twice = [name for name, count in Counter(names).items() if count > 1 and name in used]
    if twice:
        raise spec.error(f"{file} has two columns {twice[0]!r}; rename one")
    return TableColumns(
        texts=texts,
        label=label,
        split=split,
        places={name: names.index(name) for name in used},
        count=len(names),
        others=tuple(name for name in names if name and name not in used),
    )


def _text_columns(spec: Spec, file: Path, names: list[str], delimiter: str) -> tuple[str, ...]:
    """One column, or two: ``text=a/b``, or ``text=a,pair=b``."""
    given = spec.options.get("text", "")
    if "/" in given and given not in names and "pair" not in spec.options:
        wanted = given.split("/")
        if len(wanted) != 2:
            raise spec.error(f"text: expected one column, or two with '/' between, got {given!r}")
        return tuple(_named(spec, file, names, "text", name, delimiter) for name in wanted)
    text = _column(spec, file, names, "text", _TEXTS, delimiter)
    if text is None:
        raise _unknown(spec, file, names, "text", "text", delimiter)
    if "pair" not in spec.options:
        return (text,)
    return text, _named(spec, file, names, "pair", spec.options["pair"], delimiter)


def _column(
    spec: Spec, file: Path, names: list[str], role: str, usual: Sequence[str], delimiter: str
) -> str | None:
    """The column for a role: the one named, else the one that is usually called so, in any case."""
    if role in spec.options:
        return _named(spec, file, names, role, spec.options[role], delimiter)
    found = [name for name in dict.fromkeys(names) if name.casefold() in usual]
    exact = [name for name in found if name.casefold() == role]
    if len(found) > 1 and len(exact) != 1:
        raise spec.error(f"{file}: columns {', '.join(found)} could all be the {role}; say {role}=COLUMN")
    return (exact or found or [None])[0]  # type: ignore[list-item]


def _named(spec: Spec, file: Path, names: list[str], role: str, wanted: str, delimiter: str) -> str:
    if wanted not in names:
        raise _unknown(spec, file, names, role, wanted, delimiter)
    return wanted


def _unknown(spec: Spec, file: Path, names: list[str], role: str, wanted: str, delimiter: str) -> InputError:
    hint = ""
    if len(names) == 1:
        mark = "a tab" if delimiter == "\t" else repr(delimiter)
        hint = f", and no delimiter was found in it but {mark}: say delimiter= (one character, or tab)"
    return spec.error(
        f"{file} has no column {wanted!r}{near(wanted, names)}; it has {', '.join(names) or 'none'}{hint}. "
        f"Say {role}=COLUMN"
    )
