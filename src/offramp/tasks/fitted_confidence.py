"""Confidences with something to learn: fitted on held-out outputs and how good these were.

    temperature   largest softmax probability, at the temperature of least negative log-likelihood
    learned       logistic regression on what the outputs show, class by class

Outputs (n, K) and their quality (n,) in [0, 1] are all that a fit sees, so a calibrator serves any task. A
fit is exact to rounding (Newton, golden section in double precision on the CPU): no seed, no learning rate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import InputError

_TOP = 5  # largest log-probabilities that a learned confidence looks at
_CLASSES = 256  # with more, which class was chosen is left out: too few samples of each
_ENOUGH = 20_000  # samples; evenly spaced ones are taken of more
_MOST = 20.0  # log-probabilities and log-odds beyond say no more
_STILL = 0.3  # standard deviation of a feature that hardly moves: it is not blown up


class FittedConfidence(nn.Module):
    """How certain an exit is, once fitted: (B, K) to (B,) float32 in [0, 1], higher is more certain.

    What is fitted are buffers, so that it is saved with the network and no optimiser moves it.

    Args:
        outputs: K.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def fit(self, outputs: Tensor, quality: Tensor) -> None:
        """Learn from samples that the exit was not trained on.

        Args:
            outputs: (n, K), finite; of more than 20,000, that many are used.
            quality: (n,) in [0, 1].

        Raises:
            InputError: no samples, or shapes that do not fit.
        """
        if outputs.ndim != 2 or outputs.shape[1] != self.outputs or quality.shape != outputs.shape[:1]:
            raise InputError(
                f"fit(): expected outputs (n, {self.outputs}) and quality (n,), "
                f"got {tuple(outputs.shape)} and {tuple(quality.shape)}"
            )
        if not len(outputs):
            raise InputError("fit(): expected at least one sample to fit a confidence on, got none")
        some = torch.linspace(0, len(outputs) - 1, min(len(outputs), _ENOUGH)).round().long()
        self._fit(outputs.detach().cpu()[some], quality.detach().double().cpu()[some])

    def _fit(self, outputs: Tensor, quality: Tensor) -> None:
        raise NotImplementedError


class Temperature(FittedConfidence):
    """Largest softmax probability of ``outputs * scale``; the scale, 1 / temperature, is fitted."""

    scale: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, K) to (B,)."""
        return (outputs.float() * self.scale).softmax(1).amax(1)

    def _fit(self, outputs: Tensor, quality: Tensor) -> None:
        logits = outputs.double().cpu()

        def loss(power: float) -> float:
            confidence = (logits * 2.0**power).softmax(1).amax(1).clamp(1e-12, 1 - 1e-12)
            return float(F.binary_cross_entropy(confidence, quality))

        if self.outputs > 1:
            self.scale.fill_(2.0 ** _golden(loss, -6.0, 6.0))


def _golden(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one number is least, to 1e-3; the best of 13 points decides between valleys.

    >>> round(_golden(lambda x: (x - 1.3) ** 2, -6, 6), 2)
    1.3
    """
    between = (high - low) / 12
    best = min((low + between * i for i in range(13)), key=function)
    low, high = max(low, best - between), min(high, best + between)
    inner = high - (5**0.5 - 1) / 2 * (high - low)
    value = function(inner)
    while high - low > 1e-3:
        other = low + high - inner  # the golden section keeps the better of the two as the next one's inner
        found = function(other)
        if (found, other) < (value, inner):
            inner, value, other = other, found, inner
        low, high = (low, other) if inner < other else (other, high)
    return (low + high) / 2


class Learned(Temperature):
    """Logistic regression on the log-odds at the fitted temperature, and on what else the outputs show.

    The log-odds are free and the rest is penalised, so that few samples give little more than a temperature.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    penalty = 50.0
    """Of the squared weights of standardised features, beside the sum of the samples' losses."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        width = self._shown(torch.zeros(1, outputs)).shape[1]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("weight", torch.eye(width)[0])
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, K) to (B,)."""
        scaled = (self._shown(outputs) - self.mean) / self.std
        return (scaled @ self.weight + self.bias).sigmoid()

    def _shown(self, outputs: Tensor) -> Tensor:
        return torch.cat([log_odds(outputs.float() * self.scale).unsqueeze(1), shown(outputs)], 1)

    def _fit(self, outputs: Tensor, quality: Tensor) -> None:
        super()._fit(outputs, quality)
        x = self._shown(outputs).double().cpu()
        mean, std = x.mean(0), x.std(0, correction=0).clamp(min=_STILL)
        free = torch.zeros(x.shape[1], dtype=torch.bool)
        free[0] = True
        weights = logistic((x - mean) / std, quality, self.penalty, free)
        for name, value in (("mean", mean), ("std", std), ("weight", weights[:-1]), ("bias", weights[-1])):
            getattr(self, name).copy_(value)


def log_odds(outputs: Tensor) -> Tensor:
    """Log-odds (B,) of the largest softmax probability of (B, K), within 20; 0 where K is 1.

    >>> log_odds(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    if outputs.shape[1] < 2:
        return outputs[:, 0] * 0
    order = outputs.sort(1, descending=True).values
    return (order[:, 0] - order[:, 1:].logsumexp(1)).clamp(-_MOST, _MOST)


def shown(outputs: Tensor) -> Tensor:
    """What a learned confidence looks at beside the log-odds, (B, K) to (B, F) float32.

    The largest log-probabilities, margin, entropy, the size of the outputs, how far they are from undecided
    one by one (for answers that are not one of K), and which is the largest.
    """
    outputs = outputs.float()
    count = outputs.shape[1]
    size = outputs.clamp(-1e4, 1e4)
    logs = outputs.log_softmax(1).clamp(min=-_MOST)
    top = logs.topk(min(_TOP, count), dim=1).values
    probabilities = logs.exp()
    decided = -F.softplus(-size.abs())
    parts = [
        top,
        top[:, :1].exp() - (top[:, 1:2].exp() if count > 1 else 0),
        (probabilities * logs).sum(1, keepdim=True),
        size.amax(1, keepdim=True),
        size.logsumexp(1, keepdim=True),
        decided.mean(1, keepdim=True),
        decided.amin(1, keepdim=True),
    ]
    if count <= 2:
        parts += [size, size.square()]
    elif count <= _CLASSES:
        parts.append(F.one_hot(outputs.argmax(1), count).float())
    return torch.cat(parts, 1)


def logistic(x: Tensor, target: Tensor, penalty: float, free: Tensor) -> Tensor:
    """Weights (F + 1,), intercept last, of a penalised logistic regression: Newton's method, halved steps.

    On features x (n, F) and targets (n,) in [0, 1], double, drawn in by 1 / (n + 2) (Platt), so that none is
    certain. The penalty is of the squared weights, against the sum of losses; those where ``free`` (F,) is
    True have none, nor has the intercept.
    """
    count = len(x)
    x = torch.cat([x, x.new_ones(count, 1)], 1)
    target = (target * count + 1) / (count + 2)
    ridge = torch.full((x.shape[1],), penalty, dtype=x.dtype)
    ridge[:-1][free] = ridge[-1] = 1e-4

    def loss(weights: Tensor) -> Tensor:
        fits = F.binary_cross_entropy_with_logits(x @ weights, target, reduction="sum")
        return fits + (ridge * weights.square()).sum() / 2

    weights = x.new_zeros(x.shape[1])
    value = loss(weights)
    for _ in range(50):
        guess = (x @ weights).sigmoid()
        slope = x.T @ (guess - target) + ridge * weights
        curve = (x.T * (guess * (1 - guess))) @ x + torch.diag(ridge)
        step = torch.linalg.solve(curve, slope)
        factor = 1.0
        while factor > 1e-6 and loss(weights - factor * step) > value:
            factor /= 2
        weights = weights - factor * step
        before, value = value, loss(weights)
        if float(before - value) < 1e-9 * max(1.0, float(value)):
            break
    return weights
