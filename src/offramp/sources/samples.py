"""Single samples as people have them, to a batch as a model takes it: images, texts, arrays, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import ArtifactError, InputError
from offramp.sources.arrays import plain_numbers
from offramp.sources.image_folders import load_images, to_8_bits
from offramp.sources.models import SourceModel, with_tokenizer
from offramp.sources.preprocessing import ImageInput, Transform
from offramp.sources.project import load_transform, with_stored
from offramp.sources.spec import Spec
from offramp.sources.summary import DataSummary, check_same_inputs

_TAKEN = "a PIL image, a path, a NumPy array or a tensor; for models of text a string or a pair of strings"


@dataclass(frozen=True)
class SampleReader:
    """How samples become what a model takes: as they did when its exits were trained.

    ``shape`` is that of the first input without the batch, ``dtype`` its type; ``images`` and ``length`` (in
    tokens) are None where nobody knows how the model takes images or texts.
    """

    source: SourceModel
    images: ImageInput | None
    length: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    def samples(self, given: Any) -> tuple[list[Any], bool]:
        """What is given as a list of single samples, and whether it was one alone."""
        if _is_alone(given):
            return [given], True
        if isinstance(given, Mapping):
            rows = {len(value) for value in given.values()}
            if len(rows) != 1:
                raise InputError(f"inputs by name: expected one number of samples, got {sorted(rows)}")
            return [{name: value[i] for name, value in given.items()} for i in range(rows.pop())], False
        if isinstance(given, (np.ndarray, Tensor)):
            one = (
                given.ndim <= len(self.shape) if not self._is_picture(given) else self._is_one_picture(given)
            )
            return ([given], True) if one else (list(given), False)
        if isinstance(given, Iterable):
            return list(given), False
        raise InputError(f"expected {_TAKEN}; or a list of such; got a {type(given).__name__}")

    def batch(self, samples: Sequence[Any]) -> Any:
        """B samples -> the inputs of the model; ``InputError``: one is not what it takes."""
        if all(isinstance(each, Mapping) for each in samples):
            return {name: torch.stack([_tensor(each[name]) for each in samples]) for name in samples[0]}
        if self.length is not None and all(_is_text(each) for each in samples):
            assert self.source.text is not None  # there is a length
            if len({isinstance(each, str) for each in samples}) > 1:
                raise InputError("expected texts, or pairs of texts; got both in one batch")
            return self.source.text.encode(
                [each if isinstance(each, str) else tuple(each) for each in samples], self.length
            )
        tensors = [self._image(each) for each in samples]
        shapes = sorted({tuple(each.shape) for each in tensors})
        if len(shapes) > 1:
            raise InputError(f"samples: expected one shape as the model takes them, got {shapes}; crop them")
        values = torch.stack(tensors)
        key = None if self.images is None else self.images.key
        inputs = values if key is None else {key: values}
        self.source.check(0, inputs)
        return inputs

    def _image(self, sample: Any) -> Tensor:
        """One sample that is no text, as a tensor without the batch."""
        if isinstance(sample, (np.ndarray, Tensor)):
            return self._array(sample)
        if self.images is None:
            what = "text" if isinstance(sample, str) else f"a {type(sample).__name__}"
            raise InputError(
                f"got {what}, and nobody knows how this model takes it; give arrays or tensors of shape "
                f"{self.shape}, name the model as it was built (model=), or give transform="
            )
        if not isinstance(sample, (str, Path)) and not hasattr(sample, "convert"):
            raise InputError(f"expected {_TAKEN}; got a {type(sample).__name__}")
        values: Tensor = load_images(self.images.transform, self.images.mode, None, self.dtype, [sample])[0]
        return values

    def _array(self, sample: Any) -> Tensor:
        array = plain_numbers(sample.detach().cpu().numpy() if isinstance(sample, Tensor) else sample)
        if self._is_picture(array):
            assert self.images is not None  # else it is no picture
            return self.images.of_array(to_8_bits(array) if array.dtype == np.uint16 else array).to(
                self.dtype
            )
        values = torch.from_numpy(np.array(array))
        if tuple(values.shape) != self.shape:
            last = len(self.shape) == 3 and tuple(values.shape) == (*self.shape[1:], self.shape[0])
            raise InputError(
                f"expected arrays of shape {self.shape}, or uint8 images; got {tuple(values.shape)}"
                + ("; channels come last: x.transpose(2, 0, 1)" if last else "")
            )
        return values.to(self.dtype)

    def _is_picture(self, array: Any) -> bool:
        """Whether an array holds pixels to be prepared, not numbers as the model takes them."""
        return self.images is not None and str(array.dtype).removeprefix("torch.") in ("uint8", "uint16")

    def _is_one_picture(self, array: Any) -> bool:
        channels = {array.shape[0], array.shape[-1]} & {1, 3, 4} if array.ndim == 3 else set()
        return array.ndim == 2 or bool(channels)


def sample_reader(
    source: SourceModel,
    stored: DataSummary | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    transform: Transform | None = None,
) -> SampleReader:
    """A reader that does what the build's data did (``stored``); ``transform`` is the caller's own.

    ``InputError``: the model prepares its inputs otherwise than the build did, or the build's transform is a
    function that is not here.
    """
    found = stored.inputs if stored is not None else {}
    if stored is not None and found.get("transform") and transform is None:
        spec, source = with_stored(Spec("ARTIFACT", "", "imagefolder", ""), source, stored)
        transform = load_transform(spec)
    images = source.images
    if transform is not None:
        size = (shape[0] if len(shape) == 3 else 3, 0, 0)
        images = replace(images, transform=transform) if images else ImageInput(transform, (), (), size)
    elif stored is not None and images is not None and found.get("kind") == "images":
        check_same_inputs("MODEL", stored, images.described())
    if found.get("kind") == "texts" and (source.text is None or "tokenizer=" in stored.data):  # type: ignore[union-attr]
        options = {"tokenizer": str(found.get("tokenizer_from", ""))}
        source = with_tokenizer(Spec("ARTIFACT", "", "csv", "", options), source)
    length = found.get("max_length", None if source.text is None else min(128, source.text.longest))
    if source.text is not None and stored is not None and found.get("kind") == "texts":
        check_same_inputs("MODEL", stored, source.text.described())
    if length is not None and (type(length) is not int or length < 1):
        raise ArtifactError(f"max_length of its data: expected a whole number above 0, got {length!r}")
    return SampleReader(source, images, length if source.text else None, shape, dtype)


def _is_alone(given: Any) -> bool:
    return isinstance(given, (str, Path)) or _is_pair(given) or hasattr(given, "convert")


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(each, str) for each in given)


def _is_text(sample: Any) -> bool:
    return isinstance(sample, str) or _is_pair(sample)


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(plain_numbers(value)))
