"""Data by name: what becomes a sample, which class it is, and what is refused before any work."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offramp.errors import InputError
from offramp.sources.datasets import DATA_SCHEMES, load_samples
from offramp.sources.models import SourceModel
from offramp.sources.preprocessing import ImageInput, TextInput
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


@pytest.fixture
def folder(tmp_path):
    for colour in COLOURS:
        draw(tmp_path / "one" / colour, colour, 20)
    return tmp_path / "one"


def is_of(inputs, labels):
    """Whether each picture has the colour of its label; classes in alphabetical order."""
    return inputs.mean((2, 3)).argmax(1) == 2 - labels


def test_one_folder_of_images_becomes_three_disjoint_splits(folder):
    splits = load(f"imagefolder:{folder},batch=8", images_for())
    found = {name: samples(getattr(splits, name)) for name in ("train", "search", "report")}
    assert {name: len(labels) for name, (_, labels) in found.items()} == {
        "train": 36,
        "search": 12,
        "report": 12,
    }
    for inputs, labels in found.values():
        assert is_of(inputs, labels).all()
        assert set(labels.tolist()) == {0, 1, 2}
    every = torch.cat([inputs.flatten(1) for inputs, _ in found.values()])
    assert len(every.unique(dim=0)) == 60
    assert splits.example.shape == (2, 3, 4, 4)
    assert len(next(iter(splits.train))[0]) == 8


def test_the_order_is_fixed_by_the_seed(folder):
    one, two = (samples(load(f"imagefolder:{folder}", images_for()).train) for _ in range(2))
    assert torch.equal(one[0], two[0])
    splits = load(f"imagefolder:{folder},workers=1,batch=7", images_for())
    for _ in range(2):
        assert torch.equal(samples(splits.train)[0], one[0])
    other = samples(load(f"imagefolder:{folder},seed=1", images_for()).train)
    assert not torch.equal(other[0], one[0])


def test_the_global_random_state_is_left_alone(folder, untouched_random_state):
    samples(load(f"imagefolder:{folder}", images_for()).train)


def test_images_are_read_when_they_are_needed(folder):
    opened = []

    def spy(picture):
        opened.append(picture)
        return to_tensor(picture)

    source = images_for()
    splits = load(
        f"imagefolder:{folder},batch=5", replace(source, images=replace(source.images, transform=spy))
    )
    assert len(opened) == 2  # the example
    next(iter(splits.train))
    assert len(opened) == 7


@pytest.mark.parametrize(
    ("names", "sizes"), [(("train", "val"), (60, 6, 6)), (("train", "val", "test"), (60, 12, 12))]
)
def test_folders_that_are_divided_already(tmp_path, names, sizes):
    for name, count in zip(names, (20, 4, 4), strict=False):
        for colour in COLOURS:
            draw(tmp_path / name / colour, colour, count, start=20 * names.index(name))
    splits = load(f"imagefolder:{tmp_path}", images_for())
    found = [samples(loader)[1] for loader in (splits.train, splits.search, splits.report)]
    assert tuple(map(len, found)) == sizes
    if len(names) == 2:  # val is halved class by class
        assert all(labels.bincount().tolist() == [2, 2, 2] for labels in found[1:])


def test_a_limit_for_each_split(folder):
    splits = load(f"imagefolder:{folder},limit=9/6/3", images_for())
    found = [samples(loader)[1] for loader in (splits.train, splits.search, splits.report)]
    assert [labels.bincount().tolist() for labels in found] == [[3] * 3, [2] * 3, [1] * 3]
    assert len(samples(load(f"imagefolder:{folder},limit=1", images_for()).train)[1]) == 1
    refused(
        f"imagefolder:{folder},limit=1/2", images_for(), "limit: expected a whole number above 0, or three"
    )
    refused(f"imagefolder:{folder},limit=0.5", images_for(), "limit: expected a whole number")


def test_names_of_classes_that_the_model_knows(folder):
    known = {"red": 4, "green": 2, "blue": 7, "white": 0}
    inputs, labels = samples(load(f"imagefolder:{folder}", images_for(8, known)).train)
    assert torch.equal(labels, torch.tensor([4, 2, 7])[inputs.mean((2, 3)).argmax(1)])


def test_another_number_of_classes_is_refused_before_the_work(folder):
    message = r"expected 10 classes because the model has 10 outputs, got 3 \(blue, green, red\)"
    refused(f"imagefolder:{folder}", images_for(10), message)
    refused(
        f"imagefolder:{folder}", images_for(2), "expected 2 classes because the model has 2 outputs, got 3"
    )


def test_a_model_that_takes_images_by_name(folder):
    splits = load(f"imagefolder:{folder}", images_for(key="pixel_values"))
    inputs, labels = next(iter(splits.train))
    assert is_of(inputs["pixel_values"], labels).all()
    assert splits.example["pixel_values"].shape == (2, 3, 4, 4)


def test_samples_come_in_the_type_of_the_model(folder):
    source = images_for()
    source.model.to(torch.bfloat16)
    assert load(f"imagefolder:{folder}", source).example.dtype == torch.bfloat16


def test_a_transform_of_ones_own(folder):
    plain = SourceModel(Mean().eval())
    splits = load(f"imagefolder:{folder}", plain, transform=to_tensor)
    assert is_of(*samples(splits.train)).all()
    refused(
        f"imagefolder:{folder}",
        plain,
        r"does not say how it takes images; .*,transform=package.module:callable",
    )
    # what it gives is checked against the model's own range
    bad = load(f"imagefolder:{folder}", images_for(), transform=lambda picture: 255 * to_tensor(picture))
    with pytest.raises(
        InputError, match=r"DATA .*: train: batch 0: images: expected 0.00 to 1.00 .* 0 to 255"
    ):
        next(iter(bad.train))


def test_folders_that_are_no_image_folders(tmp_path, folder):
    refused(f"imagefolder:{tmp_path / 'none'}", images_for(), f"no folder {tmp_path / 'none'}")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    refused(
        f"imagefolder:{tmp_path / 'hollow'}",
        images_for(),
        r"no images in .*hollow; expected a folder for each",
    )
    (tmp_path / "two" / "train" / "cat").mkdir(parents=True)
    refused(f"imagefolder:{tmp_path / 'two'}", images_for(), "no images in .*two/train")


def test_an_image_that_cannot_be_read_is_named(folder):
    splits = load(f"imagefolder:{folder},batch=60", images_for())
    for file in sorted((folder / "red").iterdir()):
        file.write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"train: batch 0: .*red/\d\d\d.png cannot be read as an image: cannot id"
    ):
        list(splits.train)


def test_a_worker_says_the_same(folder):
    splits = load(f"imagefolder:{folder},batch=60,workers=1", images_for())
    for file in sorted((folder / "red").iterdir()):
        file.write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"^DATA \S+: train: batch 0: \S+red/\d+.png cannot be read as an image"
    ):
        list(splits.train)


def test_images_of_several_shapes(folder):
    def uncropped(picture):
        return to_tensor(picture)[:, : 2 + picture.getpixel((0, 0))[0] % 2]

    with pytest.raises(
        InputError, match=r"expected one shape after the transform, got \[\(3, 2, 4\), \(3, 3, 4\)\]"
    ):
        list(load(f"imagefolder:{folder}", images_for(), transform=uncropped).train)


def test_a_folder_that_may_not_be_listed(folder, monkeypatch):
    def forbidden(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    refused(f"imagefolder:{folder}", images_for(), f"{folder} cannot be read: Permission denied")


# npz


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


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 2)

    def forward(self, input_ids, attention_mask):
        return (self.embed(input_ids) * attention_mask.unsqueeze(2)).sum(1)


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
    inputs, labels = samples(load(f"npz:{tmp_path / 'a.npz'}", images_for(1)).train)
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


# csv


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


def text_source(classes=None):
    text = TextInput(Words(), ("input_ids", "attention_mask"), 12)
    return SourceModel(Tokens().eval(), text=text, vocabulary=10, classes=classes or {})


def write(path, rows, columns=("body", "stars")):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


@pytest.fixture
def reviews(tmp_path):
    """Label "good" where the first word has four letters, "bad" where it has three."""
    rows = [
        (f"{'good' if i % 3 else 'bad'} film, {'very ' * i}", "good" if i % 3 else "bad") for i in range(30)
    ]
    return write(tmp_path / "reviews.csv", rows)


def test_a_table_of_texts(reviews):
    splits = load(f"csv:{reviews},text=body,label=stars,max_length=5", text_source())
    for loader in (splits.train, splits.search, splits.report):
        for inputs, labels in loader:
            assert inputs["input_ids"].shape == (len(labels), 5)
            assert torch.equal(inputs["input_ids"][:, 0] - 3, labels)  # bad is 0, good is 1
    assert splits.example["attention_mask"].shape == (2, 5)
    known = load(f"csv:{reviews},text=body,label=stars", text_source({"good": 0, "bad": 1}))
    inputs, labels = next(iter(known.train))
    assert torch.equal(4 - inputs["input_ids"][:, 0], labels)
    assert inputs["input_ids"].shape[1] == 12  # all that the model takes, at most 128


def test_texts_that_are_twice_there_are_in_one_split(tmp_path):
    path = write(tmp_path / "a.csv", [(f"word {'x ' * (i % 9)}", i % 2) for i in range(200)])
    splits = load(f"csv:{path},text=body,label=stars,batch=500,max_length=10", text_source())
    lengths = [
        {(int(mask.sum()), int(label)) for mask, label in zip(inputs["attention_mask"], labels, strict=True)}
        for loader in (splits.train, splits.search, splits.report)
        for inputs, labels in loader
    ]
    assert not lengths[0] & lengths[1] | lengths[1] & lengths[2] | lengths[0] & lengths[2]


def test_a_column_says_the_split_and_a_folder_has_files(tmp_path):
    rows = [("good film", i % 2, name) for name in ("train", "val", "test") for i in range(4)]
    path = write(tmp_path / "a.csv", rows, ("text", "label", "part"))
    splits = load(f"csv:{path},split=part", text_source())
    assert [len(next(iter(loader))[1]) for loader in (splits.train, splits.search, splits.report)] == [
        4,
        4,
        4,
    ]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", [(f"good {'x ' * i}", i % 2) for i in range(10)], ("text", "label"))
    splits = load(f"csv:{tmp_path}", text_source())
    assert [len(next(iter(loader))[1]) for loader in (splits.train, splits.search, splits.report)] == [
        8,
        2,
        10,
    ]


def test_tabs_and_long_texts_and_no_labels(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tother\n" + "".join(f"{'x' * 200_000} {i}\t1\n" for i in range(10)))
    limit = csv.field_size_limit()
    batch = next(iter(load(f"csv:{tmp_path / 'a.tsv'}", text_source()).train))
    assert batch["input_ids"].shape == (6, 12)
    assert csv.field_size_limit() == limit


def test_tables_that_do_not_fit(reviews, tmp_path):
    text = f"csv:{reviews},text=body,label=stars"
    plain = SourceModel(Tokens().eval())
    refused(f"csv:{tmp_path / 'none.csv'}", text_source(), "no file .*none.csv")
    (tmp_path / "hollow").mkdir()
    refused(f"csv:{tmp_path / 'hollow'}", text_source(), "no train.csv in .*hollow")
    refused(f"csv:{reviews}", text_source(), r"has no column 'text'; it has body, stars. Say text=COLUMN")
    message = r"has no column 'star' \(did you mean 'stars'\?\); it has body, stars. Say label=COLUMN"
    refused(f"csv:{reviews},text=body,label=star", text_source(), message)
    refused(f"{text},max_length=13", text_source(), "max_length: the model takes at most 12 tokens, got 13")
    refused(
        text, plain, r"does not say how it takes text; name a tokenizer \(tokenizer=DIR\), or give tokenized"
    )
    refused(text, replace(plain, fault="MODEL x: no tokenizer in y"), "MODEL x: no tokenizer in y")
    write(tmp_path / "three.csv", [(f"good {i}", "abc"[i % 3]) for i in range(9)])
    message = r"expected 2 classes because the model has 2 outputs, got 3 \(a, b, c\)"
    refused(f"csv:{tmp_path / 'three.csv'},text=body,label=stars", text_source(), message)
    write(tmp_path / "short.csv", [("good", "1"), ("bad",)])
    refused(
        f"csv:{tmp_path / 'short.csv'},text=body,label=stars", text_source(), "line 3: expected 2 columns"
    )
    (tmp_path / "latin.csv").write_bytes(b"body,stars\nsch\xf6n,1\n")
    refused(
        f"csv:{tmp_path / 'latin.csv'},text=body,label=stars",
        text_source(),
        "latin.csv cannot be read: 'utf-8'",
    )


def test_ratings_to_be_predicted(tmp_path):
    from offramp.tasks.regression import Regression

    path = write(tmp_path / "a.csv", [(f"good {'x ' * i}", i) for i in range(10)])
    splits = load(f"csv:{path},text=body,label=stars", text_source(), task=Regression(scale=1.0))
    inputs, labels = next(iter(splits.train))
    torch.testing.assert_close(inputs["attention_mask"].sum(1) - 1.0, labels)
