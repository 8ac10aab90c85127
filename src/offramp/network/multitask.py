"""Several tasks over one backbone: one partition, one network of exits per task.

    labels_of(loader, "what")  ─▶ train_exits, record_outputs, search: each task by itself, its own frontier
    attach_tasks(model, ...)   ─▶ {"what": network, "where": network}   (traced once, segments shared)
                                        └─▶ MultiEngine: one call answers the tasks wanted

A task that the model has no output for gets one from ``with_answers``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from offramp.core import names_of
from offramp.data import LABEL_KEYS
from offramp.errors import InputError
from offramp.graph import INPUT
from offramp.network.attach import check_options, cut_model, is_name, network_on
from offramp.network.network import ExitNetwork
from offramp.tasks import Task

OPTIONS = ("heads", "task", "confidence", "output", "input_exits", "mask", "seed")
"""What may differ between tasks: these options of ``attach_exits``."""


def attach_tasks(
    model: nn.Module,
    example_inputs: object,
    tasks: Mapping[str, Mapping[str, Any]],
    *,
    cuts: str | Sequence[str] = "auto",
    layouts: Mapping[str, str] | None = None,
) -> dict[str, ExitNetwork]:
    """Cut a trained model once and put untrained candidate heads of several tasks at every cut.

    Args:
        model: trained; it is not changed, and must stay on its device.
        example_inputs: a tensor, or a tuple or dict of tensors, batch first.
        tasks: by name, options of ``attach_exits`` that are the task's own: heads, task, confidence, output,
            input_exits, mask, seed. Where the model returns a dict with the task's name in it, that is
            ``output`` unless given.
        cuts: as in ``attach_exits``, the same for all tasks.
        layouts: as in ``attach_exits``, the same for all tasks.

    Returns:
        Task -> network, each as from ``attach_exits``, all on one partition.

    Raises:
        InputError: no tasks, a name that is no word, an unknown option, or what ``attach_exits``
            refuses, with the task's name.
        PartitionError: the model cannot be exported or cut.
    """
    check_names(tasks)
    chosen = {name: _check_task(name, options) for name, options in tasks.items()}
    parts = cut_model(model, example_inputs, cuts, layouts)
    structure = parts.pack(parts.flow.trace.outputs)
    keys = structure if isinstance(structure, Mapping) else ()
    networks = {}
    for name, options in tasks.items():
        own = {"heads": "auto", **({"output": name} if name in keys else {}), **options, "task": chosen[name]}
        try:
            networks[name] = network_on(parts, input_layout=(layouts or {}).get(INPUT), **own)
        except InputError as error:
            raise InputError(f"tasks[{name!r}]: {error}") from error
    return networks


def check_names(tasks: Mapping[str, object]) -> None:
    """Refuse, with an InputError, no tasks and names of tasks that cannot be keys and folders."""
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(f"tasks: expected a dict such as {{'what': {{}}, 'where': {{}}}}, got {tasks!r:.80}")
    for name in tasks:
        if not is_name(name):
            raise InputError(f"tasks: expected names of letters, digits, '_' and '-'; got {name!r}")


def _check_task(name: str, options: object) -> Task:
    if not isinstance(options, Mapping):
        raise InputError(f"tasks[{name!r}]: expected a dict of options, got a {type(options).__name__}")
    unknown = next((option for option in options if option not in OPTIONS), None)
    if unknown is not None:
        shared = " (cuts and layouts are the same for all tasks)" if unknown in ("cuts", "layouts") else ""
        raise InputError(f"tasks[{name!r}]: unknown option {unknown!r}; known: {', '.join(OPTIONS)}{shared}")
    task = options.get("task", "classification")
    try:  # before the model is traced, which may take a while
        return check_options(
            options.get("heads", "auto"), options.get("input_exits"), task, options.get("confidence")
        )
    except InputError as error:
        raise InputError(f"tasks[{name!r}]: {error}") from error


def with_answers(model: nn.Module, answers: Mapping[str, nn.Module], *, feature: str = "") -> WithAnswers:
    """A model with further outputs, for tasks that it does not answer itself.

    Each is read off one feature by a module of the user's, which is trained as any model is; it becomes the
    full model's answer to its task.

    Args:
        model: trained; it is called as before.
        answers: name -> module, from the feature to outputs (B, K).
        feature: name of the sub-module whose output is the feature; "" for what the model itself returns.

    Returns:
        A module that is called as the model is. It returns one dict of the model's own outputs (a tensor is
        there as "logits") and the new ones.

    Raises:
        InputError: there is no such sub-module, no answer, or one that is no module.
    """
    check_names(answers)
    for name, module in answers.items():
        if not isinstance(module, nn.Module):
            raise InputError(f"answers[{name!r}]: expected a module, got a {type(module).__name__}")
    known = [name for name, _ in model.named_modules()]
    if feature not in known:
        some = ", ".join(known[1:9])
        raise InputError(f"feature: the model has no sub-module {feature!r}; it has {some}, ...")

    def forward(self: WithAnswers, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.answered(*args, **kwargs)

    # a class of its own, for the model's own signature: the tracer wants to know the inputs by name
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    kind = type(WithAnswers.__name__, (WithAnswers,), {"forward": forward, "__module__": __name__})
    made: WithAnswers = kind(model, answers, feature)
    return made


class WithAnswers(nn.Module):
    """Made by ``with_answers``; owns the model and the modules that read off its feature."""

    def __init__(self, model: nn.Module, answers: Mapping[str, nn.Module], feature: str) -> None:
        super().__init__()
        self.model, self.answers, self.feature = model, nn.ModuleDict(answers), feature
        self.train(model.training)

    def answered(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Inputs as the model takes them to all outputs by name."""
        kept: list[Any] = []
        source = self.model.get_submodule(self.feature)
        hook = source.register_forward_hook(lambda _module, _args, output: kept.append(output))
        try:
            output = self.model(*args, **kwargs)
        finally:
            hook.remove()
        own = dict(output) if isinstance(output, Mapping) else {"logits": output}
        taken = [name for name in self.answers if name in own]
        if taken:
            raise InputError(f"answers: the model answers {taken[0]!r} itself; choose another name")
        return {**own, **{name: module(kept[-1]) for name, module in self.answers.items()}}


def labels_of(loader: Iterable[Any], task: str | int, *, inputs: int = 1) -> Iterable[Any]:
    """A loader as it is, with the labels of one task.

    Understood: ``(inputs, {"what": ..., "where": ...})``, with the task's name; ``(inputs, what, where)``
    and ``(inputs, (what, where))``, with the task's number from 0; a dict of inputs whose "labels" are such a
    dict, or that has the labels under the task's name.

    Args:
        loader: batches with the labels of several tasks; it may be run through any number of times.
        task: name or number of the labels.
        inputs: how many items of a batch that is a tuple are inputs; labels follow.

    Raises:
        InputError: while it is run through: a batch has no such labels.
    """
    return _Labels(loader, task, inputs)


@dataclass(frozen=True)
class _Labels(Iterable[Any]):
    loader: Iterable[Any]
    task: str | int
    inputs: int

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # a TypeError where the loader has no length

    def __iter__(self) -> Iterator[Any]:
        return map(self._relabel, self.loader)

    def _relabel(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            key = next((key for key in LABEL_KEYS if isinstance(batch.get(key), Mapping)), None)
            labels = self._pick(batch if key is None else batch[key])
            taken = self.task if key is None else key
            rest = {name: value for name, value in batch.items() if name != taken}
            return {**rest, "labels": labels}
        if not isinstance(batch, (tuple, list)) or len(batch) <= self.inputs:
            kind = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise InputError(
                f"labels_of: expected batches of {self.inputs} inputs and then labels, got {kind}"
            )
        given: Any = batch[self.inputs :]
        if len(given) == 1 and isinstance(given[0], (Mapping, tuple, list)):
            given = given[0]
        return (*batch[: self.inputs], self._pick(given))

    def _pick(self, labels: Any) -> Any:
        try:
            return labels[self.task]
        except (KeyError, IndexError, TypeError):
            known = list(labels) if isinstance(labels, Mapping) else list(range(len(labels)))
            raise InputError(
                f"labels_of: the batch has no labels {self.task!r}; it has {names_of(map(str, known))}"
            ) from None
