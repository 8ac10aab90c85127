"""Arrays in npz files: inputs by name, labels, sets, and what does not fit the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_files import Mean, Tokens, images_for, load, refused, samples
from offramp.errors import InputError
from offramp.sources.models import SourceModel
from offramp.tasks import Regression


def arrays(count=50, dtype=np.float32):
    """Pictures (N, 3, 4, 4) with values 0 to 1 whose strongest channel is the label."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, count)
    x = random.random((count, 3, 4, 4)) / 2
    x[np.arange(count), y] += 0.5
    return x.astype(dtype), y


def strongest(inputs):
    return inputs.mean((2, 3)).argmax(1)


def test_arrays_in_one_set(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "a.npz", x=x, y=y)
    splits = load(f"npz:{tmp_path / 'a.npz'}", images_for())
    found = [samples(loader) for loader in (splits.train, splits.search, splits.report)]
    assert sum(len(labels) for _, labels in found) == 50
    for inputs, labels in found:
        assert torch.equal(strongest(inputs), labels)
        assert inputs.dtype == torch.float32
    assert splits.classes == 3


@pytest.mark.parametrize("form", ["{set}_x", "x_{set}", "{set}_images"])
def test_arrays_of_several_sets(tmp_path, form):
    x, y = arrays()
    label = "{set}_labels" if "images" in form else form.replace("x", "y")
    parts = {"train": slice(30), "val": slice(30, 40), "test": slice(40, 50)}
    named = {form.format(set=name): x[part] for name, part in parts.items()}
    named |= {label.format(set=name): y[part].reshape(-1, 1) for name, part in parts.items()}
    np.savez(tmp_path / "a.npz", **named)
    splits = load(f"npz:{tmp_path / 'a.npz'}", images_for())
    sizes = [len(samples(loader)[1]) for loader in (splits.train, splits.search, splits.report)]
    assert sizes == [30, 10, 10]
    assert torch.equal(strongest(samples(splits.report)[0]), samples(splits.report)[1])


def test_uint8_images_are_prepared_by_the_model(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "a.npz", x=(255 * x).astype(np.uint8).transpose(0, 2, 3, 1), y=y.astype(np.uint8))
    inputs, labels = samples(load(f"npz:{tmp_path / 'a.npz'}", images_for()).train)
    assert inputs.max() <= 1
    assert torch.equal(strongest(inputs), labels)
    assert labels.dtype == torch.int64
    refused(f"npz:{tmp_path / 'a.npz'}", SourceModel(Mean().eval()), "x is uint8, and the model does not say")


def test_float_images_are_checked_against_the_model(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "a.npz", x=255 * x, y=y)
    splits = load(f"npz:{tmp_path / 'a.npz'}", images_for())
    with pytest.raises(
        InputError, match=r"train: batch 0: images: expected .* they seem to be pixels of 0 to 255"
    ):
        next(iter(splits.train))


def test_arrays_by_the_names_of_the_model_and_no_labels(tmp_path):
    ids = np.random.default_rng(0).integers(0, 10, (20, 6)).astype(np.int32)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    source = SourceModel(Tokens().eval(), vocabulary=10)
    splits = load(f"npz:{tmp_path / 'a.npz'}", source)
    batch = next(iter(splits.train))
    assert batch["input_ids"].shape == (12, 6)
    assert batch["input_ids"].dtype == torch.int64
    small = load(f"npz:{tmp_path / 'a.npz'}", replace(source, vocabulary=9))
    with pytest.raises(InputError, match=r"token ids: expected 0 to 8 .* got 0 to 9"):
        next(iter(small.train))


def test_numbers_to_be_predicted(tmp_path):
    x, _ = arrays()
    np.savez(tmp_path / "a.npz", x=x, y=x.mean((1, 2, 3), dtype=np.float64))
    inputs, labels = samples(load(f"npz:{tmp_path / 'a.npz'}", images_for(1), Regression(scale=1.0)).train)
    torch.testing.assert_close(labels, inputs.mean((1, 2, 3)))


def test_arrays_that_do_not_fit(tmp_path):
    file, (x, y) = tmp_path / "a.npz", arrays()
    refused(f"npz:{file}", images_for(), f"no file {file}")
    file.write_bytes(b"nothing")
    refused(f"npz:{file}", images_for(), "a.npz cannot be read: ")
    for found, message in (
        ({"x": x, "y": y[:-1]}, r"expected arrays of one length, got \[49, 50\] rows"),
        ({"y": y}, "no inputs; expected an array x, or train_x and so on"),
        ({"x": x, "y": y + 5}, "expected labels 0 to 2 because the model has 3 outputs, got 5 to 7"),
        ({"x": x, "y": y - 1}, "got -1 to 1"),
        ({"x": np.array(["a"] * 50), "y": y}, "x: expected numbers, got <U1"),
        ({"x": np.array([None] * 50), "y": y}, "cannot be read: Object arrays cannot be loaded"),
        (
            {"x": x[:, :, 0], "y": y},
            r"calling the model with the first samples, .*\(2, 3, 4\).*, fails: IndexError",
        ),
        ({"test_x": x, "test_y": y}, "expected a set 'train', got test"),
    ):
        np.savez(file, **found)
        refused(f"npz:{file}", images_for(), message)
    np.save(tmp_path / "b.npy", x)
    refused(f"npz:{tmp_path / 'b.npy'}", images_for(), "is a single array; save x and y with numpy.savez")
