"""A user's model and data, as they are named on the command line.

MODEL   timm:NAME, torchvision:NAME, hf:NAME_OR_DIR, or package.module:callable: () -> torch.nn.Module
DATA    imagefolder:DIR, npz:FILE, csv:FILE, or package.module:callable: () -> mapping with loaders "train",
        "search" and, to report on, "report"; disjoint samples. A loader yields (inputs, labels), or inputs
        alone; optional "example_inputs" where those are ambiguous
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.data import LABEL_KEYS
from offramp.errors import InputError
from offramp.sources.datasets import DATA_SCHEMES, load_samples, to_device_of
from offramp.sources.models import MODEL_SCHEMES, SourceModel, load_source, of_callable
from offramp.sources.preprocessing import Adapted, Transform
from offramp.sources.spec import Scheme, Spec, numbers_in, parse_spec, scheme_hint, split_options
from offramp.sources.splits import NAMES, Check, Guarded, Splits
from offramp.sources.summary import DataSummary, check_same_inputs
from offramp.tasks import Task, make_task

_PREPARING = ("transform", "max_length", "tokenizer", "classes")
"""Options of DATA that say how samples become inputs and labels: a run takes the build's."""


@dataclass(frozen=True)
class Project:
    """What a build needs: a trained model, samples as it takes them, a task, exits at the input by name."""

    model: nn.Module
    splits: Splits
    task: Task
    input_exits: Mapping[str, nn.Module | str] = field(default_factory=dict)


def load_project(
    model: str,
    data: str,
    *,
    task: str = "classification",
    output: str | int | None = None,
    input_exits: Sequence[str] = (),
    device: str | None = None,
) -> Project:
    """A MODEL, the DATA for it, a task as ``parse_task`` takes it, and exits as ``load_input_exits`` does.

    ``output`` is the key of the answer in what the model returns; ``device`` None leaves models where they
    are. ``InputError``: something is not there, or does not fit. ``MissingExtraError``: a library is not
    installed.
    """
    source = load_source_model(model, device)
    wanted = parse_task(task)  # after the user's module is imported: it may register one
    splits = load_splits(data, source, wanted, output)
    return Project(source.model, splits, wanted, load_input_exits(input_exits, source, device))


def parse_task(text: str) -> Task:
    """A task on the command line: ``name`` or ``name,option=number,...``, several numbers with "/" between.

    ``InputError``: an unknown name, or options that are no numbers or not the task's.
    """
    name, options = split_options(text)
    numbers = {option: numbers_in(f"--task {text}: {option}", value) for option, value in options.items()}
    return make_task(name, **{o: list(found) if len(found) > 1 else found[0] for o, found in numbers.items()})


def load_source_model(text: str, device: str | None = None, what: str = "MODEL") -> SourceModel:
    """A MODEL with what is known about its inputs, on a device; ``what`` opens messages.

    ``InputError``: it cannot be found, fails, or is something else than a module. ``MissingExtraError``: a
    library is not installed.
    """
    spec = parse_spec(what, text, MODEL_SCHEMES)
    if spec.scheme:
        source = load_source(spec)
    else:
        model = _called(spec, MODEL_SCHEMES)
        if not isinstance(model, nn.Module):
            raise spec.error(f"expected it to return a torch.nn.Module, got {type(model).__name__}")
        source = replace(of_callable(model), spec=text)
    if device is not None:
        try:
            source.model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise InputError(f"--device {device}: {str(error).splitlines()[0]}; try cpu") from error
    return source


def load_splits(
    data: str,
    source: SourceModel,
    task: Task,
    output: str | int | None = None,
    stored: DataSummary | None = None,
) -> Splits:
    """The DATA for a model; ``InputError`` where something is not there, or does not fit the model.

    ``stored`` is what a build found: its transform, tokenizer, length and classes are used where the DATA
    name none, and others are refused.
    """
    spec = parse_spec("DATA", data, DATA_SCHEMES)
    if not spec.scheme:
        splits = load_data(data, source.check)
        summary = None if splits.summary is None else replace(splits.summary, model=source.spec)
        return replace(splits, example=to_device_of(source.model, splits.example), summary=summary)
    if stored is not None:
        spec, source = with_stored(spec, source, stored)
    splits = load_samples(spec, source, task, output, load_transform(spec))
    if stored is not None and splits.summary is not None:
        check_same_inputs(f"DATA {data}", stored, splits.summary.inputs)
    return splits


def load_transform(spec: Spec) -> Transform | None:
    """The function that the option "transform" names, None without it."""
    name = spec.options.get("transform")
    if name is None:
        return None
    found: Transform = _found(parse_spec(f"{spec.what} {spec.text}: transform", name, ()), ())
    return found


def with_stored(spec: Spec, source: SourceModel, stored: DataSummary) -> tuple[Spec, SourceModel]:
    """DATA with the options of the build's that it does not have, and a model with the build's classes.

    ``InputError``: the build's transform is a function that is not in the working directory, so that nothing
    is run merely because a file names it.
    """
    scheme, _, _ = stored.data.partition(":")
    options = dict(spec.options)
    if scheme == spec.scheme:
        named = split_options(stored.data)[1]
        wanted = {name: named[name] for name in _PREPARING if name in named and name not in options}
        if "transform" in wanted and not is_own(wanted["transform"]):
            raise spec.error(
                f"the artifact was built with transform={wanted['transform']}, which is not in this folder; "
                "name it, if you want it run"
            )
        options = {**wanted, **options}
    known = source.classes if "classes" in options else {**source.classes, **stored.classes}
    return replace(spec, options=options), replace(source, classes=known)


def is_own(text: str) -> bool:
    """Whether ``package.module:callable`` lies in the working directory; nothing is imported to find out."""
    first = text.partition(":")[0].partition(".")[0]
    here = Path.cwd()
    return (here / f"{first}.py").is_file() or (here / first / "__init__.py").is_file()


def load_data(text: str, check: Check | None = None) -> Splits:
    """Call the user's data function ``package.module:callable``; ``check`` looks at every batch.

    ``InputError``: it cannot be found, fails, or returns something else than the loaders.
    """
    spec = parse_spec("DATA", text, DATA_SCHEMES)
    found = _called(spec, DATA_SCHEMES)
    if not isinstance(found, Mapping) or not {"train", "search"} <= set(found):
        got = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise spec.error(f"expected a mapping with 'train', 'search' and 'report' loaders, got {got}")
    loaders: dict[str, Guarded] = {}
    for split in NAMES:
        loader = found.get(split)
        if loader is None and split == "report":
            continue
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise spec.error(
                f"expected {split!r} to be a loader that can be gone through more than once, "
                f"got a {type(loader).__name__}; a list of batches or a DataLoader will do"
            )
        loaders[split] = Guarded(f"DATA {text}: {split}", loader, check)
    example = found.get("example_inputs")
    names = _class_names(found["train"])
    return Splits(
        train=loaders["train"],
        search=loaders["search"],
        report=loaders.get("report"),
        example=_example(spec, loaders["train"]) if example is None else example,
        classes=len(names) or None,
        summary=DataSummary(
            data=text,
            inputs={"kind": "loaders"},
            splits={name: size for name in loaders if (size := _samples(found[name])) is not None},
            classes={name: i for i, name in enumerate(names)},
            matched="as the data set says" if names else "",
        ),
    )


def load_input_exits(
    texts: Sequence[str], source: SourceModel, device: str | None = None
) -> dict[str, nn.Module | str]:
    """Exits at the input of a model, by name, from "NAME=MODEL" or "NAME=KIND", KIND of a head.

    ``InputError``: another form, a name given twice, or a model that cannot take the same inputs.
    """
    found: dict[str, nn.Module | str] = {}
    for text in texts:
        name, _, what = text.partition("=")
        if not name or not what:
            raise InputError(
                f"--input-exit: expected NAME=MODEL or NAME=KIND, such as small=timm:resnet18 or "
                f"pooled=linear; got {text!r}"
            )
        if name in found:
            raise InputError(f"--input-exit: {name!r} is given twice; choose another name")
        found[name] = _input_model(name, what, source, device) if ":" in what else what
    return found


def _input_model(name: str, what: str, source: SourceModel, device: str | None) -> nn.Module:
    """A model for the inputs of another; one that takes images otherwise is adapted."""
    other = load_source_model(what, device, f"--input-exit {name}")
    given, wanted = source.images, other.images
    own, others = (text and text.tokenizer.get_vocab() for text in (source.text, other.text))
    if others and own != others:
        raise InputError(
            f"--input-exit {name}={what}: its tokenizer is not the model's, and both are given the same "
            "tokens; take a model that was trained with the model's tokenizer"
        )
    if given is None or wanted is None or not given.mean or not wanted.mean:
        return other.model
    if given.size[0] != wanted.size[0]:
        raise InputError(
            f"--input-exit {name}={what}: it takes {wanted.size[0]} channels, the model {given.size[0]}"
        )
    if all(getattr(given, each) == getattr(wanted, each) for each in ("mean", "std", "size", "key")):
        return other.model
    parameter = next(source.model.parameters(), torch.empty(0))
    return Adapted(other.model, given, wanted).to(parameter.device)


def _called(spec: Spec, schemes: Sequence[Scheme]) -> Any:
    """What the user's function returns."""
    function = _found(spec, schemes)
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise spec.error(f"calling it fails: {type(error).__name__}: {error}") from error


def _found(spec: Spec, schemes: Sequence[Scheme]) -> Any:
    """The user's function."""
    module_name, _, name = spec.name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            hint = scheme_hint(spec.text, schemes)
            raise spec.error(f"no module {error.name!r}; run from its folder or install it{hint}") from error
        raise spec.error(f"importing it fails: {error}") from error
    except (Exception, SystemExit) as error:
        raise spec.error(f"importing it fails: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise spec.error(f"{module_name} has no callable {name!r}")
    return function


def _class_names(loader: Any) -> list[str]:
    """The classes that a loader's data set says it has, as those of torchvision do; distinct names."""
    data = getattr(loader, "dataset", None)
    while data is not None and not hasattr(data, "classes"):
        data = getattr(data, "dataset", None)  # a Subset
    classes = getattr(data, "classes", None)
    names = [str(name) for name in classes] if isinstance(classes, (list, tuple)) else []
    return names if len(set(names)) == len(names) else [f"{i} {name}" for i, name in enumerate(names)]


def _samples(loader: Any) -> int | None:
    """How many samples a loader says it has."""
    data: Any = getattr(loader, "dataset", None)
    return len(data) if hasattr(data, "__len__") else None


def _example(spec: Spec, loader: Iterable[Any]) -> Any:
    """The inputs of a loader's first batch."""
    batch = next(iter(loader), None)
    if batch is None:
        raise spec.error("the train loader yields nothing; expected at least one batch")
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in LABEL_KEYS}
    if not isinstance(batch, (tuple, list)):
        return batch
    if not batch:
        raise spec.error(f"the first train batch is an empty {type(batch).__name__}")
    return batch[0] if len(batch) <= 2 else tuple(batch[:-1])
