"""Training in epochs that a kill does not lose: modules, optimiser and epoch in one checksummed file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp._progress import progress_bar
from offramp.errors import ArtifactError
from offramp.network import ExitIndex, ExitNetwork
from offramp.storage import document_digest, load_arrays, save_arrays
from offramp.training.config import TrainConfig

CHECKPOINT_FORMAT = "offramp.checkpoint"
VERSION = 2
_SAVE_EVERY = 2.0  # seconds of training that a kill may cost, besides the epoch under way


class Checkpoint:
    """Modules by (position, head index), their optimiser's state and the epoch, in one file.

    A ``path`` of None saves nothing; a file with another ``key`` than this one is not resumed.
    """

    def __init__(
        self,
        path: Path | None,
        key: str,
        modules: Mapping[ExitIndex, nn.Module],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self._path, self._key = path, key
        self._modules = nn.ModuleDict({f"{p}|{c}": module for (p, c), module in modules.items()})
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
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
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
        """Store the state after ``epoch`` epochs, at most every two seconds unless forced."""
        if self._path is None or not (force or time.monotonic() - self._saved >= _SAVE_EVERY):
            return
        tensors = {f"w|{name}": value for name, value in self._modules.state_dict().items()}
        for index, slots in self._optimiser.state_dict()["state"].items():
            tensors |= {f"o|{index}|{slot}": value for slot, value in slots.items()}
        arrays = {name: _as_numpy_takes(value).numpy() for name, value in tensors.items()}
        save_arrays(self._path, arrays, CHECKPOINT_FORMAT, VERSION, {"key": self._key, "epoch": epoch})
        self._saved = time.monotonic()


def _as_numpy_takes(value: Tensor) -> Tensor:
    """On the CPU; bfloat16, which numpy has not, exactly as float32."""
    value = value.detach().cpu()
    return value.float() if value.dtype == torch.bfloat16 else value


def run_epochs(
    net: ExitNetwork,
    config: TrainConfig,
    optimiser: torch.optim.Optimizer,
    modules: Mapping[ExitIndex, nn.Module],
    run_epoch: Callable[[int], None],
    depends_on: Mapping[str, Any],
    *,
    epochs: int,
    folder: Path | None,
    name: str,
    label: str,
    every_epoch: bool,
    progress: bool | None,
) -> None:
    """Run all epochs, each from a seed of its own, from where a checkpoint in ``folder`` stopped.

    The checkpoint is called after a digest of all that the weights depend on: the config, the task, the
    modules and ``depends_on``. It is saved after every epoch, or after the last and every two seconds.
    """
    key = document_digest(
        {
            **depends_on,
            "config": asdict(config),
            "task": net.task.identity,
            "modules": [[*index, repr(module)] for index, module in modules.items()],
            "torch": torch.__version__,
        }
    )
    path = folder and folder / f"{name}-{key[:16]}.safetensors"
    checkpoint = Checkpoint(path, key, modules, optimiser)
    with progress_bar(label, epochs, progress) as advance:
        for epoch in range(checkpoint.resume(), epochs):
            with _seeded(net.partition.spec.device, config.seed * 1_000_003 + epoch):
                run_epoch(epoch)
            checkpoint.save(epoch + 1, force=every_epoch or epoch + 1 == epochs)
            advance(epoch + 1)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The random state seeded inside (for heads with dropout), as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
