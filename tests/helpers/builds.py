"""Small builds with a working folder, in this process or in one of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import offramp
import small
from offramp.errors import OfframpError
from offramp.pipeline import BuildConfig, build
from offramp.sources import Splits
from offramp.training import TrainConfig

CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import builds
from pathlib import Path
from offramp.errors import StorageError
time.sleep(float(sys.argv[4]))
try:
    builds.run(Path(sys.argv[2]), Path(sys.argv[3]), pause=0.1)
except StorageError as error:
    sys.exit(f"StorageError: {error}")
"""


class Slow(list):
    """A loader that takes its time over every batch."""

    def __init__(self, batches: list, pause: float) -> None:
        super().__init__(batches)
        self.pause = pause

    def __iter__(self) -> Iterator:
        for batch in super().__iter__():
            time.sleep(self.pause)
            yield batch


def splits(pause: float = 0.0) -> Splits:
    """Three loaders of the small model."""
    train, search, report = (Slow(small.loader(count=48, seed=seed, size=16), pause) for seed in (1, 2, 3))
    return Splits(example=train[0][0][:2], train=train, search=search, report=report)


def run(work: Path, artifact: Path, pause: float = 0.0) -> dict[str, bytes]:
    """Build with a working folder and save; what the artifact's files hold."""
    config = BuildConfig(heads=("linear", "mlp"), train=TrainConfig(epochs=2))
    built = build(small.model(), splits(pause), config, work_dir=work, progress=False)
    offramp.save(artifact, built.net, built.frontier, built.costs, records=built.records)
    return contents(artifact)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def start(work: Path, artifact: Path, delay: float = 0.0) -> subprocess.Popen[str]:
    """The same in a process of its own, which ends with what ``StorageError`` says, if one is raised."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-W", "ignore", "-c", CHILD, here, str(work), str(artifact), str(delay)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def flip(folder: Path, random: np.random.Generator) -> str:
    """Flip one bit of one file somewhere below a folder; returns which file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    path = files[random.integers(len(files))]
    content = bytearray(path.read_bytes())
    content[random.integers(len(content))] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
    return str(path.relative_to(folder))


def changed_by_flips(folder: Path, flips: int, seed: int = 0) -> list[str]:
    """Resume builds from working folders with one flipped bit; those that end with another artifact.

    An ``OfframpError`` is an answer, any other error is not caught.
    """
    whole, random, wrong = run(folder / "work", folder / "whole"), np.random.default_rng(seed), []
    for i in range(flips):
        work, artifact = folder / f"work{i}", folder / f"artifact{i}"
        shutil.copytree(folder / "work", work)
        name = flip(work, random)
        try:
            if run(work, artifact) != whole:
                wrong.append(name)
        except OfframpError:
            continue
        finally:
            shutil.rmtree(work)
            shutil.rmtree(artifact, ignore_errors=True)
    return wrong


def ends_of_a_pair(folder: Path, delay: float) -> tuple[list[dict[str, bytes]], list[str]]:
    """Two builds at once in one working folder: artifacts of those that succeed, what the others say."""
    pair = [start(folder / "work", folder / name, pause) for name, pause in (("a", 0.0), ("b", delay))]
    said = [child.communicate(timeout=120)[1] for child in pair]
    made = [contents(folder / name) for name, child in zip("ab", pair, strict=True) if not child.returncode]
    return made, [text for text, child in zip(said, pair, strict=True) if child.returncode]
