"""What long work keeps on disk: a scratch folder, a digest of a model's weights, and the training checkpoint."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp._files import whole_file

_SAVE_EVERY = 2.0  # seconds of training that a kill may cost, besides the epoch under way


@contextmanager
def scratch(work_dir: str | Path | None) -> Iterator[Path]:
    """The user's folder, kept; or a temporary one, removed at the end."""
    if work_dir is not None:
        yield Path(work_dir)
        return
    with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
        yield Path(folder)


def model_digest(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a model's state, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoint:
    """Heads, optimiser state and epoch in one file, replaced whole.

    Args:
        path: of the file.
        heads: what is trained, by (position, head index).
        learning_rate: initial; the caller changes it per step.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        path: Path,
        heads: Mapping[tuple[int, int], nn.Module],
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self._path = path
        self._modules = nn.ModuleDict({f"{p}|{c}": head for (p, c), head in heads.items()})
        parameters = list(self._modules.parameters())
        self.optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Load what is stored, if anything; returns the number of epochs done."""
        if not self._path.is_file():
            return 0
        with safe_open(self._path, framework="pt") as stream:
            epoch = int(json.loads(stream.metadata()["offramp"])["epoch"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        weights = {name[2:]: value for name, value in tensors.items() if name.startswith("w|")}
        self._modules.load_state_dict(weights)
        for name, parameter in self._modules.named_parameters():
            slots = ("step", "exp_avg", "exp_avg_sq")
            self.optimiser.state[parameter] = {slot: tensors[f"{slot}|{name}"] for slot in slots}
        return epoch

    def save(self, epoch: int, *, force: bool) -> None:
        """Store the state after ``epoch`` epochs, at most every two seconds unless forced."""
        if not force and time.monotonic() - self._saved < _SAVE_EVERY:
            return
        tensors = {
            f"w|{name}": value.detach().contiguous() for name, value in self._modules.state_dict().items()
        }
        for name, parameter in self._modules.named_parameters():
            for slot, value in self.optimiser.state[parameter].items():
                tensors[f"{slot}|{name}"] = value
        with whole_file(self._path) as temporary:
            save_file(tensors, temporary, {"offramp": json.dumps({"epoch": epoch})})
        self._saved = time.monotonic()
