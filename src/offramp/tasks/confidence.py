"""How certain an exit is of its answer: outputs (B, K) -> confidence (B,) float32, higher is more certain.

    max-probability   largest softmax probability
    margin            largest minus second largest probability
    entropy           1 - entropy / log K

A new one is a function under ``register_confidence``. Values that are not finite never exit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from offramp.registry import Registry
from offramp.tasks.fitted_confidence import FittedConfidence, Learned, Temperature

Confidence = Callable[[Tensor], Tensor]
"""(B, K) outputs of any floating type to (B,) float32."""

_CONFIDENCES: Registry[Confidence] = Registry("confidence")
register_confidence = _CONFIDENCES.register
_FITTED: Registry[Callable[[int], FittedConfidence]] = Registry("fitted confidence")
register_fitted = _FITTED.register
register_fitted("temperature")(Temperature)
register_fitted("learned")(Learned)

is_fitted = _FITTED.__contains__
"""Whether a confidence is of a kind that learns from held-out samples."""

get_fitted = _FITTED.__getitem__
"""What makes a fitted confidence for K outputs, by name."""

get_confidence = _CONFIDENCES.__getitem__
"""The confidence registered under a name; ``InputError`` where there is none."""


def check_confidence(name: str) -> None:
    """Raise ``InputError`` for a name that neither kind of confidence has."""
    if not is_fitted(name):
        get_confidence(name)


@register_confidence("max-probability")
def max_probability(logits: Tensor) -> Tensor:
    """Largest softmax probability.

    >>> max_probability(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).tolist()
    [0.5, 1.0]
    """
    return logits.float().softmax(1).amax(1)


@register_confidence("margin")
def margin(logits: Tensor) -> Tensor:
    """Largest minus second largest softmax probability; 1 where there is a single output.

    >>> margin(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).tolist()
    [0.0, 1.0]
    """
    probabilities = logits.float().softmax(1)
    if probabilities.shape[1] < 2:
        return probabilities[:, 0]
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return first - second


@register_confidence("entropy")
def entropy(logits: Tensor) -> Tensor:
    """One minus the entropy of the softmax over its largest possible value log K; 1 where K is 1.

    >>> entropy(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).tolist()
    [0.0, 1.0]
    """
    probabilities = logits.float().softmax(1)
    if probabilities.shape[1] < 2:
        return probabilities[:, 0]
    negentropy = torch.special.xlogy(probabilities, probabilities).sum(1)
    found: Tensor = 1 + negentropy / math.log(probabilities.shape[1])
    return found.clamp(0, 1)  # rounding can step over the ends
