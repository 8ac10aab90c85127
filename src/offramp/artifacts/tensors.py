"""Tensors of a model as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from offramp.errors import ArtifactError, InputError
from offramp.storage import atomic_write


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, whole or not at all."""
    # copies: tied weights share storage, which the format refuses
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(copies, temporary)


def parse_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file; an ``ArtifactError`` that names it if it is damaged."""
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def storable_state(module: nn.Module, what: str, advice: str = "") -> dict[str, Tensor]:
    """A module's state if a safetensors file can hold it, else an ``InputError`` about ``what``."""
    state = module.state_dict()
    odd = [name for name, value in state.items() if not _ordinary(value)]
    if odd:
        raise InputError(f"cannot store {what}: {odd[0]!r} is not an ordinary tensor{advice}")
    return state


def _ordinary(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_quantized and not is_traceable_wrapper_subclass(value)
