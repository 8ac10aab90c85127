"""Tensors of a model as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from offramp.errors import InputError
from offramp.storage import atomic_write


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, whole or not at all."""
    # copies: tied weights share storage, which the format refuses
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(copies, temporary)


def plain_state(
    model: nn.Module, what: str = "the backbone", advice: str = "; save with include_backbone=False"
) -> dict[str, Tensor]:
    """A model's state, if a safetensors file can hold it.

    Args:
        model: whose.
        what: it is called in an error.
        advice: how the error ends.

    Raises:
        InputError: something in it is not a plain tensor.
    """
    state = model.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor) or value.is_quantized]
    if strange:
        raise InputError(f"cannot store {what}: {strange[0]!r} is not a plain tensor{advice}")
    return state
