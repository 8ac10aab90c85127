"""Small files to read data from: pictures of one colour; and models that say how they take images or text."""

import numpy as np
import pytest
import torch
from torch import nn

from offramp.errors import InputError
from offramp.sources.datasets import DATA_SCHEMES, load_samples
from offramp.sources.models import SourceModel
from offramp.sources.preprocessing import ImageInput
from offramp.sources.spec import parse_spec
from offramp.tasks.base import make_task

Image = pytest.importorskip("PIL.Image")


COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def to_tensor(picture):
    """As a model's transform: resized, 0 to 1."""
    return torch.from_numpy(np.array(picture.resize((4, 4)))).permute(2, 0, 1).float() / 255


class Mean(nn.Module):
    """Mean colour (B, 3): a classifier of red, green and blue pictures."""

    def __init__(self, outputs=3):
        super().__init__()
        self.map = nn.Linear(3, outputs)

    def forward(self, pixel_values):
        return self.map(pixel_values.mean((2, 3)))


def images_for(outputs=3, classes=None, key=None):
    with torch.random.fork_rng():
        model = Mean(outputs).eval()
    images = ImageInput(to_tensor, (0.0,) * 3, (1.0,) * 3, (3, 4, 4), key)
    return SourceModel(model, images, classes=classes or {})


def load(text, source, task="classification", **more):
    task = make_task(task) if isinstance(task, str) else task
    return load_samples(parse_spec("DATA", text, DATA_SCHEMES), source, task, **more)


def refused(text, source, message, **more):
    with pytest.raises(InputError, match=message):
        load(text, source, **more)


def samples(loader):
    """All inputs (N, ...) and labels (N,) of a loader."""
    inputs, labels = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def draw(folder, colour, count, start=0):
    """Pictures of one colour, each a little darker than the last."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        shade = tuple(int(value * (1 - i / 100)) for value in COLOURS[colour])
        Image.new("RGB", (6, 5), shade).save(folder / f"{i:03}.png")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 2)

    def forward(self, input_ids, attention_mask):
        return (self.embed(input_ids) * attention_mask.unsqueeze(2)).sum(1)


class Words:
    """A tokenizer of whole words: a word's id is its length."""

    model_input_names = ("input_ids", "attention_mask")

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        ids = torch.zeros(len(texts), max_length, dtype=torch.int64)
        for i, text in enumerate(texts):
            for j, word in enumerate(text.split()[:max_length]):
                ids[i, j] = min(len(word), 9)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}
