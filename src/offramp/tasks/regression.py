"""Regression: K numbers per sample, and a head that says how far off it expects to be.

Heads have 2K outputs: K values, and for each the logarithm of its expected absolute error, learned by the
likelihood of a Laplace distribution:

    error e, expected error b:   loss |e| / b + log b      quality of one value: 1 - |e| / scale, at least 0
    confidence: E max(0, 1 - |e| / scale) = 1 - (b / scale) (1 - exp(-scale / b))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.base import Task, check_shape, register_task
from offramp.tasks.confidence import register_confidence

_LIMIT = 8.0
"""A head's expected error stays between exp(-8) and exp(8) times the spread of the labels."""

_MODEL_ERROR = -20.0
"""Logarithm of the error that the model itself expects, over the scale: exits are compared with it."""


@register_task("regression")
class Regression(Task):
    """K real numbers per sample; quality is 1 - |error| / scale, at least 0, mean over the K numbers.

    Outputs are (B, 2K): K values, then K logarithms of the expected error over the scale. The answer is the
    values. Labels are (B, K), or (B,) where K is 1.

    Args:
        scale: error that makes an answer worthless, above 0; one number, or K.
        center: what labels lie around, to start training heads from; one number, or K.
        spread: how far labels lie from there, above 0, one number, or K; None is the scale.

    Raises:
        InputError: a value is not finite, or not above 0 where it has to be.

    >>> Regression(scale=10.0).quality(torch.tensor([[3.0, 0.0]]), torch.tensor([5.0])).tolist()
    [0.800000011920929]
    """

    name = "regression"
    confidence = "expected-quality"
    scalar = True

    def __init__(
        self,
        scale: float | Sequence[float] | None = None,
        center: float | Sequence[float] = 0.0,
        spread: float | Sequence[float] | None = None,
    ) -> None:
        if scale is None:
            raise InputError(
                "task 'regression' needs a scale, the error that makes an answer worthless; pass "
                "task=Regression(scale=...), or Regression.of(labels) for one standard deviation"
            )
        self._options = {
            "scale": _numbers("scale", scale, positive=True),
            "center": _numbers("center", center),
            "spread": _numbers("spread", scale if spread is None else spread, positive=True),
        }
        self._tensors: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, labels: object, scale: float | Sequence[float] | None = None) -> Regression:
        """A task whose center and spread are those of labels of the training split.

        Args:
            labels: (N, K) or (N,), N at least 2; or the model's own outputs where there are no labels.
            scale: error that makes an answer worthless; None takes one standard deviation of each output.

        Raises:
            InputError: labels are too few, of another shape or not finite, or all equal without a scale.
        """
        values = torch.as_tensor(labels, dtype=torch.float64)
        values = values.unsqueeze(1) if values.ndim == 1 else values
        if values.ndim != 2 or len(values) < 2 or not bool(torch.isfinite(values).all()):
            raise InputError(
                f"Regression.of(labels): expected at least 2 finite labels (N,) or (N, K), got shape "
                f"{tuple(values.shape)}; pass those of the training split"
            )
        spread = values.std(0)
        if scale is None and not bool((spread > 0).all()):
            raise InputError("Regression.of(labels): the labels of an output are all equal; pass scale=")
        flat = torch.where(spread > 0, spread, 1.0).tolist()
        return cls(flat if scale is None else scale, values.mean(0).tolist(), flat)

    def options(self) -> dict[str, Any]:
        """Scale, center and spread, lists of one number or K."""
        return {name: list(numbers) for name, numbers in self._options.items()}

    def head_outputs(self, outputs: int) -> int:
        """2K: values and logarithms of expected errors."""
        for name, numbers in self.options().items():
            if len(numbers) not in (1, outputs):
                raise InputError(
                    f"Regression.{name}: expected one number, or {outputs} because the model has {outputs} "
                    f"outputs; got {len(numbers)}"
                )
        return 2 * outputs

    def from_head(self, raw: Tensor) -> Tensor:
        """(B, 2K) around 0 and of size 1, as heads learn them, to outputs."""
        scale, center, spread = self._on(raw)
        values, errors = raw.chunk(2, 1)
        bounded = _LIMIT * torch.tanh(errors / _LIMIT)
        return torch.cat([center + spread * values, (spread / scale).log() + bounded], 1)

    def from_model(self, answer: Tensor) -> Tensor:
        """(B, K) to (B, 2K): the model is as confident as can be."""
        return torch.cat([answer, torch.full_like(answer, _MODEL_ERROR)], 1)

    def answer(self, outputs: Tensor) -> Tensor:
        """The K values."""
        return outputs[:, : outputs.shape[1] // 2]

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise ``InputError`` unless labels are finite real numbers (B, K), or (B,) where K is 1."""
        check_shape(labels, self.answer(outputs).shape, "a number for each output", flat=True)
        if labels.dtype.is_complex or labels.dtype == torch.bool:
            raise InputError(f"labels: expected real numbers, got {labels.dtype}")
        if not bool(torch.isfinite(labels).all()):
            raise InputError(
                "labels: expected finite numbers, got some that are not; leave those samples out"
            )

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood (B,) of a Laplace distribution, up to a constant; mean over outputs."""
        error, expected = self._errors(outputs, labels)
        return (error * (-expected).exp() + expected).mean(1)

    def distillation(
        self, outputs: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        """The same against the full model's values (B,); temperature has no meaning here."""
        return self.loss(outputs, self.answer(teacher))

    def quality(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """1 - |error| / scale, at least 0 (B,)."""
        error, _ = self._errors(outputs, labels)
        return (1 - error).clamp(0, 1).mean(1)

    def agreement(self, outputs: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same against the full model's values (B,)."""
        return self.quality(outputs, self.answer(teacher))

    def _errors(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """|error| / scale and the logarithm of what was expected of it, each (B, K)."""
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # labels keep their digits
        values, expected = wide.chunk(2, 1)
        scale, _, _ = self._on(wide)
        return (values - labels.view(values.shape).to(values.dtype)).abs() / scale, expected

    def _on(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, center, spread), each (1,) or (K,)."""
        key = (like.dtype, like.device)
        if key not in self._tensors:
            with torch.inference_mode(False):  # training needs them later, too
                scale, center, spread = (
                    torch.tensor(numbers, dtype=like.dtype, device=like.device)
                    for numbers in self._options.values()
                )
            if type(scale) is not Tensor:  # a tracer's stand-in must not outlive the tracing
                return scale, center, spread
            self._tensors[key] = scale, center, spread
        return self._tensors[key]


@register_confidence("expected-quality")
def expected_quality(outputs: Tensor) -> Tensor:
    """Expected quality of a regression: outputs (B, 2K) whose second half is log(expected error / scale).

    Raises:
        InputError: the number of outputs is odd.

    >>> [round(c, 3) for c in expected_quality(torch.tensor([[7.0, -20.0], [7.0, 0.0], [7.0, 8.0]])).tolist()]
    [1.0, 0.368, 0.0]
    """
    if outputs.shape[1] % 2:
        raise InputError(
            f"confidence 'expected-quality': expected values and their expected errors, got "
            f"{outputs.shape[1]} outputs; it is for task=Regression(...)"
        )
    ratio = outputs.float().chunk(2, 1)[1].exp()
    return (1 + ratio * torch.expm1(-1 / ratio)).mean(1).clamp(0, 1)


def _numbers(name: str, value: float | Sequence[float], positive: bool = False) -> tuple[float, ...]:
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        numbers = tuple(float(each) for each in given)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(math.isfinite(x) and (x > 0 or not positive) for x in numbers):
        wanted = "finite, above 0" if positive else "finite"
        raise InputError(f"Regression.{name}: expected a number or one per output, {wanted}; got {value!r}")
    return numbers
