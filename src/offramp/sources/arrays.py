"""Arrays in npz files: which are inputs, labels and sets, read only as far as the file can hold them.

Nothing is unpickled. Sizes in headers are compared with the file's before memory is asked for.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.sources.image_folders import to_8_bits
from offramp.sources.labels import parse_labels
from offramp.sources.models import SourceModel
from offramp.sources.preprocessing import ImageInput
from offramp.sources.readings import Readings, Sample, grouped, named_file, reading
from offramp.sources.spec import Spec
from offramp.sources.splits import ALIASES, NAMES

Array = npt.NDArray[Any]

_SETS = sorted((*NAMES, *ALIASES), key=len, reverse=True)  # "validation" before "val"
_LABELS = ("y", "label", "labels", "target", "targets", "class")
_INPUTS = ("x", "image", "images", "input", "inputs", "data", "features")
_KEY = re.compile(
    rf"(?:(?P<before>{'|'.join(_SETS)})_?)?(?P<word>[^\W_]\w*?)(?:_(?P<after>{'|'.join(_SETS)}))?"
)
_MOST_RATIO = 1100  # deflate makes nothing smaller than a 1,032nd
_MAGIC = b"\x93NUMPY"


def read_arrays(spec: Spec, source: SourceModel, task: str, dtype: torch.dtype) -> Readings:
    """Read the arrays of ``npz:FILE``: x and y, or train_x, X_train, test_images, val_labels and so on.

    Arrays of other names are inputs that the model takes by these names. Images of 8 or 16 bits are prepared
    by the model's configuration, floating point is taken as it is. ``InputError``: no such file, no inputs,
    arrays of different lengths or of no numbers, or images that nobody can prepare.
    """
    path, images = named_file(spec), source.images
    found: dict[str, dict[str, Array]] = {}
    labels: dict[str, Array] = {}
    with reading(spec, path):
        for key, array in _members(spec, path):
            name, word = _meaning(key)
            if word in found.setdefault(name, {}) or (word == "y" and name in labels):
                what = "labels" if word == "y" else "inputs"
                raise spec.error(f"{path}: {key!r} is a second array of {what} of the same set; keep one")
            if word == "y":
                labels[name] = array
            else:
                found[name][word] = array
    notes: list[str] = []
    samples: list[tuple[str, str, Sample]] = []
    for name, arrays in found.items():
        _check_arrays(spec, name, arrays, labels.get(name), images)
        values = _labels(spec, name, labels.get(name), source, task, notes)
        together = values is None or not isinstance(values, list)
        for i in range(len(next(iter(arrays.values())))):
            label = None if values is None else values[i]
            samples.append((name, "all" if together else str(label), ((name, i), label)))
    pixels = all(array.dtype in (np.uint8, np.uint16) for each in found.values() for array in each.values())
    if any(array.dtype == np.uint16 for each in found.values() for array in each.values()) and pixels:
        notes.append("16-bit images, scaled to 8 bits per channel")
    described = images.described() if pixels and images is not None else {}
    return Readings(
        sets=grouped(found, samples),
        read=partial(_load_rows, found, images, dtype),
        prepared=pixels,
        inputs={"kind": "images" if described else "arrays", **described},
        notes=tuple(notes),
    )


def _members(spec: Spec, path: Path) -> Iterator[tuple[str, Array]]:
    """(name, array) of everything in the file; whatever is wrong with it is an error of some kind."""
    with path.open("rb") as stream:
        start = stream.read(len(_MAGIC))
    if start == _MAGIC:
        raise spec.error(f"{path} is a single array; save x and y with numpy.savez")
    if not zipfile.is_zipfile(path):
        raise spec.error(f"{path} cannot be read: it is no npz file; save x and y with numpy.savez")
    free = _memory()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            key, dot, ending = info.filename.rpartition(".")
            if not dot or ending != "npy":
                raise spec.error(f"{path}: {info.filename!r} is no array; expected files of numpy.savez only")
            if info.flag_bits & 1:
                raise spec.error(f"{path}: {info.filename!r} is encrypted; save it without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise spec.error(f"{path}: {info.filename!r} is compressed in an unknown way; save it again")
            free -= info.file_size
            if info.file_size > _MOST_RATIO * (info.compress_size + 1) or free < 0:
                raise spec.error(
                    f"{path}: {info.filename!r} would be {info.file_size / 1e9:,.1f} GB, which it cannot "
                    "hold or memory has no room for; give fewer samples"
                )
            with archive.open(info) as member:
                yield key, _array(member, info.file_size)


def _memory() -> int:
    """Bytes of memory that the machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such thing on this system
        return 2**63


def _array(member: IO[bytes], size: int) -> Array:
    """An array as NumPy writes it, in the machine's byte order; ``ValueError``: its header is not true."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is not known here")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: nothing in a file is run; save numbers or text")
    needed, there = math.prod(shape) * dtype.itemsize, size - member.tell()
    if min(shape, default=0) < 0 or needed != there:
        raise ValueError(f"an array of shape {shape} and {dtype} needs {needed:,} bytes, {there:,} are there")
    if not dtype.itemsize:
        raise ValueError(f"its items, {dtype}, have no size; save numbers or text")
    array = np.frombuffer(member.read(), dtype).reshape(shape, order="F" if fortran else "C")
    return plain_numbers(array)


def plain_numbers(array: Array) -> Array:
    """An array with numbers that PyTorch knows: in the machine's byte order, at most double precision."""
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _meaning(key: str) -> tuple[str, str]:
    """(set, word) of an array's name; the word is "x" for the first input and "y" for labels."""
    match = _KEY.fullmatch(key.lower())
    if match is None:
        return "", key
    word = match["word"]
    known = "y" if word in _LABELS else "x" if word in _INPUTS else None
    if known is None and match["before"] and not key.lower().startswith(match["before"] + "_"):
        return "", key  # "trainable" is a name of its own
    name = match["before"] or match["after"] or ""
    if known is not None:
        return name, known
    start = len(match["before"]) + 1 if match["before"] else 0
    return name, key[start : start + len(word)]


def _check_arrays(
    spec: Spec, name: str, arrays: Mapping[str, Array], labels: Array | None, images: ImageInput | None
) -> None:
    where = f"set {name!r}: " if name else ""
    if not arrays:
        raise spec.error(
            f"{where}no inputs; expected an array x, or train_x and so on; X_train, X_test, val_images too"
        )
    measured = [*arrays.values(), *([] if labels is None else [labels])]
    sizes = {len(array) if array.ndim else -1 for array in measured}
    if len(sizes) != 1 or -1 in sizes:
        raise spec.error(f"{where}expected arrays of one length, got {sorted(sizes)} rows")
    hollow = next((array.shape for array in measured if not array.size), None)
    if hollow is not None:
        raise spec.error(f"{where}expected samples, got an array of shape {hollow}, which holds nothing")
    for word, array in arrays.items():
        _check_input(spec, f"{where}{word}", array, images)


def _check_input(spec: Spec, where: str, array: Array, images: ImageInput | None) -> None:
    if array.dtype.kind not in "fiub":
        raise spec.error(f"{where}: expected numbers, got {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > 2**63 - 1:
        raise spec.error(f"{where}: expected numbers below 2**63, got {array.max()}")
    pixels = array.dtype == np.uint8 or (array.dtype == np.uint16 and (array.ndim > 2 or images is not None))
    if pixels and images is None:
        raise spec.error(
            f"{where} is {array.dtype}, and the model does not say how it takes images; save floating "
            "point as the model takes it"
        )
    if pixels and array.dtype == np.uint16 and array.size and array.max() <= 255:
        raise spec.error(
            f"{where} is uint16 with values up to {array.max()}: nearly black as 16-bit images; save "
            "images of 8 bits as uint8"
        )


def _labels(
    spec: Spec, name: str, array: Array | None, source: SourceModel, task: str, notes: list[str]
) -> Any:
    """Labels as a list of classes, or as an array of numbers to be predicted; None where there are none."""
    if array is None:
        return None
    where = f"DATA {spec.text}: {f'set {name!r}: ' if name else ''}labels"
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "fiubSU":
        raise spec.error(f"{where}: expected numbers or text, got {array.dtype}")
    if task == "classification" and _is_one_hot(array):
        array = array.argmax(1)
        notes.append("labels are one-hot rows, taken as classes")
    if array.dtype.kind in "SU":
        if array.ndim != 1:
            raise spec.error(f"{where}: expected one name for each sample, got shape {array.shape}")
        with reading(spec, named_file(spec)):
            text = [each.decode("utf-8") if isinstance(each, bytes) else str(each) for each in array.tolist()]
        return parse_labels([each.strip() for each in text], where, task == "regression", source.classes)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise spec.error(f"{where}: expected finite numbers, got NaN or infinity; leave those samples out")
    if array.ndim > 1 or task == "regression":
        return array
    if array.dtype.kind == "f" and task == "classification":
        return parse_labels([repr(each) for each in array.tolist()], where, False, {})
    return array if array.dtype.kind == "f" else [int(each) for each in array.tolist()]


def _is_one_hot(array: Array) -> bool:
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind in "SU" or not len(array):
        return False
    return bool(((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all())


def _load_rows(
    arrays: Mapping[str, Mapping[str, Array]],
    images: ImageInput | None,
    dtype: torch.dtype,
    rows: Sequence[tuple[str, int]],
) -> Any:
    """B rows (set, index) of arrays by set and name -> a tensor (B, ...) of "x" alone, or several by name."""

    def value(row: Any) -> Tensor:
        if images is not None and row.dtype in (np.uint8, np.uint16):
            return images.of_array(to_8_bits(row) if row.dtype == np.uint16 else row).to(dtype)
        if row.dtype.kind == "f":
            return torch.from_numpy(np.array(row)).to(dtype)
        return torch.from_numpy(np.array(row).astype(np.int64))

    names = arrays[rows[0][0]]
    values = {name: torch.stack([value(arrays[part][name][i]) for part, i in rows]) for name in names}
    if set(values) != {"x"}:
        return values
    return {images.key: values["x"]} if images and images.key else values["x"]
