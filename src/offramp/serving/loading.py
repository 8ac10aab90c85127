"""From the folder of an artifact to a predictor: the model that it names, or one that is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.artifacts import load, load_summary, read_manifest
from offramp.core import ExitConfig
from offramp.errors import InputError
from offramp.runtime import Engine
from offramp.serving.predictor import Predictor
from offramp.sources import DataSummary, SourceModel, is_own, load_source_model, of_callable, sample_reader


def load_predictor(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    max_cost: float | None = None,
    max_drop: float | None = None,
    min_quality: float | None = None,
    tradeoff: float | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    device: str | None = None,
    restore_backbone: bool = False,
    input_exits: Mapping[str, nn.Module] | None = None,
) -> Predictor:
    """Read an artifact to something that takes images, paths, texts or arrays and answers labels.

    Args:
        path: of the artifact's folder.
        model: the backbone, or a MODEL as on the command line; None takes the one that the artifact names. A
            function of your own that it names is called only if it lies in the working directory.
        max_cost: start with the best configuration within this fraction of the full cost.
        max_drop: start with the cheapest within this loss of quality.
        min_quality: start with the cheapest that reaches this mean quality.
        tradeoff: start with the one found for this lambda. Without any of the four: the full model.
        transform: PIL image -> (C, H, W), instead of the one that the artifact names.
        batch_size: most samples that are run together.
        device: where to run; None leaves the model where it is.
        restore_backbone: first load the weights stored in the artifact into the model.
        input_exits: modules that were given as exits at the input, by name; ``load`` takes the same.

    Raises:
        ArtifactError: missing, damaged, or made for another model.
        InputError: no model is named, it cannot be made, or it prepares its inputs otherwise than the build.
        MissingExtraError: a library that the model needs is not installed.
    """
    folder = Path(path)
    summary = load_summary(folder, read_manifest(folder))
    source = _source(folder, model, summary, device)
    net, frontier, costs = load(
        folder, source.model, restore_backbone=restore_backbone, input_exits=input_exits
    )
    criteria = {
        "max_cost": max_cost, "max_drop": max_drop, "min_quality": min_quality, "tradeoff": tradeoff
    }  # fmt: skip
    given = {name: value for name, value in criteria.items() if value is not None}
    config = frontier.at(**given) if given else ExitConfig()
    spec = net.partition.spec
    dtype = spec.dtypes[0] if spec.dtypes[0].is_floating_point else torch.int64
    reader = sample_reader(source, summary, spec.shapes[0], dtype, transform)
    names = {index: name for name, index in source.classes.items()}
    names |= summary.names() if summary is not None else {}
    return Predictor(Engine(net, config, costs=costs), frontier, reader, names, batch_size)


def _source(
    folder: Path, model: nn.Module | str | None, summary: DataSummary | None, device: str | None
) -> SourceModel:
    if isinstance(model, nn.Module):
        return of_callable(model if device is None else model.to(device))
    if model is not None and not isinstance(model, str):
        raise InputError(
            f"model: expected a torch.nn.Module or a MODEL as text, got a {type(model).__name__}"
        )
    if model is not None:
        return load_source_model(model, device)
    named = "" if summary is None else summary.model
    if not named:
        raise InputError(
            f"{folder} does not say which model it was built for; give it: load_predictor(path, model=...), "
            "a torch.nn.Module or a MODEL such as timm:resnet50"
        )
    if named.partition(":")[0] not in ("timm", "torchvision", "hf") and not is_own(named):
        raise InputError(
            f"{folder} was built for {named}, which is not in this folder, and nothing is run because a file "
            f"names it; say so yourself: load_predictor(path, model={named!r})"
        )
    return load_source_model(named, device, f"{folder}: MODEL")
