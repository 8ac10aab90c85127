"""Arrays in npz files: inputs by name, labels, sets, and what does not fit the model."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_files import Mean, Tokens, images_for, load, refused, samples
from offramp.errors import InputError
from offramp.sources.arrays import _meaning
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


@pytest.mark.parametrize(
    ("x", "y"), [("X_{}", "y_{}"), ("x_{}", "Y_{}"), ("{}_IMAGES", "{}_LABELS"), ("data_{}", "target_{}")]
)
def test_names_in_any_case(tmp_path, x, y):
    pixels, labels = arrays()
    named = {}
    for name, part in (("train", slice(30)), ("Test", slice(30, 50))):
        named |= {x.format(name): pixels[part], y.format(name): labels[part]}
    np.savez(tmp_path / "a.npz", **named)
    splits = load(f"npz:{tmp_path / 'a.npz'}", images_for())
    assert splits.summary.splits["report"] == 20
    inputs, found = samples(splits.report)
    assert torch.equal(strongest(inputs), found)


@pytest.mark.parametrize(
    "given", ["X_val", "x_valid", "dev_x", "validation_images", "eval_data", "x_holdout"]
)
def test_other_names_of_sets(tmp_path, given):
    pixels, labels = arrays()
    other = {"X_val": "y_val", "x_valid": "y_valid", "dev_x": "dev_y", "validation_images": "validation_y"}
    other |= {"eval_data": "eval_target", "x_holdout": "y_holdout"}
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, **{given: pixels, other[given]: labels})
    found = load(f"npz:{tmp_path / 'a.npz'}", images_for()).summary.splits
    fixed = {"report": 50} if "holdout" in given else {"train": 50}
    assert fixed.items() <= found.items()
    assert sum(found.values()) == 100


def test_names_of_the_models_own_inputs_are_left_alone():
    assert [
        _meaning(key) for key in ("attention_mask", "train_input_ids", "Trainable", "token_type_ids")
    ] == [
        ("", "attention_mask"),
        ("train", "input_ids"),
        ("", "Trainable"),
        ("", "token_type_ids"),
    ]


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.astype(">i8"),
        lambda y: y.astype(np.uint64),
        lambda y: y.astype(np.float64),
        lambda y: y.astype(np.longdouble),
        lambda y: np.eye(3)[y],
        lambda y: np.eye(3, dtype=bool)[y],
        lambda y: y[:, None].astype(np.uint8),
        lambda y: y.astype("S"),
        lambda y: np.array([b"Red", b"green ", b"BLUE"])[y],
        lambda y: np.array(["red", "green", "blue"])[y],
    ],
    ids=[
        "big-endian",
        "uint64",
        "float",
        "longdouble",
        "one-hot",
        "one-hot-bool",
        "column",
        "digits",
        "bytes",
        "text",
    ],
)
def test_labels_of_all_types(tmp_path, convert):
    x, y = arrays()
    np.savez(tmp_path / "a.npz", x=x, y=convert(y))
    known = (
        {"red": 0, "green": 1, "blue": 2} if convert(y).dtype.kind in "SU" and convert(y).itemsize > 1 else {}
    )
    splits = load(f"npz:{tmp_path / 'a.npz'}", images_for(classes=known))
    for loader in (splits.train, splits.search, splits.report):
        inputs, labels = samples(loader)
        assert labels.dtype == torch.int64
        assert torch.equal(strongest(inputs), labels)


@pytest.mark.parametrize("dtype", [">f4", np.float64, np.longdouble, np.float16])
def test_inputs_of_all_types(tmp_path, dtype):
    x, y = arrays(dtype=dtype)
    np.savez_compressed(tmp_path / "a.npz", x=np.asfortranarray(x), y=y)
    inputs, labels = samples(load(f"npz:{tmp_path / 'a.npz'}", images_for()).train)
    assert inputs.dtype == torch.float32
    assert torch.equal(strongest(inputs), labels)


def test_images_of_16_bits_are_scaled(tmp_path):
    x, y = arrays()
    for name, pixels in (("a", (65535 * x).astype(np.uint16)), ("b", (65535 * x).astype(">u2"))):
        np.savez(tmp_path / f"{name}.npz", x=pixels.transpose(0, 2, 3, 1), y=y)
        splits = load(f"npz:{tmp_path / name}.npz", images_for())
        inputs, labels = samples(splits.train)
        assert 0.9 < float(inputs.max()) <= 1
        assert torch.equal(strongest(inputs), labels)
        assert splits.summary.notes == ("16-bit images, scaled to 8 bits per channel",)
    np.savez(tmp_path / "c.npz", x=(255 * x).astype(np.uint16), y=y)
    refused(f"npz:{tmp_path / 'c.npz'}", images_for(), "x is uint16 with values up to 25.: nearly black")
    refused(
        f"npz:{tmp_path / 'a.npz'}", SourceModel(Mean().eval()), "x is uint16, and the model does not say"
    )


def test_a_set_without_labels(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_val=x)
    splits = load(f"npz:{tmp_path / 'a.npz'}", images_for())
    assert [len(batch) for batch in splits.search] == [25]  # inputs alone: the build says what is missing
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_val=x, y_val=np.array(["red"] * 50))
    refused(f"npz:{tmp_path / 'b.npz'}", images_for(), "labels are names in one set and numbers in another")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"y": np.array([2**64 - 1] * 50, np.uint64)}, "got 18446744073709551615 to 18446744073709551615"),
        ({"y": np.array(["9" * 31] * 50)}, "labels: expected classes, got the number 9999"),
        ({"y": np.linspace(0, 1, 50)}, r"expected classes, got the number 0\.0"),
        ({"y": np.full(50, np.nan)}, "labels: expected finite numbers, got NaN"),
        ({"y": np.array([b"\xff"] * 50)}, "cannot be read: 'utf-8' codec can't decode"),
        ({"y": np.zeros(50, "M8[s]")}, "labels: expected numbers or text, got datetime64"),
        ({"y": np.zeros(50, complex)}, "labels: expected numbers or text, got complex128"),
        ({"y": np.array([["a", "b"]] * 50)}, r"expected one name for each sample, got shape \(50, 2\)"),
        ({"y": np.array([None] * 50)}, "Object arrays cannot be loaded: nothing in a file is run"),
        ({"x": np.ones(50, np.uint8)}, r"expected shape \(H, W\), .* each, got \(\)"),
        ({"x": np.ones((50, 5), np.uint8)}, r"the first samples: images: expected shape .* each, got \(5,\)"),
        ({"x": np.ones((50, 5, 7, 9), np.uint8)}, r"each, got \(5, 7, 9\)"),
        ({"x": np.zeros((50, 0))}, r"expected samples, got an array of shape \(50, 0\), which holds nothing"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, r"got an array of shape \(0, 3\), which holds nothing"),
        ({"images": np.zeros(50)}, "'images' is a second array of inputs of the same set; keep one"),
        ({"LABEL": np.zeros(50), "y": np.zeros(50)}, "is a second array of labels of the same set"),
        ({"x": np.zeros(50, [("a", int)])}, r"x: expected numbers, got \[\('a'"),
        ({"x": np.full((50, 3, 4, 4), 2**64 - 1, np.uint64)}, r"expected numbers below 2\*\*63"),
        ({"x": np.zeros((50, 4, 4, 3), np.float32)}, r"channels come last: save \(N, C, H, W\)"),
    ],
)
def test_arrays_of_other_kinds_are_one_message(tmp_path, found, message):
    x, y = arrays()
    np.savez(tmp_path / "a.npz", **({"x": x, "y": y} | found))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    refused(f"npz:{tmp_path / 'a.npz'}", replace(images_for(), model=model.eval()), message)


def member(header, content=b"", version=b"\x01\x00"):
    text = header.encode().ljust(118 - len(b"\n")) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (member("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000,)}"), "needs 40,0"),
        (member("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "cannot be read"),
        (member("{'descr': '<U0', 'fortran_order': False, 'shape': (10000000000000,)}"), "have no size"),
        (member("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"x"), "Object arrays"),
        (member("{'descr': __import__('os'), 'fortran_order': False, 'shape': ()}"), "cannot be read"),
        (member("{'descr': '<f4'}"), "cannot be read"),
        (member("((((", version=b"\x01\x00"), "cannot be read"),
        (member("{}", version=b"\x09\x00"), "cannot be read"),
        (member("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 0)}"), "holds nothing"),
        (b"\x93NUMPY", "cannot be read"),
        (b"no array", "cannot be read"),
        (b"", "cannot be read"),
    ],
)  # fmt: skip
def test_members_that_are_not_what_they_say(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused(f"npz:{tmp_path / 'a.npz'}", images_for(), message)


def test_archives_that_numpy_does_not_write(tmp_path):
    file, (x, y) = tmp_path / "a.npz", arrays()
    np.savez(file, x=x, y=y)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("readme.txt", "hello")
    refused(f"npz:{file}", images_for(), "'readme.txt' is no array; expected files of numpy.savez only")
    np.savez(file, x=x, y=y)
    whole = bytearray(file.read_bytes())
    encrypted = whole.copy()
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = encrypted.find(mark)
        encrypted[at + offset] |= 1
    file.write_bytes(encrypted)
    refused(f"npz:{file}", images_for(), "'x.npy' is encrypted; save it without a password")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", b"x")
    refused(f"npz:{file}", images_for(), "'x.npy' is compressed in an unknown way")
    np.savez_compressed(file, x=x, y=y)
    packed = bytearray(file.read_bytes())
    for cut in (packed[: len(packed) // 2], b"PK\x03\x04" + packed[4:100]):
        file.write_bytes(cut)
        refused(f"npz:{file}", images_for(), "a.npz cannot be read")
    for at in (60, 200, 500):
        flipped = packed.copy()
        flipped[at] ^= 0xFF
        file.write_bytes(flipped)
        refused(f"npz:{file}", images_for(), "cannot be read|would be")


def test_more_than_memory_is_refused_before_it_is_asked_for(tmp_path, monkeypatch):
    file, (x, y) = tmp_path / "a.npz", arrays()
    np.savez(file, x=x, y=y)
    monkeypatch.setattr("offramp.sources.arrays._memory", lambda: 1000)
    refused(f"npz:{file}", images_for(), "memory has no room for; give fewer samples")
