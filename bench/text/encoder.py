"""The prepared data as tensors, and encoders as classifiers.

A sample is {"input_ids": (B, L) int64, "attention_mask": (B, L) int64}, padded to one length L; the answer is
``logits`` (B, K). Depth says how many of MiniLM's 6 layers a classifier has: the shallower ones, fine-tuned
in the same way, are what a user would take instead of exits.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

PARTS = ("train", "search", "report")
DEPTH = 6


@dataclass(frozen=True)
class Encoded:
    """N samples: ids and mask (N, L) int64, labels (N,) int64."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor | slice) -> Encoded:
        """Some of the samples."""
        return Encoded(self.ids[index], self.mask[index], self.labels[index])

    def trimmed(self) -> Encoded:
        """Without the columns in which every sample is padded."""
        length = int(self.mask.sum(1).max())
        return Encoded(self.ids[:, :length], self.mask[:, :length], self.labels)

    def batches(self, size: int = 32) -> list[dict[str, Tensor]]:
        """In fixed order, as the model takes them and with labels."""
        rows = [self.rows(slice(i, i + size)) for i in range(0, len(self), size)]
        return [{**part.inputs, "labels": part.labels} for part in rows]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": self.ids, "attention_mask": self.mask}


def load_data(folder: Path, kind: str) -> dict[str, Encoded]:
    """What the part ``prepare`` wrote, by split.

    Raises:
        FileNotFoundError: it was not prepared yet.
    """
    path = folder / f"{kind}.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected prepared data, found no file; run: python bench/text prepare"
        )
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name].astype(np.int64)) for name in stored.files}
    data = Encoded(arrays["ids"], arrays["mask"], arrays["labels"])
    return {name: data.rows(arrays["split"] == i) for i, name in enumerate(PARTS)}


def backbone_folder(folder: Path, kind: str, depth: int = DEPTH) -> Path:
    """Where a fine-tuned classifier lies."""
    return folder / f"{kind}-{depth}"


def new_classifier(encoder: Path, classes: int, depth: int) -> nn.Module:
    """The first layers of the encoder under a classifier that is not trained yet."""
    return _pretrained(encoder, num_labels=classes, num_hidden_layers=depth)


def load_classifier(folder: Path, kind: str, depth: int = DEPTH) -> nn.Module:
    """A fine-tuned classifier in eval mode.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    path = backbone_folder(folder, kind, depth)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a fine-tuned encoder, found none; "
            f"run: python bench/text backbones --out {folder} --kind {kind} --depth {depth}"
        )
    return _pretrained(path).eval()


def copy_tokenizer(encoder: Path, folder: Path) -> None:
    """Make a fine-tuned classifier a model that takes text: ``hf:FOLDER`` on the command line."""
    for path in [*encoder.glob("tokenizer*.json"), encoder / "vocab.txt"]:
        shutil.copy(path, folder)


def _pretrained(folder: Path, **options: int) -> nn.Module:
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()  # layers left out and the new classifier are no surprise
    logging.disable_progress_bar()
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    return model


@torch.inference_mode()
def accuracy(model: nn.Module, data: Encoded) -> float:
    """Share of samples whose class is right; batches of similar length, padding trimmed."""
    right, order = 0, data.mask.sum(1).argsort()
    for rows in order.split(64):
        batch = data.rows(rows).trimmed()
        right += int((model(**batch.inputs).logits.argmax(1) == batch.labels).sum())
    return right / len(data)
