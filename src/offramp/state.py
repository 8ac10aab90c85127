"""What long work keeps on disk: a scratch folder, a digest of a model's weights, the training checkpoint."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp.errors import ArtifactError, InputError
from offramp.network import ExitNetwork
from offramp.storage import load_arrays, save_arrays, storage_errors, whole_file

CHECKPOINT_FORMAT = "offramp.checkpoint"
VERSION = 1
_SAVE_EVERY = 2.0  # seconds of training that a kill may cost, besides the epoch under way


@contextmanager
def scratch(work_dir: str | Path | None) -> Iterator[Path]:
    """The user's folder, kept; or a temporary one, removed at the end.

    Raises:
        StorageError: there is no place for temporary files.
    """
    if work_dir is not None:
        yield Path(work_dir)
        return
    with storage_errors(Path(tempfile.gettempdir())):
        temporary = tempfile.TemporaryDirectory(prefix="offramp-")
    with temporary as folder:
        yield Path(folder)


def model_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a model's state, in order of name.

    It does not depend on the device or the memory format. State that is not made of tensors counts where it
    is plain (numbers, names, types) and is left out where it is not.

    Raises:
        InputError: a tensor is on the meta device, so there are no values.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        _digest_state(digest, name, value)
    return digest.hexdigest()


def graph_digest(net: ExitNetwork) -> str:
    """SHA-256 of what a network's backbone computes: its operations and its weights."""
    graph = str(net.partition.flow.trace.program.graph)
    return hashlib.sha256(f"{model_digest(net.backbone)}|{graph}".encode()).hexdigest()


def _digest_state(digest: Any, name: str, value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(_bytes(_plain(digest, name, value)).data)
    elif isinstance(value, (tuple, list)):  # quantised layers pack weight and bias
        for i, item in enumerate(value):
            _digest_state(digest, f"{name}.{i}", item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _digest_state(digest, f"{name}.{key}", item)
    elif value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        digest.update(f"{name}|{value!r}|".encode())


def _plain(digest: Any, name: str, tensor: Tensor) -> Tensor:
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
            digest.update(_bytes(values).data)
    return tensor.int_repr()


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    array: npt.NDArray[np.uint8] = flat.numpy()
    return array


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, whole or not at all."""
    # copies: tied weights share storage, which the format refuses
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with whole_file(path) as temporary:
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


class Checkpoint:
    """Heads, optimiser state and epoch in one checksummed file, replaced whole.

    Args:
        path: of the file; None saves nothing.
        key: of everything the training depends on; a file with another key is not resumed.
        heads: what is trained, by (position, head index).
        optimiser: of their parameters.
    """

    def __init__(
        self,
        path: Path | None,
        key: str,
        heads: Mapping[tuple[int, int], nn.Module],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self._path, self._key = path, key
        self._modules = nn.ModuleDict({f"{p}|{c}": head for (p, c), head in heads.items()})
        self._optimiser = optimiser
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Load what is stored; returns the number of epochs done, 0 where nothing of use is stored."""
        if self._path is None:
            return 0
        try:
            arrays, meta = load_arrays(self._path, CHECKPOINT_FORMAT, VERSION)
        except ArtifactError:  # none yet, or damaged: training again gives the same
            return 0
        if meta.get("key") != self._key:
            return 0
        dtypes = {name: getattr(torch, dtype) for name, dtype in meta["dtypes"].items()}
        tensors = {
            name: torch.from_numpy(array).view(dtypes[name]).reshape(meta["shapes"][name])
            for name, array in arrays.items()
        }
        self._modules.load_state_dict({n[2:]: value for n, value in tensors.items() if n.startswith("w|")})
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("o|"):
                _, index, slot = name.split("|")
                slots.setdefault(int(index), {})[slot] = value
        state = self._optimiser.state_dict()
        self._optimiser.load_state_dict({**state, "state": slots})  # puts each on its parameter's device
        return int(meta["epoch"])

    def save(self, epoch: int, *, force: bool) -> None:
        """Store the state after ``epoch`` epochs, at most every two seconds unless forced.

        Raises:
            StorageError: the folder cannot be written or is full.
        """
        if self._path is None:
            return
        if not force and time.monotonic() - self._saved < _SAVE_EVERY:
            return
        tensors = {f"w|{name}": value for name, value in self._modules.state_dict().items()}
        for index, slots in self._optimiser.state_dict()["state"].items():
            tensors |= {f"o|{index}|{slot}": value for slot, value in slots.items()}
        meta = {
            "key": self._key,
            "epoch": epoch,
            "dtypes": {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()},
            "shapes": {name: list(value.shape) for name, value in tensors.items()},
        }
        arrays = {name: _bytes(value) for name, value in tensors.items()}
        save_arrays(self._path, arrays, CHECKPOINT_FORMAT, VERSION, meta)
        self._saved = time.monotonic()
