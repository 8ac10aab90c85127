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


def resume(path: Path, key: str, modules: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load what is stored under this key; returns the number of epochs done, 0 where nothing of use is."""
    try:
        arrays, meta = load_arrays(path, CHECKPOINT_FORMAT, VERSION)
    except ArtifactError:  # none yet, or damaged: training again gives the same
        return 0
    if meta.get("key") != key:
        return 0
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    modules.load_state_dict({name[2:]: value for name, value in tensors.items() if name.startswith("w|")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("o|"):
            _, index, slot = name.split("|")
            slots.setdefault(int(index), {})[slot] = value
    state = optimiser.state_dict()
    optimiser.load_state_dict({**state, "state": slots})  # puts each on its parameter's device
    return int(meta["epoch"])


def save(path: Path, key: str, modules: nn.Module, optimiser: torch.optim.Optimizer, epoch: int) -> None:
    """Store the state after ``epoch`` epochs."""
    tensors = {f"w|{name}": value for name, value in modules.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"o|{index}|{slot}": value for slot, value in slots.items()}
    arrays = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
        for name, value in tensors.items()  # numpy has no bfloat16; float32 holds it exactly
    }
    save_arrays(path, arrays, CHECKPOINT_FORMAT, VERSION, {"key": key, "epoch": epoch})


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
    state = nn.ModuleDict({f"{p}|{c}": module for (p, c), module in modules.items()})
    first = resume(path, key, state, optimiser) if path else 0
    saved = time.monotonic()
    with progress_bar(label, epochs, progress) as advance:
        for epoch in range(first, epochs):
            with _seeded(net.partition.spec.device, config.seed * 1_000_003 + epoch):
                run_epoch(epoch)
            due = every_epoch or epoch + 1 == epochs or time.monotonic() - saved >= _SAVE_EVERY
            if path and due:
                save(path, key, state, optimiser, epoch + 1)
                saved = time.monotonic()
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
