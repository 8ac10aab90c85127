"""Digests that tell whether a model, or what its backbone computes, is the same as before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from offramp.errors import InputError
from offramp.network.network import ExitNetwork


def model_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a model's state, in order of name.

    It does not depend on the device or the memory format. State that is not made of tensors counts where it
    is numbers, names or types. A tensor on the meta device has no values: an ``InputError``.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        _digest_state(digest, name, value)
    return digest.hexdigest()


def graph_digest(net: ExitNetwork) -> str:
    """SHA-256 of what a network's backbone computes: its operations and its weights.

    InputError: the model was moved, or a part of it replaced, since it was cut.
    """
    net.partition.check_unchanged()
    graph = str(net.partition.flow.trace.program.graph)
    return hashlib.sha256(f"{model_digest(net.backbone)}|{graph}".encode()).hexdigest()


def _digest_state(digest: Any, name: str, value: object) -> None:
    if isinstance(value, Tensor) and is_traceable_wrapper_subclass(value):  # such as torchao's int8 weights
        inner, _ = value.__tensor_flatten__()
        digest.update(f"{name}|{type(value).__qualname__}|{tuple(value.shape)}|".encode())
        for attribute in inner:
            _digest_state(digest, f"{name}.{attribute}", getattr(value, attribute))
    elif isinstance(value, Tensor):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(tensor_bytes(_values(digest, name, value)).data)
    elif isinstance(value, (tuple, list)):  # quantised layers pack weight and bias
        for i, item in enumerate(value):
            _digest_state(digest, f"{name}.{i}", item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _digest_state(digest, f"{name}.{key}", item)
    elif value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        digest.update(f"{name}|{value!r}|".encode())


def _values(digest: Any, name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        raise InputError(
            f"the model's {name!r} is on the meta device and has no values; load its weights first"
        )
    if not tensor.is_quantized:
        return tensor
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        digest.update(f"{tensor.q_scale()}|{tensor.q_zero_point()}|".encode())
    else:
        for values in (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()):
            digest.update(tensor_bytes(values).data)
    return tensor.int_repr()


def tensor_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor, whatever its type, as a flat array of uint8."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    array: npt.NDArray[np.uint8] = flat.numpy()
    return array
