"""The folder tests/fixtures/before_move: its models without weights, and how engines are called on it.

All weights and inputs in it are small multiples of powers of two, and no operation of the models needs more
than the 24 bits of a float32: outputs are exact in any order of summation, so they are the same bits on every
processor. Softmax is not; of confidences, see ``same_answers``.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp import BatchCosts, Certificate, CostTable, ExitChoice, ExitConfig, Expected, Frontier, Guarantee

FOLDER = Path(__file__).parents[1] / "fixtures" / "before_move"
ARRAYS = ("confidence", "quality", "final_quality", "exists", "final_confidence", "logits")
FIELDS = ("outputs", "position", "confidence")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, eps=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


class Picture(nn.Module):
    """(B, 1, 4, 4) to (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.top = nn.Linear(4, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.top(self.features(x))


class TwoAnswers(Picture):
    """(B, 1, 4, 4) to {"what": (B, 3), "where": (B, 2)}."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.features(x)
        return {"what": self.top(x), "where": self.side(x)}


class Guess(nn.Module):
    """A model that answers at the input."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


def certified_frontier() -> Frontier:
    """A certificate with two guarantees, both infinite thresholds, a configuration between two others."""
    bounds = (
        Guarantee("drop of quality", 0.02, 500, 0.004, "trinomial", 0.0125),
        Guarantee("missed detection", 0.1, 120, 0.05, "binomial", 0.031),
    )
    choices = (ExitChoice("blocks.0", "linear", 1 / 3), ExitChoice("blocks.1", "mlp", float("inf")))
    cheap = ExitConfig(
        (ExitChoice("input", "raw", float("-inf")),), 0.5, Expected(0.5, 12.5, 0.9, 100.0, 500)
    )
    half = ExitConfig(
        choices, 0.9, Expected(0.896, 52.25, 0.9, 100.0, 500), Certificate(0.05, 500, "labels", bounds)
    )
    between = ExitConfig(choices[:1], None, Expected(0.5, 30.0, 0.9, 100.0, 500))
    return Frontier([cheap, half], {0.5: cheap, 0.9: half}, {"method": "by hand", "proved": False}, [between])


def costs_by_batch() -> CostTable:
    """Seconds per sample at a batch of 4, and of calls of 1, 2 and 4 samples."""
    backbone = np.array([[0, 0.5, 1, 2], [0, 0.6, 1.1, 2.5], [0, 0.75, 1.5, 3.5]]) / 1024
    heads = np.multiply.outer([1.0, 1.5, 2.0], np.full((3, 4), 1 / 16384))
    meta = {"device": "cpu", "batch_size": 4}
    by_batch = BatchCosts(np.array([1, 2, 4]), backbone, heads)
    return CostTable(backbone[-1] / 4, heads[-1] / 4, "seconds", meta, by_batch)


def answers(engine: Any, inputs: Any, configs: list[ExitConfig], name: str) -> dict[str, np.ndarray]:
    """Outputs, positions and confidences under each configuration, by "name/number/field"."""
    found = {}
    for i, config in enumerate(configs):
        engine.use(config)
        out = engine(inputs)
        found |= {f"{name}/{i}/{field}": np.asarray(getattr(out, field)) for field in FIELDS}
    return found


def made_with() -> dict[str, str]:
    """On what the last bits of a softmax depend."""
    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:
        runtime = "none"
    cpu = torch.backends.cpu.get_cpu_capability()
    return {"torch": version("torch"), "onnxruntime": runtime, "processor": cpu}


def same_answers(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Asserts that answers are those stored: bit for bit, confidences on another processor nearly so."""
    same_machine = json.loads((FOLDER / "made_with.json").read_text()) == made_with()
    for key, value in got.items():
        wanted = expected[key]
        assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), key
        if key.endswith("confidence") and not same_machine:
            np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=0, err_msg=key)
        else:
            np.testing.assert_array_equal(value, wanted, err_msg=key)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same_files(folder: Path, wanted: Path) -> None:
    """Asserts that two folders hold the same bytes.

    The example to trace with is noise, and PyTorch draws other bits of it on a processor without AVX2. There
    it is left out, with the manifest, which has its checksum.
    """
    got, expected = contents(folder), contents(wanted)
    assert got.keys() == expected.keys()
    noise = torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
    drawn = ("example.safetensors", "manifest.json", "tasks.json") if noise else ()
    assert [name for name in got if got[name] != expected[name] and Path(name).name not in drawn] == []
