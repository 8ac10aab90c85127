"""Reading samples: a folder of images, a file of arrays, a table of texts.

A reader finds out what there is, cheaply, and gives a function that reads a batch of it when it is needed.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.sources.preprocessing import ImageInput, TextInput
from offramp.sources.spec import Spec, near, require
from offramp.sources.splits import ALIASES, NAMES

Sample = tuple[Any, Any]
"""(what to read, label): the name of a class, a number, a row of numbers, or None."""

Sets = Mapping[str, Mapping[str, Sequence[Sample]]]
"""Name of a set ("" for the only one) -> name of a group to be divided evenly -> samples."""

Array = npt.NDArray[Any]

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}
_SETS = (*NAMES, *ALIASES)
_LABELS = ("y", "label", "labels", "target", "targets")
_INPUTS = ("x", "image", "images", "input", "inputs", "data")
_KEY = re.compile(rf"(?:(?P<before>{'|'.join(_SETS)})_)?(?P<word>\w+?)(?:_(?P<after>{'|'.join(_SETS)}))?")


@dataclass(frozen=True)
class Readings:
    """What a reader found.

    Args:
        sets: all samples.
        read: (what to read of B samples) -> inputs as the model takes them.
        prepared: whether ``read`` does all that the model's configuration asks for.
    """

    sets: Sets
    read: Callable[[Sequence[Any]], Any]
    prepared: bool


@contextmanager
def _reading(spec: Spec, path: Path) -> Iterator[None]:
    """What the system or a format says about a file, with its name."""
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        said = getattr(error, "strerror", None) or str(error)
        raise spec.error(f"{path} cannot be read: {said}") from error


@dataclass(frozen=True)
class ImageReader:
    """Reads image files.

    Args:
        transform: PIL image -> (C, H, W).
        mode: of PIL.
        key: name of the keyword the model takes images by, or None.
        dtype: of the model.
    """

    transform: Callable[[Any], Tensor]
    mode: str
    key: str | None
    dtype: torch.dtype

    def __call__(self, paths: Sequence[str]) -> Any:
        """Files of B images -> (B, C, H, W).

        Raises:
            InputError: one cannot be read, or comes out in another shape.
        """
        image = require("PIL.Image", "torchvision", "reading images")
        prepared = []
        for path in paths:
            try:
                with image.open(path) as picture:
                    prepared.append(self.transform(picture.convert(self.mode)))
            except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
                raise InputError(f"{path} cannot be read as an image: {error}") from error
        shapes = {tuple(values.shape) for values in prepared}
        if len(shapes) > 1:
            raise InputError(
                f"images: expected one shape after the transform, got {sorted(shapes)}; crop them"
            )
        values = torch.stack(prepared)
        values = values.to(self.dtype) if values.dtype.is_floating_point else values
        return values if self.key is None else {self.key: values}


def read_image_folder(
    spec: Spec, images: ImageInput | None, transform: Callable[[Any], Tensor] | None, dtype: torch.dtype
) -> Readings:
    """Find the images of ``imagefolder:DIR``; none is opened.

    Raises:
        InputError: no such folder, no class folders, no images, or nobody knows how the model takes them.
    """
    root = Path(spec.name).expanduser()
    if not root.is_dir():
        raise spec.error(f"no folder {root}")
    if transform is None and images is None:
        raise spec.error(
            "the model does not say how it takes images; name a function from a PIL image to a tensor "
            f"(C, H, W): imagefolder:{spec.name},transform=package.module:callable"
        )
    with _reading(spec, root):
        folders = {entry.name: entry for entry in sorted(root.iterdir()) if entry.is_dir()}
        if "train" in folders:
            found = {name: _classes(folder) for name, folder in folders.items() if name in _SETS}
        else:
            found = {"": _classes(root)}
    for name, classes in found.items():
        if not any(classes.values()):
            kinds = " ".join(sorted(_IMAGES))
            raise spec.error(
                f"no images in {root / name}; expected a folder for each class with images in it ({kinds})"
            )
    if images is None:
        assert transform is not None
        reader = ImageReader(transform, "RGB", None, dtype)
    else:
        reader = ImageReader(transform or images.transform, images.mode, images.key, dtype)
    return Readings(found, reader, prepared=transform is None)


def _classes(folder: Path) -> dict[str, list[Sample]]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {
        entry.name: [
            (str(path), entry.name) for path in sorted(entry.rglob("*")) if path.suffix.lower() in _IMAGES
        ]
        for entry in classes
    }


@dataclass(frozen=True)
class TextReader:
    """Tokenizes texts, all to one length."""

    text: TextInput
    length: int

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """B texts -> tensors (B, length)."""
        return self.text.encode(texts, self.length)


def read_tables(spec: Spec, text: TextInput, floating: bool) -> Readings:
    """Read the rows of ``csv:FILE``, or of train.csv, val.csv ... in ``csv:DIR``.

    Args:
        spec: options text, label (columns), split (a column with "train", "val" ...), max_length.
        text: how the model takes texts.
        floating: whether labels are numbers to be predicted, not classes.

    Raises:
        InputError: no such file or column, or a row that is too short.
    """
    path = Path(spec.name).expanduser()
    files = {"": path}
    if path.is_dir():
        files = {name: path / f"{name}.csv" for name in _SETS if (path / f"{name}.csv").is_file()}
        if not files:
            raise spec.error(f"no train.csv in {path}")
    elif not path.is_file():
        raise spec.error(f"no file {path}")
    length = spec.number_of("max_length", min(128, text.longest))
    if length > text.longest:
        raise spec.error(f"max_length: the model takes at most {text.longest} tokens, got {length}")
    rows: dict[str, list[tuple[str, str | None]]] = {}
    for name, file in files.items():
        with _reading(spec, file):
            for split, *row in _rows(spec, file):
                rows.setdefault(split or name, []).append((row[0] or "", row[1]))
    labels = _parsed([label for part in rows.values() for _, label in part], floating)
    sets: dict[str, dict[str, list[Sample]]] = {}
    given = iter(labels)
    for name, part in rows.items():
        sets[name] = {}
        for content, label in part:
            group = "all" if floating else str(label)
            sets[name].setdefault(group, []).append((content, next(given)))
    return Readings(sets, TextReader(text, length), prepared=True)


def _rows(spec: Spec, file: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """(set, text, label) of every row."""
    allowed = csv.field_size_limit(2**31 - 1)  # a mail is longer than the module's default
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
            columns = list(table.fieldnames or ())
            text, label, split = (_column(spec, file, columns, name) for name in ("text", "label", "split"))
            assert text is not None
            for row in table:
                if any(row[name] is None for name in (text, label, split) if name):
                    raise spec.error(f"{file}, line {table.line_num}: expected {len(columns)} columns")
                yield row[split] if split else "", row[text], row[label] if label else None
    finally:
        csv.field_size_limit(allowed)


def _column(spec: Spec, file: Path, columns: Sequence[str], role: str) -> str | None:
    """The column for a role; one called like it need not be named."""
    wanted = spec.options.get(role, role)
    if wanted in columns:
        return None if role == "split" and role not in spec.options else wanted
    if role in spec.options or role == "text":
        raise spec.error(
            f"{file} has no column {wanted!r}{near(wanted, columns)}; it has {', '.join(columns) or 'none'}. "
            f"Say {role}=COLUMN"
        )
    return None


def _parsed(labels: Sequence[str | None], floating: bool) -> Sequence[Any]:
    """Labels as whole numbers or numbers where all are, else as names of classes."""
    for kind in (float,) if floating else (int, float):
        try:
            return [kind(label) for label in labels if label is not None] or list(labels)
        except ValueError:
            continue
    return list(labels)


@dataclass(frozen=True)
class ArrayReader:
    """Reads rows of arrays: (set, row) -> inputs.

    Args:
        arrays: set -> name of an input ("x" for the first argument) -> array (N, ...).
        images: how the model takes images, where it does.
        dtype: of the model.
    """

    arrays: Mapping[str, Mapping[str, Array]]
    images: ImageInput | None
    dtype: torch.dtype

    def __call__(self, rows: Sequence[tuple[str, int]]) -> Any:
        """B rows -> a tensor (B, ...), or several by name."""
        names = self.arrays[rows[0][0]]
        values = {
            name: torch.stack([self._value(self.arrays[part][name][i]) for part, i in rows]) for name in names
        }
        if set(values) != {"x"}:
            return values
        key = self.images.key if self.images else None
        return values["x"] if key is None else {key: values["x"]}

    def _value(self, row: Any) -> Tensor:
        if row.dtype == np.uint8 and self.images is not None:
            return self.images.of_array(row).to(self.dtype)
        value = torch.from_numpy(np.array(row))
        return value.to(self.dtype) if value.dtype.is_floating_point else value.long()


def read_arrays(spec: Spec, images: ImageInput | None, dtype: torch.dtype) -> Readings:
    """Read the arrays of ``npz:FILE``: x and y, or train_x, x_train, test_images, val_labels and so on.

    Arrays of other names are inputs that the model takes by these names. Images of uint8 are prepared by the
    model's configuration, floating point is taken as it is.

    Raises:
        InputError: no such file, no inputs, arrays of different lengths, or uint8 that nobody can prepare.
    """
    path = Path(spec.name).expanduser()
    if not path.is_file():
        raise spec.error(f"no file {path}")
    found: dict[str, dict[str, Array]] = {}
    with _reading(spec, path):
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise spec.error(f"{path} is a single array; save x and y with numpy.savez")
        with archive:
            for key in archive.files:
                name, word = _meaning(key)
                found.setdefault(name, {})[word] = archive[key]
    labels = {name: _labels(arrays.pop("y", None)) for name, arrays in found.items()}
    sets: dict[str, dict[str, list[Sample]]] = {}
    for name, arrays in found.items():
        _check_arrays(spec, name, arrays, labels[name], images)
        rows = labels[name]
        sets[name] = {}
        for i in range(len(next(iter(arrays.values())))):
            group = "all" if rows is None or rows.ndim > 1 or rows.dtype.kind == "f" else str(rows[i])
            sets[name].setdefault(group, []).append(((name, i), None if rows is None else rows[i]))
    bytes_ = all(array.dtype == np.uint8 for arrays in found.values() for array in arrays.values())
    return Readings(sets, ArrayReader(found, images, dtype), prepared=bytes_)


def _meaning(key: str) -> tuple[str, str]:
    """(set, word) of an array's name; the word is "x" for the first input and "y" for labels."""
    match = _KEY.fullmatch(key)
    if match is None:
        return "", key
    word = match["word"]
    word = "y" if word in _LABELS else "x" if word in _INPUTS else word
    return match["before"] or match["after"] or "", word


def _labels(labels: Array | None) -> Array | None:
    """(N,) where there is one label each."""
    return labels[:, 0] if labels is not None and labels.ndim == 2 and labels.shape[1] == 1 else labels


def _check_arrays(
    spec: Spec, name: str, arrays: Mapping[str, Array], labels: Array | None, images: ImageInput | None
) -> None:
    where = f"set {name!r}: " if name else ""
    if not arrays:
        raise spec.error(f"{where}no inputs; expected an array x, or train_x and so on")
    sizes = {
        len(array) if array.ndim else -1
        for array in (*arrays.values(), *([] if labels is None else [labels]))
    }
    if len(sizes) != 1 or -1 in sizes:
        raise spec.error(f"{where}expected arrays of one length, got {sorted(sizes)} rows")
    for word, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise spec.error(f"{where}{word}: expected numbers, got {array.dtype}")
        if array.dtype == np.uint8 and images is None:
            raise spec.error(
                f"{where}{word} is uint8, and the model does not say how it takes images; save floating "
                "point as the model takes it"
            )
