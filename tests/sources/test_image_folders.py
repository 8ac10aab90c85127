"""Folders of images: which class a picture is of, splits, transforms, and files that cannot be read."""

import itertools
import os
import socket
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import COLOURS, Image, Mean, draw, images_for, load, refused, samples, to_tensor
from offramp.errors import InputError
from offramp.sources import DataWarning
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


def pictures(tmp_path, save, count=10):
    """Two classes, bright and dark, by a function (path without ending, bright) that saves one picture."""
    for name in ("bright", "dark"):
        (tmp_path / name).mkdir()
        for i in range(count):
            save(tmp_path / name / str(i), name == "bright")
    splits = load(f"imagefolder:{tmp_path}", images_for(2))
    inputs, labels = zip(
        *(samples(each) for each in (splits.train, splits.search, splits.report)), strict=True
    )
    return torch.cat(inputs).mean((1, 2, 3)), torch.cat(labels), splits.summary.notes


def grey(dtype, high, low):
    return lambda bright: Image.fromarray(np.full((6, 5), high if bright else low, dtype))


DEEP = {
    "16-bit png": (grey(np.uint16, 52000, 9000), "png"),
    "16-bit tiff": (grey(np.uint16, 52000, 9000), "tiff"),
    "16-bit big-endian tiff": (grey(">u2", 52000, 9000), "tif"),
    "32-bit tiff": (grey(np.int32, 52000, 9000), "tiff"),
    "float tiff": (grey(np.float32, 52 / 65.535, 9 / 65.535), "tif"),
    "16-bit pgm": (grey(np.uint16, 52000, 9000), "pgm"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_are_scaled_not_clipped(tmp_path, kind):
    make, ending = DEEP[kind]
    means, labels, notes = pictures(tmp_path, lambda path, bright: make(bright).save(f"{path}.{ending}"))
    wanted = torch.where(labels == 0, 52000 / 65535, 9000 / 65535)
    torch.testing.assert_close(means, wanted, atol=1 / 255, rtol=0)
    assert any("scaled to 8 bits per channel" in note for note in notes)


def test_rgb_of_16_bits_keeps_its_shades(tmp_path):
    def save(path, bright):
        value = (52000 if bright else 9000).to_bytes(2, "big")
        rows = b"".join(b"\x00" + value * 15 for _ in range(6))
        chunks = ((b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
        with open(f"{path}.png", "wb") as stream:  # noqa: PTH123 (Pillow writes no such file)
            stream.write(b"\x89PNG\r\n\x1a\n")
            for name, content in (*chunks, (b"IEND", b"")):
                check = struct.pack(">I", zlib.crc32(name + content))
                stream.write(struct.pack(">I", len(content)) + name + content + check)

    means, labels, _ = pictures(tmp_path, save)
    wanted = torch.where(labels == 0, 52000 / 65535, 9000 / 65535)
    torch.testing.assert_close(means, wanted, atol=2 / 255, rtol=0)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("LA", "png"),
        ("RGBA", "png"),
        ("P", "gif"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("YCbCr", "jpg"),
        ("L", "webp"),
    ],
)
def test_modes_of_all_kinds_keep_bright_and_dark(tmp_path, mode, ending):
    def save(path, bright):
        Image.new("RGB", (6, 5), (220,) * 3 if bright else (30,) * 3).convert(mode).save(f"{path}.{ending}")

    means, labels, notes = pictures(tmp_path, save)
    assert ((means > 0.5) == (labels == 0)).all()
    assert any("transparent in places" in note for note in notes) == ("A" in mode)


def test_a_palette_with_transparency(tmp_path):
    def save(path, bright):
        picture = Image.new("P", (6, 5), 1)
        picture.putpalette([0, 0, 0, *([220] * 3 if bright else [30] * 3)])
        picture.save(f"{path}.png", transparency=b"\x00\x80")

    means, labels, notes = pictures(tmp_path, save)
    assert ((means > 0.5) == (labels == 0)).all()
    assert notes == ("20 of the 20 images: transparent in places, which is dropped",)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            np.full((6, 5), 200, np.float32),
            "floating-point pixels: expected 0 to 1, got 200 to 200; scale them",
        ),
        (np.full((6, 5), np.nan, np.float32), "floating-point pixels: expected 0 to 1, got nan"),
        (np.full((6, 5), -1, np.int32), "16-bit pixels: expected 0 to 65535, got -1 to -1; scale them"),
        (np.full((6, 5), 10**6, np.int32), "16-bit pixels: expected 0 to 65535, got 1000000 to"),
    ],
)
def test_pixels_of_no_known_scale_are_refused(tmp_path, picture, message):
    with pytest.raises(InputError, match=rf"\d.tiff: {message}"):
        pictures(tmp_path, lambda path, _: Image.fromarray(picture).save(f"{path}.tiff"))


def test_images_are_turned_as_their_exif_says(tmp_path):
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = np.zeros((16, 16, 3), np.uint8)
            pixels[:, :8] = 255 if name == "left" else 0
            pixels[:, 8:] = 0 if name == "left" else 255
            turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)  # as a camera on its side
            exif = Image.Exif()
            exif[0x0112] = 6
            turned.save(tmp_path / name / f"{i}.jpg", exif=exif, quality=95)
    splits = load(f"imagefolder:{tmp_path}", images_for(2))
    inputs, labels = samples(splits.train)
    assert ((inputs[..., 0].mean((1, 2)) > 0.5) == (labels == 0)).all()
    assert splits.summary.notes == ("20 of the 20 images: turned by their EXIF orientation",)


@pytest.mark.parametrize("ending", ["gif", "jfif", "pgm", "ppm", "jpe", "tga", "dib", "apng", "TIF", "JPG"])
def test_endings_that_are_read(tmp_path, ending):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            form = {"jfif": "jpeg", "jpe": "jpeg", "jpg": "jpeg", "pgm": "ppm", "apng": "png", "tif": "tiff"}
            picture = Image.new("L" if ending == "pgm" else "RGB", (6, 5))
            picture.save(tmp_path / name / f"{i}.{ending}", form.get(ending.lower(), ending))
    splits = load(f"imagefolder:{tmp_path}", images_for(2))
    assert sum(splits.summary.splits.values()) == sum(len(samples(each)[1]) for each in (
        splits.train, splits.search, splits.report
    )) == 16  # fmt: skip


def test_what_is_left_out_is_counted_and_named(folder, monkeypatch):
    monkeypatch.chdir(folder / "blue")  # the path of a socket has to be short
    for name in ("one.heic", "two.heic", "notes.txt"):
        (folder / "red" / name).write_text("x")
    (folder / "red" / ".hidden.png").write_text("x")
    (folder / "red" / "Thumbs.db").write_text("x")
    (folder / "loose.png").write_text("x")
    (folder / "hollow").mkdir()
    os.mkfifo(folder / "green" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        with pytest.warns(DataWarning) as said:
            splits = load(f"imagefolder:{folder}", images_for())
    text = "\n".join(str(each.message) for each in said)
    assert "3 files are not used, not read as images (2 .heic, 1 .txt): " in text
    assert "2 special files are not used, a pipe, socket or device: " in text
    assert "1 image is not used, in no class's folder: " in text
    assert "1 folder is not used, without images: hollow" in text
    assert "pipe.png" in text
    assert ".hidden.png" not in text
    assert sum(splits.summary.splits.values()) == 60
    assert len(splits.summary.notes) == len(said)


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("Train", "Test"), {"train": 48, "search": 12, "report": 12}),
        (("training", "validation"), {"train": 60, "search": 6, "report": 6}),
        (("train", "eval"), {"train": 60, "search": 6, "report": 6}),
        (("TRAIN", "HoldOut"), {"train": 48, "search": 12, "report": 12}),
        (("train", "dev", "testing"), {"train": 60, "search": 12, "report": 12}),
    ],
)
def test_names_of_sets_in_any_case(tmp_path, names, sizes):
    for name, count in zip(names, (20, 4, 4), strict=False):
        for colour in COLOURS:
            draw(tmp_path / name / colour, colour, count, start=20 * names.index(name))
    assert load(f"imagefolder:{tmp_path}", images_for()).summary.splits == sizes


def test_folders_beside_the_sets_are_named(tmp_path):
    for name in ("train", "test", "extra"):
        for colour in COLOURS:
            draw(tmp_path / name / colour, colour, 8)
    with pytest.warns(DataWarning, match="1 folder is not used, called neither train, val nor test: extra/"):
        load(f"imagefolder:{tmp_path}", images_for())
    for name, message in (
        ("val", "expected a set 'train', got val"),
        ("validation", "both 'val' and 'valid"),
    ):
        other = tmp_path / f"of-{name}"
        for each in ("val", name, *(["train"] if name != "val" else [])):
            draw(other / each / "red", "red", 4)
        refused(f"imagefolder:{other}", images_for(), message)


def test_a_class_called_like_a_set_is_a_class(tmp_path):
    for name, colour in (("bus", "blue"), ("test", "green"), ("train", "red")):
        draw(tmp_path / name, colour, 8)
    splits = load(f"imagefolder:{tmp_path}", images_for())
    assert splits.summary.classes == {"bus": 0, "test": 1, "train": 2}


def test_links_are_followed_and_circles_are_refused(tmp_path, folder):
    (tmp_path / "linked").mkdir()
    for colour in COLOURS:
        (tmp_path / "linked" / colour).symlink_to(folder / colour)
    assert sum(load(f"imagefolder:{tmp_path / 'linked'}", images_for()).summary.splits.values()) == 60
    (folder / "red" / "again").symlink_to(folder / "red")
    refused(f"imagefolder:{folder}", images_for(), "again is a link in a circle; remove it")
    (folder / "red" / "again").unlink()
    (folder / "red" / "self.png").symlink_to(folder / "red" / "self.png")
    refused(f"imagefolder:{folder}", images_for(), "cannot be read: Too many levels of symbolic links")
    (folder / "red" / "self.png").unlink()
    (folder / "red" / "gone.png").symlink_to(folder / "nothing")
    refused(f"imagefolder:{folder}", images_for(), "cannot be read: No such file or directory")


@pytest.mark.parametrize("place", ["", "red"])
def test_names_that_are_not_utf8(folder, place):
    raw = os.fsencode(folder / place) + b"/caf\xe9"
    os.mkdir(raw) if not place else os.close(os.open(raw + b".png", os.O_CREAT))  # noqa: PTH102
    refused(f"imagefolder:{folder}", images_for(), r"a name in .* is not UTF-8: b'caf\\xe9.*'; rename it")


def test_a_folder_inside_that_may_not_be_listed(folder, monkeypatch):
    scan = os.scandir

    def forbidden(path):
        if Path(path).name == "red":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    refused(f"imagefolder:{folder}", images_for(), "cannot be read: Permission denied")


@pytest.mark.parametrize("name", ["x" * 300, "~nosuchuser/photos", "x/" * 3000])
def test_paths_that_the_system_does_not_have(name):
    refused(f"imagefolder:{name}", images_for(), "is no path here: .*; check it")
    refused(f"npz:{name}", images_for(), "is no path here: .*; check it")


def test_a_file_that_pillow_would_start_a_program_for(folder):
    (folder / "red" / "000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EOF")
    splits = load(f"imagefolder:{folder}", images_for())
    with pytest.raises(InputError, match=r"000.png cannot be read as an image: cannot identify"):
        list(itertools.chain(splits.train, splits.search, splits.report))


def test_names_given_in_the_order_of_the_outputs(folder):
    splits = load(f"imagefolder:{folder},classes=red/green/blue", images_for())
    inputs, labels = samples(splits.train)
    assert torch.equal(inputs.mean((2, 3)).argmax(1), labels)
    refused(f"imagefolder:{folder},classes=red/green", images_for(), "no class called 'blue'")
    refused(f"imagefolder:{folder},classes=red/red/blue", images_for(), "classes: expected distinct names")


def test_a_transform_that_fails_is_named(folder):
    def broken(picture):
        raise ZeroDivisionError(f"of {picture.mode}")

    message = "preparing the first samples fails: ZeroDivisionError: of RGB"
    refused(f"imagefolder:{folder}", images_for(), message, transform=broken)
