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
from offramp.sources.preprocessing import Adapted
from offramp.sources.spec import Scheme, Spec, numbers_in, parse_spec, scheme_hint, split_options
from offramp.sources.splits import Check, Guarded, Splits
from offramp.tasks import Task, make_task

__all__ = [
    "Project",
    "Splits",
    "load_data",
    "load_input_exits",
    "load_model",
    "load_project",
    "load_source_model",
    "load_splits",
    "parse_task",
]


@dataclass(frozen=True)
class Project:
    """All that a build needs.

    Args:
        model: trained.
        splits: samples, as the model takes them.
        task: what an answer is.
        input_exits: exits at the input, by name: modules or kinds of heads.
    """

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
    """A model, the data for it, and exits at its input.

    Args:
        model: MODEL.
        data: DATA.
        task: as ``parse_task`` takes it.
        output: key of the answer in what the model returns.
        input_exits: each "NAME=MODEL" or "NAME=KIND", KIND of a head.
        device: where to, such as "cuda"; None leaves models where they are.

    Raises:
        InputError: something is not there, or does not fit.
        MissingExtraError: a library is not installed.
    """
    source = load_source_model(model, device)
    wanted = parse_task(task)  # after the user's module is imported: it may register one
    splits = load_splits(data, source, wanted, output)
    return Project(source.model, splits, wanted, load_input_exits(input_exits, source, device))


def parse_task(text: str) -> Task:
    """A task on the command line: ``name`` or ``name,option=number,...``, several numbers with "/" between.

    Raises:
        InputError: an unknown name, or options that are no numbers or not the task's.
    """
    name, options = split_options(text)
    numbers: dict[str, float | list[float]] = {}
    for option, value in options.items():
        found = numbers_in(value)
        if found is None:
            raise InputError(
                f"--task {text}: {option}: expected a number, or several with '/' between, got {value!r}"
            )
        numbers[option] = list(found) if len(found) > 1 else found[0]
    return make_task(name, **numbers)


def load_splits(data: str, source: SourceModel, task: Task, output: str | int | None = None) -> Splits:
    """The data for a model.

    Raises:
        InputError: something is not there, or does not fit the model.
    """
    spec = parse_spec("DATA", data, DATA_SCHEMES)
    if spec.scheme:
        return load_samples(spec, source, task, output, _transform(spec))
    splits = load_data(data, source.check)
    return replace(splits, example=to_device_of(source.model, splits.example))


def load_input_exits(
    texts: Sequence[str], source: SourceModel, device: str | None = None
) -> dict[str, nn.Module | str]:
    """Exits at the input of a model, by name.

    Args:
        texts: each "NAME=MODEL" or "NAME=KIND", KIND of a head.
        source: the model.
        device: of the models.

    Raises:
        InputError: another form, a name given twice, or a model that cannot take the same inputs.
    """
    found = [_input_exit(text, source, device) for text in texts]
    twice = [name for i, (name, _) in enumerate(found) if name in dict(found[:i])]
    if twice:
        raise InputError(f"--input-exit: {twice[0]!r} is given twice; choose another name")
    return dict(found)


def load_model(spec: str) -> nn.Module:
    """The model alone.

    Raises:
        InputError: it cannot be found, fails, or is something else than a module.
        MissingExtraError: a library is not installed.
    """
    return load_source_model(spec).model


def load_data(spec: str, check: Check | None = None) -> Splits:
    """Call the user's data function.

    Args:
        spec: ``package.module:callable``.
        check: looks at every batch.

    Raises:
        InputError: it cannot be found, fails, or returns something else than the loaders.
    """
    found = _called(parse_spec("DATA", spec, DATA_SCHEMES), DATA_SCHEMES)
    if not isinstance(found, Mapping) or not {"train", "search"} <= set(found):
        got = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise InputError(
            f"DATA {spec}: expected a mapping with 'train', 'search' and 'report' loaders, got {got}"
        )
    for split in ("train", "search", "report"):
        loader = found.get(split)
        if loader is None and split == "report":
            continue
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise InputError(
                f"DATA {spec}: expected {split!r} to be a loader that can be gone through more than once, "
                f"got a {type(loader).__name__}; a list of batches or a DataLoader will do"
            )
    train, search = (Guarded(f"DATA {spec}: {name}", found[name], check) for name in ("train", "search"))
    report = found.get("report")
    if report is not None:
        report = Guarded(f"DATA {spec}: report", report, check)
    example = found.get("example_inputs")
    if example is None:
        example = _example(spec, train)
    return Splits(train, search, report, example, _class_count(found["train"]))


def load_source_model(text: str, device: str | None = None, what: str = "MODEL") -> SourceModel:
    """A model with what is known about its inputs.

    Args:
        text: MODEL.
        device: where to, such as "cuda"; None leaves it where it is.
        what: for messages.

    Raises:
        InputError: it cannot be found, fails, or is something else than a module.
        MissingExtraError: a library is not installed.
    """
    spec = parse_spec(what, text, MODEL_SCHEMES)
    if spec.scheme:
        source = load_source(spec)
    else:
        model = _called(spec, MODEL_SCHEMES)
        if not isinstance(model, nn.Module):
            raise spec.error(f"expected it to return a torch.nn.Module, got {type(model).__name__}")
        source = of_callable(model)
    if device is not None:
        try:
            source.model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise InputError(f"--device {device}: {str(error).splitlines()[0]}; try cpu") from error
    return source


def _transform(spec: Spec) -> Any:
    text = spec.options.get("transform")
    return None if text is None else _found(parse_spec(f"DATA {spec.text}: transform", text, ()), ())


def _input_exit(text: str, source: SourceModel, device: str | None) -> tuple[str, nn.Module | str]:
    """NAME=MODEL or NAME=KIND; a model that takes images otherwise is adapted."""
    name, equals, what = text.partition("=")
    if not equals or not name or not what:
        raise InputError(
            f"--input-exit: expected NAME=MODEL or NAME=KIND, such as small=timm:resnet18 or pooled=linear; "
            f"got {text!r}"
        )
    if ":" not in what:
        return name, what
    other = load_source_model(what, device, f"--input-exit {name}")
    given, wanted = source.images, other.images
    if _vocabulary(source) != (_vocabulary(other) or _vocabulary(source)):
        raise InputError(
            f"--input-exit {text}: its tokenizer is not the model's, and both are given the same tokens; "
            "take a model that was trained with the model's tokenizer"
        )
    if given is None or wanted is None or not given.mean or not wanted.mean:
        return name, other.model
    if given.size[0] != wanted.size[0]:
        raise InputError(
            f"--input-exit {text}: it takes {wanted.size[0]} channels, the model {given.size[0]}"
        )
    same = (given.mean, given.std, given.size, given.key) == (
        wanted.mean,
        wanted.std,
        wanted.size,
        wanted.key,
    )
    if same:
        return name, other.model
    parameter = next(source.model.parameters(), torch.empty(0))
    return name, Adapted(other.model, given, wanted).to(parameter.device)


def _vocabulary(source: SourceModel) -> Any:
    return None if source.text is None else source.text.tokenizer.get_vocab()


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


def _class_count(loader: Any) -> int | None:
    """How many classes a loader's data set says it has, as those of torchvision do."""
    data = getattr(loader, "dataset", None)
    while data is not None and not hasattr(data, "classes"):
        data = getattr(data, "dataset", None)  # a Subset
    classes = getattr(data, "classes", None)
    return len(classes) if isinstance(classes, (list, tuple)) else None


def _example(spec: str, loader: Iterable[Any]) -> Any:
    batch = next(iter(loader), None)
    if batch is None:
        raise InputError(f"DATA {spec}: the train loader yields nothing; expected at least one batch")
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in LABEL_KEYS}
    if not isinstance(batch, (tuple, list)):
        return batch
    if not batch:
        raise InputError(f"DATA {spec}: the first train batch is an empty {type(batch).__name__}")
    return batch[0] if len(batch) <= 2 else tuple(batch[:-1])
