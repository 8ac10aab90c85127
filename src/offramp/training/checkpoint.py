"""The training checkpoint: heads, optimiser state and epoch in one checksummed file, replaced whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from offramp.errors import ArtifactError
from offramp.network import tensor_bytes
from offramp.storage import load_arrays, save_arrays

CHECKPOINT_FORMAT = "offramp.checkpoint"
VERSION = 1
_SAVE_EVERY = 2.0  # seconds of training that a kill may cost, besides the epoch under way


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
        arrays = {name: tensor_bytes(value) for name, value in tensors.items()}
        save_arrays(self._path, arrays, CHECKPOINT_FORMAT, VERSION, meta)
        self._saved = time.monotonic()
