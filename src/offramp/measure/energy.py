"""Energy counters: joules that a device has spent, read from what its maker built in.

find_meter     the meter of a device
RaplMeter      CPU packages and their memory, through Linux' powercap folder
NvmlMeter      one NVIDIA GPU, through NVML (extra ``energy``); the host's share is not in it

A counter is of the whole device: whatever else runs on it meanwhile is counted too.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from offramp.errors import InputError, MissingExtraError

POWERCAP = Path("/sys/class/powercap")
_INSTEAD = 'unit="seconds" needs no counter'


class Meter(Protocol):
    """A counter of energy.

    Attributes:
        name: what is counted.
        interval: seconds between two changes of the counter, about; time much longer than this.
    """

    name: str
    interval: float

    def read(self) -> float:
        """Joules since the meter was made; never falls. Safe from one thread at a time."""


def find_meter(device: object = "cpu", *, powercap: Path = POWERCAP) -> Meter:
    """The energy meter of a device.

    Args:
        device: a ``torch.device`` or its name: "cpu", "cuda", "cuda:1".
        powercap: folder of the RAPL counters.

    Raises:
        InputError: there is no counter for this device, or this user may not read it.
        MissingExtraError: the package that reads NVIDIA's counters is not installed.
    """
    kind, _, index = str(device).partition(":")
    if kind == "cpu":
        return RaplMeter(powercap)
    if kind == "cuda" and (index.isdecimal() or not index):
        return NvmlMeter(int(index) if index else None)
    raise InputError(
        f"joules: expected a device with an energy counter, 'cpu' or 'cuda', got {str(device)!r}; {_INSTEAD}"
    )


# ---------------------------------------------------------------------------------------------- the CPU


@dataclass
class _Domain:
    """One RAPL counter: microjoules that start again at 0 after ``wrap``."""

    path: Path
    wrap: int
    last: int
    total: int = 0

    def read(self) -> int:
        """Microjoules since the first reading, if it wrapped no more than once since the one before."""
        now = _number(self.path)
        self.total += now - self.last if now >= self.last else now + self.wrap - self.last
        self.last = now
        return self.total


class RaplMeter:
    """CPU packages and their memory, through the powercap folder of Linux (Intel and AMD).

    A counter wraps every few minutes to hours, depending on the load; read it more often than that.

    Args:
        folder: of the counters.

    Raises:
        InputError: there are none, or this user may not read them.
    """

    interval = 1e-3

    def __init__(self, folder: Path = POWERCAP) -> None:
        found = [path for path in sorted(folder.glob("intel-rapl:*")) if _counts(path)]
        if not found:
            raise InputError(
                f"joules: expected RAPL counters {folder}/intel-rapl:*/energy_uj, found none; virtual "
                "machines and processors other than Intel's and AMD's have none; elsewhere the kernel's "
                f"module intel_rapl_msr or intel_rapl_common may have to be loaded; {_INSTEAD}"
            )
        self._domains = [_domain(path) for path in found]
        self.name = "RAPL: " + ", ".join(_label(path) for path in found)

    def read(self) -> float:
        """Joules since the meter was made."""
        return sum(domain.read() for domain in self._domains) / 1e6


def _counts(path: Path) -> bool:
    """A package, or memory beside one; cores and graphics are parts of a package, psys holds it."""
    label = _label(path)
    return label.startswith("package") or label == "dram"


def _label(path: Path) -> str:
    name = path / "name"
    return name.read_text().strip() if name.exists() else ""


def _domain(path: Path) -> _Domain:
    counter = path / "energy_uj"
    return _Domain(counter, _number(path / "max_energy_range_uj"), _number(counter))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise InputError(
            f"joules: expected to read {path}, but this user may not; kernels keep it for root: run as root, "
            f"or allow it with: sudo chmod a+r {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"joules: expected a number in {path}, got: {error}; {_INSTEAD}") from error


# ---------------------------------------------------------------------------------------------- NVIDIA


class NvmlMeter:
    """One NVIDIA GPU, Volta or newer.

    Args:
        index: as PyTorch counts the GPUs; None is its current one.

    Raises:
        MissingExtraError: nvidia-ml-py is not installed.
        InputError: there is no such GPU, no driver, or a GPU that does not count.
    """

    interval = 0.1

    def __init__(self, index: int | None = None) -> None:
        self._nvml = _nvml()
        uuid = _uuid(index)
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._first = self._last = self._now()
        except self._nvml.NVMLError as error:
            raise InputError(
                f"joules: expected an energy counter of {uuid} from NVML, got: {error}; it takes NVIDIA's "
                f"driver and a GPU of the Volta generation or newer; {_INSTEAD}"
            ) from error
        self.name = f"NVML: {uuid}"

    def read(self) -> float:
        """Joules since the meter was made.

        Raises:
            InputError: the driver does not answer any more.
        """
        try:
            self._last = max(self._last, self._now())
        except self._nvml.NVMLError as error:
            raise InputError(f"joules: {self.name} does not answer any more: {error}; {_INSTEAD}") from error
        return (self._last - self._first) / 1e3

    def _now(self) -> int:
        """Millijoules since the driver was loaded."""
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def _nvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise MissingExtraError(
            'joules of an NVIDIA GPU need nvidia-ml-py; run: pip install "offramp[energy]"'
        ) from error


def _uuid(index: int | None) -> str:
    """NVML counts all GPUs, PyTorch those it may see: names they agree on."""
    import torch

    try:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    except (AssertionError, RuntimeError) as error:
        told = "cuda" if index is None else f"cuda:{index}"
        raise InputError(f"joules: expected a GPU {told!r}, got: {error}; {_INSTEAD}") from error
    return f"GPU-{properties.uuid}"
