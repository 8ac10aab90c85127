"""Fashion-MNIST as tensors, and the splits that all benchmarks on it share.

60,000 training images = 55,000 the backbones train on + 5,000 held out (positions from a fixed permutation);
10,000 test images. Read from the four gzipped IDX files, as Debian and torchvision both lay them down.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.shared.backbones import Labelled

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT, SPLIT_SEED = 5_000, 2026
MEAN, STD = 0.2860, 0.3530
_HEADER = {"images-idx3": 16, "labels-idx1": 8}  # bytes before the values


@dataclass(frozen=True)
class Fashion:
    """Disjoint parts: what backbones and heads learn from, what they never saw, and the test set.

    Each is (images (N, 1, 28, 28) float32, normalised; labels (N,) int64).
    """

    train: Labelled
    held_out: Labelled
    test: Labelled


def load_fashion(folder: Path = DEFAULT_FOLDER) -> Fashion:
    """Read the data set and split it.

    Raises:
        FileNotFoundError: a file is missing; says how to get it.
        ValueError: a file is not what it should be.
    """
    images, labels = _read(folder, "train", 60_000)
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, kept = order[:HELD_OUT], order[HELD_OUT:]
    return Fashion((images[kept], labels[kept]), (images[held], labels[held]), _read(folder, "t10k", 10_000))


def _read(folder: Path, part: str, count: int) -> Labelled:
    pixels = _values(folder, part, "images-idx3").reshape(-1, 1, 28, 28)
    labels = _values(folder, part, "labels-idx1")
    if len(pixels) != count or len(labels) != count:
        raise ValueError(f"{folder}: expected {count} {part} images, got {len(pixels)}; get the files again")
    images = torch.from_numpy(pixels.astype(np.float32))
    return images.div_(255).sub_(MEAN).div_(STD), torch.from_numpy(labels.astype(np.int64))


def _values(folder: Path, part: str, kind: str) -> np.ndarray:
    path = folder / f"{part}-{kind}-ubyte.gz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected Fashion-MNIST, found no file; install Debian's package dataset-fashion-mnist, "
            "or let torchvision.datasets.FashionMNIST(root, download=True) fetch it and pass "
            "--data root/FashionMNIST/raw"
        )
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=_HEADER[kind])
