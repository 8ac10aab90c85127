"""What a stream engine takes and what it answers: requests, futures, answers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from torch import Tensor

from offramp.data import InputSpec
from offramp.errors import InputError
from offramp.streaming.routes import Route

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """The answer to one sample.

    Args:
        output: (K,), or (L, K) for a task with an answer per token.
        position: index into ``net.positions`` of where it left; P for the model's output.
        confidence: of the exit taken or of the model's output.
        waited: seconds spent waiting, for admission and between spans.
        served: seconds spent in batches.
    """

    output: Tensor
    position: int
    confidence: float
    waited: float
    served: float

    def __repr__(self) -> str:
        return (
            f"StreamAnswer(output of shape {tuple(self.output.shape)}, position {self.position}, confidence "
            f"{self.confidence:.4g}, waited {self.waited:.3g} s, served {self.served:.3g} s)"
        )


class StreamFuture(Future[StreamAnswer]):
    """The answer to come. ``cancel`` works until it is there: the sample leaves at the next exit point.

    Callbacks run in the engine's own thread, so they should be short.
    """

    def __init__(self) -> None:
        super().__init__()
        self.abandoned = False  # read by the engine without a lock

    def add_done_callback(self, fn: Callable[[Future[StreamAnswer]], object]) -> None:
        """Call ``fn`` with the future once it is done; whatever it raises is logged, and ends no thread."""

        def guarded(future: Future[StreamAnswer]) -> None:
            try:
                fn(future)
            except BaseException:  # SystemExit and KeyboardInterrupt would end the engine's thread
                _LOGGER.exception("a callback of a StreamFuture failed")

        super().add_done_callback(guarded)

    def cancel(self) -> bool:
        """Give the sample up. False where it is answered already, or has failed."""
        self.abandoned = super().cancel() or self.abandoned
        return self.cancelled()


class Waiting:
    """Samples that wait, first come first served."""

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()

    @property
    def count(self) -> int:
        """How many wait."""
        return len(self.requests)

    @property
    def since(self) -> float:
        """When the first that waits came."""
        return self.requests[0].since


class Request:
    """One sample on its way: its flat inputs, dropped when its first batch starts, and its route.

    It was submitted ``now`` and expires at ``deadline`` (None: never), in seconds on the same clock. Of
    answers per token the first ``tokens`` are wanted; None: all.
    """

    __slots__ = (
        "completed", "deadline", "exit_point", "future", "route", "served", "since", "submitted", "tokens",
        "values",
    )  # fmt: skip

    def __init__(
        self,
        values: list[Tensor],
        route: Route,
        now: float,
        deadline: float | None,
        tokens: int | None = None,
    ) -> None:
        self.tokens = tokens
        self.values, self.route, self.deadline = values, route, deadline
        self.future = StreamFuture()
        self.exit_point = next(iter(route.exits))
        self.submitted = self.since = now
        self.served, self.completed = 0.0, False


def one_sample(spec: InputSpec, inputs: object) -> list[Tensor]:
    """The flat inputs of one sample, with or without a batch dimension of 1, as a batch of one.

    InputError: a shape, dtype, device or structure differs from the example's, or it is several samples.
    """
    if type(inputs) is Tensor and not spec.keyword and len(spec.shapes) == 1:  # the common case, kept fast
        shape = spec.shapes[0]
        if inputs.dtype == spec.dtypes[0] and inputs.device == spec.device:
            if inputs.shape == shape:
                return [inputs.unsqueeze(0)]
            if inputs.shape == (1, *shape):
                return [inputs]
    if isinstance(inputs, dict):
        shapes = dict(zip(spec.names, spec.shapes, strict=True))
        texts = () if spec.lengths is None else [spec.names[i] for i in spec.lengths.inputs]
        inputs = {
            name: _batched(value, shapes.get(name), any_length=name in texts)
            for name, value in inputs.items()
        }
    elif isinstance(inputs, (tuple, list)):
        inputs = tuple(map(_batched, inputs, spec.shapes)) if len(inputs) == len(spec.shapes) else inputs
    else:
        inputs = _batched(inputs, spec.shapes[0])
    values = spec.padded(spec.flatten(inputs))  # samples of one batch have one length
    if len(values[0]) != 1:
        raise InputError(
            f"submit: expected one sample, got a batch of {len(values[0])}; submit samples one by one, "
            "the engine makes the batches"
        )
    return values


def _batched(value: object, shape: tuple[int, ...] | None, any_length: bool = False) -> object:
    """A sample's tensor with a batch dimension, where it has none."""
    if not isinstance(value, Tensor) or shape is None:
        return value
    alone = value.ndim == len(shape) if any_length else value.shape == shape
    return value.unsqueeze(0) if alone else value
