"""The outputs of a task inside whatever structure a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from offramp.errors import InputError
from offramp.tasks.multi_label import _whole


def _check_classes(labels: Tensor, classes: int, ignored: int | None = None) -> None:
    if not _whole(labels):
        raise InputError(f"labels: expected integers, got {labels.dtype}; pass class indices")
    labels = labels.long()  # small unsigned types have no minimum
    labels = labels if ignored is None else labels[labels != ignored]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        also = "" if ignored is None else f" (or {ignored} for a token that does not count)"
        raise InputError(
            f"labels: expected 0 to {classes - 1}{also} because the model has {classes} outputs, "
            f"got {int(labels.min())} to {int(labels.max())}; map the labels or use the matching model"
        )


def select_output(output: object, key: str | int | None, per_token: bool = False) -> Tensor:
    """Read the answer, (B, K) or (B, L, K), off whatever the model returns.

    Args:
        output: a tensor, or a mapping, dataclass-like object or tuple that holds one.
        key: which one; None takes the tensor itself, "logits", or the only tensor there is.
        per_token: whether there is an answer for each of L tokens.

    Raises:
        InputError: it is not there, is ambiguous, or does not have these dimensions.
    """
    found = _lookup(output, key)
    dimensions = 3 if per_token else 2
    if not isinstance(found, Tensor) or found.ndim != dimensions:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        wanted = "(batch, tokens, outputs)" if per_token else "(batch, outputs)"
        three = isinstance(found, Tensor) and found.ndim == 3
        other = ", or task='token-classification' if each token has an answer" if three else ""
        raise InputError(
            f"model output: expected a tensor {wanted}, got {shape}; pass output=<key or index>{other}"
        )
    if not found.dtype.is_floating_point:
        raise InputError(f"model output: expected floating point scores, got {found.dtype}")
    return found


def _lookup(output: object, key: str | int | None) -> Any:
    if isinstance(output, Tensor) and key is None:
        return output
    items: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        items = output
    elif isinstance(output, (tuple, list)):
        items = dict(enumerate(output))
    if key is None:
        key = "logits" if "logits" in items else next(iter(items)) if len(items) == 1 else None
    if key not in items:
        raise InputError(
            f"model output: no {key!r} in it; it has {list(items) or type(output).__name__}; pass output="
        )
    return items[key]
