"""Data named on the command line, prepared as the model's own configuration says.

imagefolder:DIR   a folder for each class, or such folders in train/, val/, test/ ...
npz:FILE          arrays x and y, or train_x, train_y, val_x ...
csv:FILE          a column of texts and one of labels; or a folder with train.csv, val.csv, test.csv

A reader finds out what there is, cheaply, and gives a function that reads a batch of it when it is needed.
The order of samples is fixed by the seed: a killed run finds the same batches again.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from offramp.errors import InputError
from offramp.graph import evaluating
from offramp.sources.models import SourceModel, with_tokenizer
from offramp.sources.preprocessing import ImageInput, TextInput
from offramp.sources.spec import Scheme, Spec, near, require
from offramp.sources.splits import ALIASES, NAMES, Guarded, Splits, class_numbers, limited, three_sets
from offramp.tasks import Task, select_output

_COMMON = ("batch", "seed", "limit", "workers")
DATA_SCHEMES = (
    Scheme("imagefolder", "DIR", ("transform", *_COMMON)),
    Scheme("npz", "FILE", _COMMON),
    Scheme("csv", "FILE", ("text", "label", "split", "max_length", "tokenizer", *_COMMON)),
)

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


def load_samples(
    spec: Spec,
    source: SourceModel,
    task: Task,
    output: str | int | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Splits:
    """Find the samples that a specification names, and divide them; a loader reads files as it comes to them.

    ``output`` is the key of the answer in what the model returns, ``transform`` (PIL image -> (C, H, W)) is
    taken instead of the model's own. ``InputError``: there are no samples, they do not fit the model, or
    their classes are not the model's.
    """
    where = f"DATA {spec.text}"
    found = _read(spec, source, task, transform)
    splits = three_sets(found.sets, spec.integer("seed", 0, least=0), where)
    for name, most in _limits(spec).items():
        if name in splits:
            splits[name] = limited(splits[name], lambda sample: str(sample[1]), most)
    example = to_device_of(source.model, found.read([what for what, _ in splits["train"][:2]]))
    outputs = _outputs(spec, source.model, example, output, task)
    number, classes = _numbering(spec, found.sets, source, outputs)

    def loader(samples: list[Sample]) -> DataLoader[Any]:
        return DataLoader(
            samples,  # type: ignore[arg-type]  # a list is as good as a Dataset
            batch_size=spec.integer("batch", 64),
            num_workers=spec.integer("workers", 0, least=0),
            collate_fn=partial(_batch, found.read, number),
            generator=torch.Generator(),  # else it draws from the global random state
        )

    check = None if found.prepared else source.check
    loaders = {name: Guarded(f"{where}: {name}", loader(samples), check) for name, samples in splits.items()}
    return Splits(
        train=loaders["train"],
        search=loaders["search"],
        report=loaders.get("report"),
        example=example,
        classes=classes,
    )


def _read(spec: Spec, source: SourceModel, task: Task, transform: Callable[[Any], Tensor] | None) -> Readings:
    dtype = next((p.dtype for p in source.model.parameters() if p.dtype.is_floating_point), torch.float32)
    if spec.scheme == "imagefolder":
        return read_image_folder(spec, source.images, transform, dtype)
    if spec.scheme == "npz":
        return read_arrays(spec, source.images, dtype)
    if "tokenizer" in spec.options:
        source = with_tokenizer(spec, source)
    if source.text is None:
        raise spec.error(
            source.fault
            or "the model does not say how it takes text; name a tokenizer (tokenizer=DIR), or give "
            "tokenized arrays (npz:FILE) or loaders (package.module:callable)"
        )
    return read_tables(spec, source.text, floating=task.name == "regression")


def _limits(spec: Spec) -> dict[str, int]:
    """limit=N for all splits, or limit=TRAIN/SEARCH/REPORT."""
    most = spec.numbers("limit")
    if most is None:
        return {}
    if len(most) not in (1, 3) or any(value < 1 or value != int(value) for value in most):
        raise spec.error(
            f"limit: expected a whole number above 0, or three for train/search/report, got "
            f"{spec.options['limit']!r}"
        )
    return {name: int(most[i % len(most)]) for i, name in enumerate(NAMES)}


def _outputs(spec: Spec, model: nn.Module, example: Any, output: str | int | None, task: Task) -> int:
    """K, by running the model once; ``InputError`` where it cannot be called with these samples."""
    named = dict(example) if isinstance(example, Mapping) else {"inputs": example}
    try:
        with evaluating(model):
            answer = model(**example) if isinstance(example, Mapping) else model(example)
    except Exception as error:
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        raise spec.error(
            f"calling the model with the first samples, {shapes}, fails: {type(error).__name__}: {error}"
        ) from error
    return int(select_output(answer, output, per_token=task.per_token).shape[-1])


def to_device_of(model: nn.Module, example: Any) -> Any:
    """Example inputs on the device of a model."""
    if isinstance(example, Mapping):
        return {name: to_device_of(model, value) for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(to_device_of(model, value) for value in example)
    parameter = next(model.parameters(), None)
    return example.to(parameter.device) if parameter is not None and isinstance(example, Tensor) else example


def _numbering(
    spec: Spec, sets: Sets, source: SourceModel, outputs: int
) -> tuple[Mapping[str, int], int | None]:
    """(name of a class -> its number, how many classes there are or None); numbers stay what they are."""
    samples = (sample for groups in sets.values() for group in groups.values() for sample in group)
    labels = [label for _, label in samples if label is not None]
    if not labels:
        return {}, None
    if all(isinstance(label, str) for label in labels):
        return class_numbers(labels, source.classes, outputs, f"DATA {spec.text}"), None
    first = torch.as_tensor(labels[0])
    if first.ndim or first.dtype.is_floating_point:
        return {}, None
    low, high = int(min(labels)), int(max(labels))
    if low < 0 or high >= outputs:
        raise spec.error(
            f"expected labels 0 to {outputs - 1} because the model has {outputs} outputs, "
            f"got {low} to {high}; map the labels, or use the model trained for these classes"
        )
    return {}, high + 1


def _batch(read: Callable[[Sequence[Any]], Any], number: Mapping[str, int], samples: Sequence[Sample]) -> Any:
    """Samples to a batch: (inputs, labels), or inputs alone."""
    inputs, labels = read([what for what, _ in samples]), [label for _, label in samples]
    if labels[0] is None:
        return inputs
    numbers = [number[label] if isinstance(label, str) else label for label in labels]
    stacked = torch.stack([torch.as_tensor(each) for each in numbers])
    if stacked.dtype == torch.bool:
        return inputs, stacked
    return inputs, stacked.float() if stacked.dtype.is_floating_point else stacked.long()


@dataclass(frozen=True)
class Readings:
    """All samples that a reader found, and how to read some of them as the inputs that the model takes.

    ``prepared``: whether ``read`` does all that the model's configuration asks for.
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


def _file(spec: Spec) -> Path:
    path = Path(spec.name).expanduser()
    if not path.is_file():
        raise spec.error(f"no file {path}")
    return path


def _grouped(names: Iterable[str], samples: Iterable[tuple[str, str, Sample]]) -> Sets:
    """(set, group, sample) to sets of groups; all ``names`` are sets, also those without samples."""
    sets: dict[str, dict[str, list[Sample]]] = {name: {} for name in names}
    for name, group, sample in samples:
        sets[name].setdefault(group, []).append(sample)
    return sets


def _load_images(
    transform: Callable[[Any], Tensor], mode: str, key: str | None, dtype: torch.dtype, paths: Sequence[str]
) -> Any:
    """Files of B images -> (B, C, H, W), by the name ``key`` if there is one; ``mode`` is PIL's.

    ``InputError`` where one cannot be read, or comes out in another shape.
    """
    image = require("PIL.Image", "torchvision", "reading images")
    prepared = []
    for path in paths:
        try:
            with image.open(path) as picture:
                prepared.append(transform(picture.convert(mode)))
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
            raise InputError(f"{path} cannot be read as an image: {error}") from error
    shapes = {tuple(values.shape) for values in prepared}
    if len(shapes) > 1:
        raise InputError(f"images: expected one shape after the transform, got {sorted(shapes)}; crop them")
    values = torch.stack(prepared)
    values = values.to(dtype) if values.dtype.is_floating_point else values
    return values if key is None else {key: values}


def read_image_folder(
    spec: Spec, images: ImageInput | None, transform: Callable[[Any], Tensor] | None, dtype: torch.dtype
) -> Readings:
    """Find the images of ``imagefolder:DIR``; none is opened.

    ``InputError``: no such folder, no class folders, no images, or nobody knows how the model takes them.
    """
    root = Path(spec.name).expanduser()
    if not root.is_dir():
        raise spec.error(f"no folder {root}")
    chosen = transform or (images.transform if images else None)
    if chosen is None:
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
    mode, key = ("RGB", None) if images is None else (images.mode, images.key)
    read = partial(_load_images, chosen, mode, key, dtype)
    return Readings(found, read, prepared=transform is None)


def _classes(folder: Path) -> dict[str, list[Sample]]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {
        entry.name: [
            (str(path), entry.name) for path in sorted(entry.rglob("*")) if path.suffix.lower() in _IMAGES
        ]
        for entry in classes
    }


def read_tables(spec: Spec, text: TextInput, floating: bool) -> Readings:
    """Read the rows of ``csv:FILE``, or of train.csv, val.csv ... in ``csv:DIR``, tokenized to one length.

    The options text, label and split (with "train", "val" ...) name columns. Labels are numbers to be
    predicted (``floating``) or classes. ``InputError``: no such file or column, or a row that is too short.
    """
    path = Path(spec.name).expanduser()
    if path.is_dir():
        files = {name: path / f"{name}.csv" for name in _SETS if (path / f"{name}.csv").is_file()}
        if not files:
            raise spec.error(f"no train.csv in {path}")
    else:
        files = {"": _file(spec)}
    length = spec.integer("max_length", min(128, text.longest))
    if length > text.longest:
        raise spec.error(f"max_length: the model takes at most {text.longest} tokens, got {length}")
    rows: dict[str, list[tuple[str, str | None]]] = {}
    for name, file in files.items():
        with _reading(spec, file):
            for split, content, label in _rows(spec, file):
                rows.setdefault(split or name, []).append((content or "", label))
    found = [(name, content, label) for name, part in rows.items() for content, label in part]
    labels = _parsed([label for _, _, label in found], floating)
    samples = (
        (name, "all" if floating else str(label), (content, value))
        for (name, content, label), value in zip(found, labels, strict=True)
    )
    return Readings(_grouped(rows, samples), partial(text.encode, length=length), prepared=True)


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
            return [None if label is None else kind(label) for label in labels]
        except ValueError:
            continue
    return list(labels)


def _load_rows(
    arrays: Mapping[str, Mapping[str, Array]],
    images: ImageInput | None,
    dtype: torch.dtype,
    rows: Sequence[tuple[str, int]],
) -> Any:
    """B rows (set, index) of arrays by set and name -> a tensor (B, ...) of "x" alone, or several by name."""

    def value(row: Any) -> Tensor:
        if row.dtype == np.uint8 and images is not None:
            return images.of_array(row).to(dtype)
        tensor = torch.from_numpy(np.array(row))
        return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor.long()

    names = arrays[rows[0][0]]
    values = {name: torch.stack([value(arrays[part][name][i]) for part, i in rows]) for name in names}
    if set(values) != {"x"}:
        return values
    return {images.key: values["x"]} if images and images.key else values["x"]


def read_arrays(spec: Spec, images: ImageInput | None, dtype: torch.dtype) -> Readings:
    """Read the arrays of ``npz:FILE``: x and y, or train_x, x_train, test_images, val_labels and so on.

    Arrays of other names are inputs that the model takes by these names. Images of uint8 are prepared by the
    model's configuration, floating point is taken as it is. ``InputError``: no such file, no inputs, arrays
    of different lengths, or uint8 that nobody can prepare.
    """
    path = _file(spec)
    found: dict[str, dict[str, Array]] = {}
    with _reading(spec, path):
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise spec.error(f"{path} is a single array; save x and y with numpy.savez")
        with archive:
            for key in archive.files:
                name, word = _meaning(key)
                found.setdefault(name, {})[word] = archive[key]
    samples: list[tuple[str, str, Sample]] = []
    for name, arrays in found.items():
        labels = arrays.pop("y", None)
        if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        _check_arrays(spec, name, arrays, labels, images)
        together = labels is None or labels.ndim > 1 or labels.dtype.kind == "f"
        for i in range(len(next(iter(arrays.values())))):
            label = None if labels is None else labels[i]
            samples.append((name, "all" if together else str(label), ((name, i), label)))
    bytes_ = all(array.dtype == np.uint8 for arrays in found.values() for array in arrays.values())
    return Readings(_grouped(found, samples), partial(_load_rows, found, images, dtype), prepared=bytes_)


def _meaning(key: str) -> tuple[str, str]:
    """(set, word) of an array's name; the word is "x" for the first input and "y" for labels."""
    match = _KEY.fullmatch(key)
    if match is None:
        return "", key
    word = match["word"]
    word = "y" if word in _LABELS else "x" if word in _INPUTS else word
    return match["before"] or match["after"] or "", word


def _check_arrays(
    spec: Spec, name: str, arrays: Mapping[str, Array], labels: Array | None, images: ImageInput | None
) -> None:
    where = f"set {name!r}: " if name else ""
    if not arrays:
        raise spec.error(f"{where}no inputs; expected an array x, or train_x and so on")
    measured = [*arrays.values(), *([] if labels is None else [labels])]
    sizes = {len(array) if array.ndim else -1 for array in measured}
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
