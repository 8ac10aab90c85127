"""The last function of a model whose outputs are probabilities already, undone inside and applied at the end.

    softmax       probabilities that add up to 1
    log_softmax   their logarithms
    sigmoid       one probability per label

Exits learn, agree and are judged on what comes before it, the logits; the user gets what comes after.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InputError

ACTIVATIONS = ("softmax", "log_softmax", "sigmoid")
AUTO = "auto"


def check_activation(name: str | None, known: tuple[str, ...] = ACTIVATIONS) -> None:
    """Raise ``InputError`` unless it is one of ``known`` or None."""
    if name is not None and name not in known:
        raise InputError(f"activation: expected one of {', '.join(known) or 'none'}, or None; got {name!r}")


def activate(name: str | None, logits: Tensor) -> Tensor:
    """Logits (..., K) to what the model returns; as they are for None."""
    if name == "softmax":
        return F.softmax(logits, -1)
    if name == "log_softmax":
        return F.log_softmax(logits, -1)
    return torch.sigmoid(logits) if name == "sigmoid" else logits


def undone(name: str, outputs: Tensor) -> Tensor:
    """Logits (..., K) of outputs that such a function made, up to rounding."""
    if name == "log_softmax":
        return outputs
    least = torch.finfo(outputs.dtype).tiny
    if name == "softmax":
        return outputs.clamp(min=least).log()
    eps = torch.finfo(outputs.dtype).eps
    return torch.logit(outputs.clamp(least, 1 - eps))


_ENOUGH = 64
"""Numbers, all between 0 and 1, from which on that is no chance."""


def looks_like(outputs: Tensor) -> str | None:
    """Which function seems to have made outputs (B, K), or (B, L, K), by their values; None: none.

    A sigmoid is told from 64 numbers on.
    """
    values = outputs.detach().double()
    if (
        values.numel() == 0
        or not bool(torch.isfinite(values).all())
        or float((values.amax(0) - values.amin(0)).amax()) == 0
    ):
        return None
    if values.shape[-1] > 1:
        for name, each in (("softmax", values), ("log_softmax", values.exp())):
            inside = bool((each >= 0).all()) and bool((each <= 1 + 1e-6).all())
            if inside and bool((each.sum(-1) - 1).abs().max() < 1e-3):
                return name
    inside = values.numel() >= _ENOUGH and bool(((values > 0) & (values < 1)).all())
    return "sigmoid" if inside else None


def tell_of_probabilities(task_name: str, model_name: str, outputs: Tensor, stacklevel: int) -> None:
    """Warn where outputs that a task reads as logits look like probabilities."""
    name = looks_like(outputs)
    if name is not None:
        warnings.warn(
            f"the outputs of {model_name} look like probabilities (made by {name}), and task {task_name!r} "
            f"reads them as logits: confidence, training and quality may be wrong; attach exits with "
            f"activation={name!r} if they are, or take the {name} out of the model",
            stacklevel=stacklevel + 1,
        )
