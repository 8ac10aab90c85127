"""Energy counters: made-up powercap folders and a made-up NVML, as neither can be had everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from offramp.errors import InputError, MissingExtraError
from offramp.measure.energy import find_meter

WRAP = 1_000_000


class Zone:
    """One folder of the powercap tree."""

    def __init__(self, root: Path, folder: str, name: str, energy: int | str = 0) -> None:
        self.path = root / folder
        self.path.mkdir()
        (self.path / "name").write_text(f"{name}\n")
        (self.path / "max_energy_range_uj").write_text(f"{WRAP}\n")
        self.set(energy)

    def set(self, energy: int | str) -> None:
        (self.path / "energy_uj").write_text(f"{energy}\n")


def test_starts_at_nought_and_counts_joules(tmp_path: Path) -> None:
    zone = Zone(tmp_path, "intel-rapl:0", "package-0", 400_000)
    meter = find_meter("cpu", powercap=tmp_path)
    assert meter.read() == 0
    zone.set(650_000)
    assert meter.read() == pytest.approx(0.25)
    assert meter.read() == pytest.approx(0.25)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    zone = Zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = find_meter("cpu", powercap=tmp_path)
    zone.set(100_000)
    assert meter.read() == pytest.approx(0.2)
    zone.set(50_000)
    assert meter.read() == pytest.approx(1.15)


def test_packages_and_memory_are_added_and_parts_not_counted_twice(tmp_path: Path) -> None:
    zones = [
        Zone(tmp_path, "intel-rapl:0", "package-0"),
        Zone(tmp_path, "intel-rapl:0:0", "core"),
        Zone(tmp_path, "intel-rapl:0:1", "dram"),
        Zone(tmp_path, "intel-rapl:1", "package-1"),
        Zone(tmp_path, "intel-rapl:2", "psys"),
        Zone(tmp_path, "intel-rapl-mmio:0", "package-0"),
    ]
    meter = find_meter("cpu", powercap=tmp_path)
    for i, zone in enumerate(zones):
        zone.set(10**i)
    assert meter.read() == pytest.approx((1 + 100 + 1000) / 1e6)
    assert meter.name == "RAPL: package-0, dram, package-1"


def test_takes_a_device_of_torch(tmp_path: Path) -> None:
    Zone(tmp_path, "intel-rapl:0", "package-0")
    assert find_meter(torch.device("cpu"), powercap=tmp_path).interval == pytest.approx(1e-3)


@pytest.mark.parametrize("there", [False, True], ids=["no-folder", "other-zones"])
def test_no_counters_says_what_was_looked_for(tmp_path: Path, there: bool) -> None:
    if there:
        Zone(tmp_path, "intel-rapl:0", "psys")
        (tmp_path / "intel-rapl").mkdir()
    folder = tmp_path if there else tmp_path / "none"
    with pytest.raises(InputError, match=r"expected RAPL counters .*energy_uj, found none; .*seconds"):
        find_meter("cpu", powercap=folder)


def test_no_permission_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Zone(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def refused(path: Path) -> str:  # root reads everything, so a mode would not do
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(InputError, match=r"this user may not; .*sudo chmod a\+r .*energy_uj"):
        find_meter("cpu", powercap=tmp_path)


def test_a_damaged_counter_is_named(tmp_path: Path) -> None:
    Zone(tmp_path, "intel-rapl:0", "package-0", "unknown")
    with pytest.raises(InputError, match=r"expected a number in .*energy_uj, got: .*unknown"):
        find_meter("cpu", powercap=tmp_path)


@pytest.mark.parametrize("device", ["mps", "cuda:first", "gpu"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(InputError, match=f"'cpu' or 'cuda', got '{device}'"):
        find_meter(device)


# ---------------------------------------------------------------------------------------------- NVML


class NVMLError(Exception):
    """As the package's own."""


class FakeNvml(ModuleType):
    """Two GPUs that count millijoules, by their names."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = {"GPU-aa": 5_000, "GPU-bb": 70_000}
        self.failure = ""

    def nvmlInit(self) -> None:  # noqa: N802 (the package's name)
        if self.failure:
            raise NVMLError(self.failure)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.millijoules:
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if self.failure:
            raise NVMLError(self.failure)
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    uuids = ("aa", "bb", "cc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=uuids[i]))
    return fake


@pytest.mark.parametrize(("device", "name"), [("cuda:0", "GPU-aa"), ("cuda:1", "GPU-bb"), ("cuda", "GPU-bb")])
def test_a_gpu_counts_from_where_it_was(nvml: FakeNvml, device: str, name: str) -> None:
    meter = find_meter(device)
    assert meter.name == f"NVML: {name}"
    assert meter.read() == 0
    nvml.millijoules[name] += 1_500
    assert meter.read() == pytest.approx(1.5)


def test_a_gpu_counter_never_falls(nvml: FakeNvml) -> None:
    meter = find_meter("cuda:0")
    nvml.millijoules["GPU-aa"] += 1_000
    assert meter.read() == pytest.approx(1)
    nvml.millijoules["GPU-aa"] = 0
    assert meter.read() == pytest.approx(1)


def test_a_gpu_that_nvml_does_not_know(nvml: FakeNvml) -> None:
    with pytest.raises(InputError, match=r"counter of GPU-cc from NVML, got: Not Found; .*Volta"):
        find_meter("cuda:2")


def test_a_driver_that_does_not_answer(nvml: FakeNvml) -> None:
    meter = find_meter("cuda:0")
    nvml.failure = "GPU is lost"
    with pytest.raises(InputError, match="NVML: GPU-aa does not answer any more: GPU is lost"):
        meter.read()
    with pytest.raises(InputError, match="got: GPU is lost"):
        find_meter("cuda:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    with pytest.raises(InputError, match="expected a GPU 'cuda:0'"):
        find_meter("cuda:0")
    with pytest.raises(InputError, match="expected a GPU 'cuda'"):
        find_meter("cuda")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r'pip install "offramp\[energy\]"'):
        find_meter("cuda")
