"""Folders of images: which files there are, and how one becomes 8 bits per channel, as models take them.

16-bit and floating-point images are scaled, images turned by their EXIF orientation, transparency dropped, as
``convert("RGB")`` does. What is no regular file is never opened: a pipe would be waited for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.core import counted, evenly
from offramp.errors import InputError
from offramp.sources.preprocessing import ImageInput
from offramp.sources.readings import Readings, Sample, left_out, place, reading, sets_among
from offramp.sources.spec import Spec, require

SUFFIXES = {
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "PPM", "WEBP", "TIFF", "GIF", "TGA", "AVIF")
"""What Pillow reads by itself: others start programs (EPS) or are rare."""
_NO_DATA = {"thumbs.db", "desktop.ini"}
_LOOKED_AT = 1000  # images whose headers are read for the notes
_DEPTHS = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


@dataclass
class Found:
    """Files below a folder: images by class, and what is not read."""

    classes: dict[str, list[Sample]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)


def read_image_folder(
    spec: Spec, images: ImageInput | None, transform: Callable[[Any], Tensor] | None, dtype: torch.dtype
) -> Readings:
    """Find the images of ``imagefolder:DIR``; of some the headers are read, none is decoded.

    ``InputError``: no such folder, no class folders, no images, something that may not be listed, or nobody
    knows how the model takes images.
    """
    root = place(spec)
    with reading(spec, root):
        if not root.is_dir():
            raise spec.error(f"no folder {root}")
    chosen = transform or (images.transform if images else None)
    if chosen is None:
        raise spec.error(
            "the model does not say how it takes images; name a function from a PIL image to a tensor "
            f"(C, H, W): imagefolder:{spec.name},transform=package.module:callable"
        )
    with reading(spec, root):
        folders, unused = _sets(root)
        found = {name: _classes(folder) for name, folder in folders.items()}
    for name, each in found.items():
        if not any(each.classes.values()):
            kinds = " ".join(sorted(SUFFIXES))
            raise spec.error(
                f"no images in {folders[name]}; expected a folder for each class with images in it ({kinds})"
            )
    mode, key = ("RGB", None) if images is None else (images.mode, images.key)
    warned = _left_out(found.values(), unused)
    return Readings(
        sets={name: each.classes for name, each in found.items()},
        read=partial(load_images, chosen, mode, key, dtype),
        prepared=transform is None,
        inputs={"kind": "images", **({} if images is None or transform else images.described())},
        notes=(*warned, *_conversions([path for each in found.values() for path in _paths(each)])),
        warned=warned,
    )


def _sets(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Folders of sets by name ("" for the only one), and names of folders beside them that are none.

    A folder called like a set is a class where it holds images and no folders, as "train" beside "bus" does.
    """
    folders = {entry.name: entry for entry in sorted(root.iterdir()) if _is_folder(entry)}
    sets = {name: folders[name] for name in sets_among(folders) if _holds_folders(folders[name])}
    if "train" in sets_among(sets).values() or (sets and len(sets) == len(folders)):
        return sets, [f"{name}/" for name in folders if name not in sets]
    return {"": root}, []


def _is_folder(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.is_dir()


def _holds_folders(folder: Path) -> bool:
    return any(map(_is_folder, folder.iterdir()))


def _classes(folder: Path) -> Found:
    found = Found()
    for entry in sorted(folder.iterdir()):
        _check_name(entry)
        if _is_folder(entry):
            found.classes[entry.name] = [(path, entry.name) for path in _images(entry, found)]
        elif _suffix(entry.name) in SUFFIXES and not entry.name.startswith("."):
            found.loose.append(str(entry))
    return found


def _images(folder: Path, found: Found) -> list[str]:
    """Images below a folder, in order; what else is there goes into ``found``."""
    images = []
    for entry in _files(folder, ()):
        if not entry.is_file():
            found.special.append(entry.path)
        elif _suffix(entry.name) in SUFFIXES:
            images.append(entry.path)
        elif entry.name.lower() not in _NO_DATA:
            found.others.append(entry.path)
    return sorted(images, key=lambda path: Path(path).parts)


def _files(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[os.DirEntry[str]]:
    """Everything below that is no folder and not hidden; links to folders are followed.

    ``InputError``: links in a circle, a link to nothing, or a name that is not UTF-8.
    """
    own = folder.stat()
    if (own.st_dev, own.st_ino) in above:
        raise InputError(f"{folder} is a link in a circle; remove it")
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name.startswith("."):
                continue
            _check_name(Path(entry.path))
            entry.stat()  # a link to nothing, or to itself, is an error
            if entry.is_dir():
                yield from _files(Path(entry.path), (*above, (own.st_dev, own.st_ino)))
            else:
                yield entry


def _check_name(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(path.name)
        raise InputError(f"a name in {path.parent} is not UTF-8: {raw!r}; rename it") from None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (millions of names)


def _paths(found: Found) -> Iterator[str]:
    return (path for samples in found.classes.values() for path, _ in samples)


def _left_out(found: Any, unused: Sequence[str]) -> tuple[str, ...]:
    others, special, loose = (
        [path for each in found for path in getattr(each, kind)] for kind in ("others", "special", "loose")
    )
    empty = [name for each in found for name, samples in each.classes.items() if not samples]
    kinds = Counter(_suffix(path) or "no ending" for path in others)
    why = f"not read as images ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common(6))})"
    return (
        *left_out(unused, "folder", "called neither train, val nor test"),
        *left_out(others, "file", why),
        *left_out(special, "special file", "a pipe, socket or device"),
        *left_out(loose, "image", "in no class's folder"),
        *left_out(empty, "folder", "without images"),
    )


@cache
def _pillow() -> tuple[Any, tuple[str, ...]]:
    """Pillow, and the formats that it may read here."""
    image = require("PIL.Image", "torchvision", "reading images")
    image.init()
    return image, tuple(name for name in _FORMATS if name in image.OPEN)


def open_image(path: Any) -> Any:
    """Open an image file, or a file object, of a format that Pillow reads by itself."""
    image, formats = _pillow()
    return image.open(path, formats=formats)


def _conversions(paths: Sequence[str]) -> tuple[str, ...]:
    """Notes on images that are not 8-bit pictures as they stand, by the headers of evenly chosen ones."""
    looked = [paths[i] for i in evenly(len(paths), _LOOKED_AT)]
    seen: Counter[str] = Counter()
    for path in looked:
        try:
            with open_image(path) as picture:
                seen.update(_kinds(picture))
        except Exception:
            continue
    of = f" of the {counted(len(looked), 'image')}" + (" looked at" if len(looked) < len(paths) else "")
    return tuple(f"{count:,}{of}: {what}" for what, count in sorted(seen.items()))


def _kinds(picture: Any) -> Iterator[str]:
    if picture.mode in _DEPTHS:
        yield f"{'floating point' if picture.mode == 'F' else '16-bit'}, scaled to 8 bits per channel"
    told = (
        picture.format != "PNG" or "exif" in picture.info
    )  # else Pillow decodes the whole image to find out
    if told and picture.getexif().get(0x0112, 1) not in (0, 1):
        yield "turned by their EXIF orientation"
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        yield "transparent in places, which is dropped"
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        yield "with several frames, of which the first is taken"
    if picture.mode in ("CMYK", "YCbCr", "LAB"):
        yield f"{picture.mode}, converted"


def load_images(
    transform: Callable[[Any], Tensor],
    mode: str,
    key: str | None,
    dtype: torch.dtype,
    pictures: Sequence[Any],
) -> Any:
    """B images, PIL's or paths of files -> (B, C, H, W), by the name ``key`` if there is one.

    ``mode`` is PIL's. ``InputError`` where one cannot be read, or comes out in another shape.
    """
    prepared = [transform(as_bytes(each, mode)) for each in pictures]
    shapes = {tuple(values.shape) for values in prepared}
    if len(shapes) > 1:
        raise InputError(f"images: expected one shape after the transform, got {sorted(shapes)}; crop them")
    values = torch.stack(prepared)
    values = values.to(dtype) if values.dtype.is_floating_point else values
    return values if key is None else {key: values}


def as_bytes(picture: Any, mode: str) -> Any:
    """An image, PIL's or the path of a file -> the same in a PIL ``mode`` of 8 bits per channel, upright.

    ``InputError``: it cannot be read, or its numbers are of no known scale.
    """
    try:
        if not isinstance(picture, (str, Path)):
            return _converted(picture, mode)
        with open_image(picture) as opened:
            return _converted(opened, mode)
    except InputError as error:
        raise InputError(f"{picture}: {error}") from error
    except Exception as error:  # each format's plugin has errors of its own
        raise InputError(f"{picture} cannot be read as an image: {error or type(error).__name__}") from error


def _converted(picture: Any, mode: str) -> Any:
    upright = require("PIL.ImageOps", "torchvision", "reading images").exif_transpose(picture)
    if upright.mode in _DEPTHS:
        upright = _pillow()[0].fromarray(to_8_bits(np.asarray(upright)))
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return upright.convert(mode)


def to_8_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pixels of 16 bits, or of 0 to 1, as uint8 of the same shape; ``InputError`` for any other scale."""
    if not values.size:
        raise InputError("expected pixels, got none")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"floating-point pixels: expected 0 to 1, got {low:.4g} to {high:.4g}; scale them, or save "
                "8 bits"
            )
        return np.asarray(np.rint(255 * values.astype(np.float64)), np.uint8)
    if low < 0 or high > 65535:
        raise InputError(f"16-bit pixels: expected 0 to 65535, got {low:.0f} to {high:.0f}; scale them")
    return np.asarray((values.astype(np.int64) + 128) // 257, np.uint8)
