"""Folders of images: which class a picture is of, splits, transforms, and files that cannot be read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_files import COLOURS, Mean, draw, images_for, load, refused, samples, to_tensor
from offramp.errors import InputError
from offramp.sources.models import SourceModel


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
