"""Energy counters: joules that a device has spent, read from what its maker built in.

A counter is of the whole device: whatever else runs on it meanwhile is counted too. RAPL counts CPU packages
and their memory; NVML one NVIDIA GPU (extra ``energy``), without the host's share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from offramp.errors import InputError, MissingExtraError

POWERCAP = Path("/sys/class/powercap")
_INSTEAD = 'unit="seconds" needs no counter'


@dataclass(frozen=True)
class Meter:
    """A counter of energy: what is counted, seconds between two changes (about), and how to read it.

    ``read`` gives joules since the meter was made and never falls; time much longer than ``interval``.
    """

    name: str
    interval: float
    read: Callable[[], float]


def find_meter(device: object = "cpu", *, powercap: Path = POWERCAP) -> Meter:
    """The energy meter of a ``torch.device`` or its name: "cpu", "cuda", "cuda:1".

    ``InputError`` where there is no counter or this user may not read it, ``MissingExtraError`` without the
    package that reads NVIDIA's counters. RAPL's are in the folder ``powercap``.
    """
    kind, _, index = str(device).partition(":")
    if kind == "cpu":
        return _rapl(powercap)
    if kind == "cuda" and (index.isdecimal() or not index):
        return _nvml(int(index) if index else None)
    raise InputError(
        f"joules: expected a device with an energy counter, 'cpu' or 'cuda', got {str(device)!r}; {_INSTEAD}"
    )


def _rapl(folder: Path) -> Meter:
    """Intel's and AMD's CPU packages and their memory, through the powercap folder of Linux.

    A counter wraps every few minutes to hours, depending on the load; read it more often than that.
    """
    names = {path: path / "name" for path in sorted(folder.glob("intel-rapl:*"))}
    labels = {path: name.read_text().strip() for path, name in names.items() if name.exists()}
    # cores and graphics are parts of a package, psys holds it
    found = {path: label for path, label in labels.items() if label.startswith("package") or label == "dram"}
    if not found:
        raise InputError(
            f"joules: expected RAPL counters {folder}/intel-rapl:*/energy_uj, found none; virtual "
            "machines and processors other than Intel's and AMD's have none; elsewhere the kernel's "
            f"module intel_rapl_msr or intel_rapl_common may have to be loaded; {_INSTEAD}"
        )
    wraps = [_number(path / "max_energy_range_uj") for path in found]
    last = [_number(path / "energy_uj") for path in found]
    total = 0

    def read() -> float:
        nonlocal last, total
        now = [_number(path / "energy_uj") for path in found]
        total += sum((new - old) % wrap for new, old, wrap in zip(now, last, wraps, strict=True))
        last = now
        return total / 1e6

    return Meter("RAPL: " + ", ".join(found.values()), 1e-3, read)


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


def _nvml(index: int | None) -> Meter:
    """One NVIDIA GPU, Volta or newer, by PyTorch's index; None is its current one."""
    try:
        import pynvml
    except ImportError as error:
        raise MissingExtraError(
            'joules of an NVIDIA GPU need nvidia-ml-py; run: pip install "offramp[energy]"'
        ) from error
    try:  # NVML counts all GPUs, PyTorch those it may see: they agree on the uuid
        properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    except (AssertionError, RuntimeError) as error:
        device = "cuda" if index is None else f"cuda:{index}"
        raise InputError(f"joules: expected a GPU {device!r}, got: {error}; {_INSTEAD}") from error
    uuid = f"GPU-{properties.uuid}"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        first = last = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except pynvml.NVMLError as error:
        raise InputError(
            f"joules: expected an energy counter of {uuid} from NVML, got: {error}; it takes NVIDIA's "
            f"driver and a GPU of the Volta generation or newer; {_INSTEAD}"
        ) from error

    def read() -> float:
        nonlocal last
        try:
            last = max(last, int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)))  # millijoules
        except pynvml.NVMLError as error:
            raise InputError(f"joules: NVML: {uuid} does not answer any more: {error}; {_INSTEAD}") from error
        return (last - first) / 1e3

    return Meter(f"NVML: {uuid}", 0.1, read)
