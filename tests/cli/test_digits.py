from __future__ import annotations

import sys

import pytest
import torch

from offramp.cli.digits import (
    CANVAS,
    SPLITS,
    DigitsResNet,
    augmented,
    batches,
    load_digits,
    train_backbone,
)
from offramp.errors import MissingExtraError


def rows(images: torch.Tensor) -> list[tuple[float, ...]]:
    return [tuple(image.flatten().tolist()) for image in images]


def test_splits_are_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits as bundled

    digits = load_digits()
    parts = {name: getattr(digits, name) for name in SPLITS}
    assert {name: len(images) for name, (images, _) in parts.items()} == SPLITS
    images = torch.cat([images for images, _ in parts.values()])
    labels = torch.cat([labels for _, labels in parts.values()])
    x, y = bundled(return_X_y=True)
    original = [(*row, label) for row, label in zip((x / 16).tolist(), y.tolist(), strict=True)]
    found = [(*row, label) for row, label in zip(rows(images), labels.tolist(), strict=True)]
    assert len(set(original)) == len(original)  # no image twice: equal sets means disjoint splits
    assert sorted(found) == sorted(original)


def test_same_seed_same_split(untouched_random_state: None) -> None:
    first, again, other = load_digits(0), load_digits(0), load_digits(1)
    assert torch.equal(first.report[0], again.report[0])
    assert not torch.equal(first.report[0], other.report[0])


def test_augmented_is_always_the_same(untouched_random_state: None) -> None:
    data = (torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(5))
    images, labels = augmented(data, views=3)
    assert images.shape == (15, 1, CANVAS, CANVAS)
    assert labels.tolist() == [0, 1, 2, 3, 4] * 3
    assert torch.equal(augmented(data, views=3)[0], images)
    assert not torch.equal(augmented(data, views=3, seed=1)[0], images)
    assert not torch.equal(images[:5], images[5:10])


def test_batches_come_in_fixed_order() -> None:
    data = (torch.rand(5, 1, 2, 2), torch.arange(5))
    assert [labels.tolist() for _, labels in batches(data, 2)] == [[0, 1], [2, 3], [4]]


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "offramp\[demo\]"'):
        load_digits()


def test_training_is_deterministic_and_learns(untouched_random_state: None) -> None:
    images, labels = load_digits().train
    done: list[int] = []
    model = train_backbone((images[:192], labels[:192]), epochs=2, advance=done.append)
    again = train_backbone((images[:192], labels[:192]), epochs=2)
    assert done == [1, 2]
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert isinstance(model, DigitsResNet)
    assert model(torch.zeros(2, 1, CANVAS, CANVAS)).shape == (2, 10)
