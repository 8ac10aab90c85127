"""Data named on the command line, prepared as the model's own configuration says.

imagefolder:DIR   a folder for each class, or such folders in train/, val/, test/ ...
npz:FILE          arrays x and y, or train_x, train_y, val_x ...
csv:FILE          a column of texts and one of labels; or a folder with train.csv, val.csv, test.csv

A reader finds out what there is, cheaply, and gives a function that reads a batch of it when it is needed.
The order of samples is fixed by the seed: a killed run finds the same batches again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from offramp.errors import InputError
from offramp.graph import evaluating
from offramp.sources.arrays import read_arrays
from offramp.sources.image_folders import read_image_folder
from offramp.sources.labels import class_numbers, how_numbered
from offramp.sources.models import SourceModel, with_tokenizer
from offramp.sources.readings import Readings, Sample, Sets
from offramp.sources.spec import Scheme, Spec
from offramp.sources.splits import NAMES, Guarded, Splits, limited, three_sets
from offramp.sources.summary import DataSummary, DataWarning
from offramp.sources.tables import read_tables
from offramp.tasks import Task, select_output

_COMMON = ("classes", "batch", "seed", "limit", "workers")
DATA_SCHEMES = (
    Scheme("imagefolder", "DIR", ("transform", *_COMMON)),
    Scheme("npz", "FILE", _COMMON),
    Scheme(
        "csv",
        "FILE",
        ("text", "pair", "label", "split", "delimiter", "quotes", "max_length", "tokenizer", *_COMMON),
    ),
)


def load_samples(
    spec: Spec,
    source: SourceModel,
    task: Task,
    output: str | int | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Splits:
    """Find the samples that a specification names, and divide them; a loader reads files as it comes to them.

    ``output`` is the key of the answer in what the model returns, ``transform`` (PIL image -> (C, H, W)) is
    taken instead of the model's own. What is left out is a ``DataWarning``. ``InputError``: there are no
    samples, they do not fit the model, or their classes are not the model's.
    """
    where = f"DATA {spec.text}"
    if "classes" in spec.options:
        source = replace(source, classes=_named_classes(spec))
    found = _read(spec, source, task, transform)
    for note in found.warned:
        warnings.warn(f"{where}: {note}", DataWarning, stacklevel=2)
    splits = three_sets(found.sets, spec.integer("seed", 0, least=0), where)
    for name, most in _limits(spec).items():
        if name in splits:
            splits[name] = limited(splits[name], lambda sample: str(sample[1]), most)
    example = to_device_of(source.model, _first_inputs(spec, found, splits["train"][:2]))
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
        summary=_summary(spec, source, found, splits, number),
        label_hint=found.label_hint,
    )


def _first_inputs(spec: Spec, found: Readings, samples: Sequence[Sample]) -> Any:
    """The first samples as inputs; whatever fails is an ``InputError``: transforms are the user's."""
    try:
        return found.read([what for what, _ in samples])
    except InputError as error:
        raise spec.error(f"the first samples: {error}") from error
    except Exception as error:
        raise spec.error(f"preparing the first samples fails: {type(error).__name__}: {error}") from error


def _summary(
    spec: Spec,
    source: SourceModel,
    found: Readings,
    splits: Mapping[str, Sequence[Sample]],
    number: Mapping[str, int],
) -> DataSummary:
    """What was found; the transform's name is one of the inputs, where the data name one."""
    inputs = dict(found.inputs)
    if spec.scheme == "imagefolder":
        inputs["transform"] = spec.options.get("transform")
    taken = set(number.values())
    others = {name: index for name, index in source.classes.items() if index not in taken}
    return DataSummary(
        model=source.spec,
        data=spec.text,
        inputs=inputs,
        splits={name: len(samples) for name, samples in splits.items()},
        classes={**number, **{name: index for name, index in others.items() if name not in number}},
        matched=how_numbered(number, source.classes) if number else "",
        notes=found.notes,
    )


def _named_classes(spec: Spec) -> dict[str, int]:
    """classes=NAME/NAME/...: names of the model's outputs, in their order."""
    names = [name.strip() for name in spec.options["classes"].split("/")]
    if not all(names) or len(set(names)) != len(names):
        raise spec.error(
            f"classes: expected distinct names with '/' between, got {spec.options['classes']!r}"
        )
    return {name: i for i, name in enumerate(names)}


def _read(spec: Spec, source: SourceModel, task: Task, transform: Callable[[Any], Tensor] | None) -> Readings:
    dtype = next((p.dtype for p in source.model.parameters() if p.dtype.is_floating_point), torch.float32)
    if spec.scheme == "imagefolder":
        return read_image_folder(spec, source.images, transform, dtype)
    if spec.scheme == "npz":
        return read_arrays(spec, source, task.name, dtype)
    if "tokenizer" in spec.options:
        source = with_tokenizer(spec, source)
    if source.text is None:
        raise spec.error(
            source.fault
            or "the model does not say how it takes text; name a tokenizer (tokenizer=DIR), or give "
            "tokenized arrays (npz:FILE) or loaders (package.module:callable)"
        )
    return read_tables(spec, source, source.text, floating=task.name == "regression")


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
        last = any(
            len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3) for shape in shapes.values()
        )
        hint = "; channels come last: save (N, C, H, W), x.transpose(0, 3, 1, 2)" if last else ""
        raise spec.error(
            f"calling the model with the first samples, {shapes}, fails: {type(error).__name__}: "
            f"{error}{hint}"
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
    named = {label for label in labels if isinstance(label, str)}
    if named:
        if not all(isinstance(label, str) for label in labels):
            raise spec.error("labels are names in one set and numbers in another; give the same in all")
        return class_numbers(named, source.classes, outputs, f"DATA {spec.text}"), None
    if not all(isinstance(label, int) for label in labels):
        return {}, None
    low, high = min(labels), max(labels)
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
