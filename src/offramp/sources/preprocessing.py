"""How a model wants its inputs, from its own configuration, and a check of what it is given.

timm          data config of the model -> its evaluation transform
torchvision   weights.transforms()
Hugging Face  image processor; tokenizer, padded to one length
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.errors import InputError
from offramp.sources.spec import require

Transform = Callable[[Any], Tensor]
"""A PIL image to a tensor (C, H, W)."""


@dataclass(frozen=True)
class ImageInput:
    """How a model wants images.

    Args:
        transform: PIL image -> (C, H, W), of one size for all images.
        mean: of each channel, on a scale where pixels are 0 to 1; empty where not known.
        std: likewise.
        size: (C, H, W).
        key: name of the keyword that the model takes them by; None where it is the first argument.
        sure: whether the model was loaded with this configuration; else it may have been trained otherwise.
    """

    transform: Transform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int, int]
    key: str | None = None
    sure: bool = True

    @property
    def mode(self) -> str:
        """What PIL calls images of so many channels."""
        return "L" if self.size[0] == 1 else "RGB"

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value (C,) that a pixel can have."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (0 - mean) / std, (1 - mean) / std

    def check(self, index: int, batch: object) -> None:
        """Refuse a batch that cannot have been normalised as the model was trained.

        Half of the range is allowed on either side, for augmentation. Values that all lie in 0 to 1 where
        zero means another shade than black are possible, but not likely: a warning, on the first batch.

        Raises:
            InputError: values far out of range. A warning, where the configuration is not sure.
        """
        values = _first(batch, self.key)
        if not self.mean or not _is_image(values, len(self.mean)) or not bool(torch.isfinite(values).all()):
            return
        low, high = (bound.to(values) for bound in self.bounds())
        smallest, largest = values.amin((0, 2, 3)), values.amax((0, 2, 3))
        room = (high - low) / 2
        if bool((smallest < low - room).any() or (largest > high + room).any()):
            message = f"{self._range(values)}; {_cause(smallest, largest)}"
            if self.sure:
                raise InputError(f"{message}. If it was trained so, say mean= and std= with the model")
            if index == 0:
                warnings.warn(message, stacklevel=2)
        elif index == 0 and bool((low < -0.2).all()) and _between_0_and_1(smallest, largest):
            warnings.warn(
                f"{self._range(values)}; they seem to be scaled to 0 to 1 and not normalised: "
                f"subtract {_plain(self.mean)}, divide by {_plain(self.std)}",
                stacklevel=2,
            )

    def _range(self, values: Tensor) -> str:
        low, high = self.bounds()
        return (
            f"images: expected {float(low.min()):.2f} to {float(high.max()):.2f} by the model's own "
            f"configuration (mean {_plain(self.mean)}, std {_plain(self.std)}), "
            f"got {float(values.min()):.4g} to {float(values.max()):.4g}"
        )

    def of_array(self, pixels: Any) -> Tensor:
        """Prepare one image (H, W), (H, W, C) or (C, H, W) of uint8."""
        image = require("PIL.Image", "torchvision", "preparing images")
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[-1] not in (1, 3):
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        return self.transform(image.fromarray(pixels).convert(self.mode))


def _between_0_and_1(smallest: Tensor, largest: Tensor) -> bool:
    """All values are, and they are not all the same."""
    low, high = float(smallest.min()), float(largest.max())
    return 0 <= low < high <= 1


def _cause(smallest: Tensor, largest: Tensor) -> str:
    if float(largest.max()) > 20 and float(smallest.min()) >= 0:
        return "they seem to be pixels of 0 to 255: divide by 255 and normalise"
    return "normalise them as the model was trained"


def _plain(values: Sequence[float]) -> str:
    return "/".join(f"{value:.4g}" for value in values)


def _is_image(values: object, channels: int) -> bool:
    return (
        isinstance(values, Tensor)
        and values.ndim == 4
        and values.dtype.is_floating_point
        and values.shape[1] == channels
        and values.numel() > 0
    )


def _first(batch: object, key: str | None) -> Any:
    """The input called ``key`` of a loader's batch, or its first."""
    while isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if isinstance(batch, Mapping):
        return batch.get(key)
    return batch


@dataclass(frozen=True)
class TextInput:
    """How a model wants text.

    Args:
        tokenizer: of transformers.
        keys: inputs that the model takes.
        longest: most tokens that the model takes.
    """

    tokenizer: Any
    keys: tuple[str, ...]
    longest: int

    def encode(self, texts: Sequence[str], length: int) -> dict[str, Tensor]:
        """Texts to tensors (B, length) of int64, cut or padded."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return {key: tokens[key] for key in self.keys}


def check_tokens(batch: object, vocabulary: int) -> None:
    """Refuse a batch with token ids that the model has no embedding for.

    Raises:
        InputError: an id is negative, or at or above the size of the vocabulary.
    """
    ids = _first(batch, "input_ids")
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"token ids: expected 0 to {vocabulary - 1} because the model's embedding has {vocabulary} rows, "
            f"got {low} to {high}; use the tokenizer that the model was trained with"
        )


def timm_images(model: nn.Module, size: int | None = None, *, sure: bool = True) -> ImageInput:
    """From the data config of a timm model; ``size`` in pixels where it differs."""
    data = require("timm.data", "timm", "preparing images")
    args = None if size is None else {"input_size": (_channels(model), size, size)}
    config = data.resolve_model_data_config(model, args=args)
    return ImageInput(
        data.create_transform(**config, is_training=False),
        tuple(config["mean"]),
        tuple(config["std"]),
        tuple(config["input_size"]),
        sure=sure,
    )


def _channels(model: nn.Module) -> int:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return int((config.get("input_size") or (3,))[0])


def torchvision_images(weights: Any, size: int | None = None) -> ImageInput:
    """From the transforms of torchvision weights; ``size`` in pixels where it differs."""
    chosen = {} if size is None else {"crop_size": size, "resize_size": size}
    transform = weights.transforms(**chosen)
    crop = transform.crop_size[0]
    return ImageInput(transform, tuple(transform.mean), tuple(transform.std), (3, crop, crop))


def processor_images(processor: Any, key: str) -> ImageInput:
    """From a Hugging Face image processor; ``key`` is the model's name for images."""
    image, transform = require("PIL.Image", "torchvision", "preparing images"), _Processed(processor, key)
    channels, height, width = transform(image.new("RGB", (64, 48))).shape
    normal = getattr(processor, "do_normalize", False)
    mean = tuple(processor.image_mean) if normal else (0.0,) * channels
    std = tuple(processor.image_std) if normal else (1.0,) * channels
    if not np.isclose(getattr(processor, "rescale_factor", 1 / 255), 1 / 255):
        mean = std = ()  # a range of its own
    return ImageInput(transform, mean, std, (channels, height, width), key)


def renormalised(images: ImageInput, mean: Sequence[float], std: Sequence[float]) -> ImageInput:
    """The same images on another scale, for a model trained so."""
    channels = images.size[0]
    new_mean, new_std = (
        torch.tensor(values).expand(channels).reshape(-1, 1, 1) for values in (tuple(mean), tuple(std))
    )
    old_mean, old_std = (torch.tensor(values).reshape(-1, 1, 1) for values in (images.mean, images.std))
    return replace(
        images,
        transform=_Rescaled(images.transform, old_std / new_std, (old_mean - new_mean) / new_std),
        mean=tuple(new_mean.flatten().tolist()),
        std=tuple(new_std.flatten().tolist()),
    )


@dataclass(frozen=True)
class _Processed:
    """A Hugging Face image processor as a transform of one image."""

    processor: Any
    key: str

    def __call__(self, picture: Any) -> Tensor:
        prepared: Tensor = self.processor(images=picture, return_tensors="pt")[self.key][0]
        return prepared


@dataclass(frozen=True)
class _Rescaled:
    """A transform, then a linear map of each channel."""

    transform: Transform
    ratio: Tensor
    shift: Tensor

    def __call__(self, picture: Any) -> Tensor:
        return self.transform(picture) * self.ratio + self.shift


class Adapted(nn.Module):
    """A model for images as another model takes them: rescaled and resized before it sees them.

    Args:
        model: to be called.
        given: how the images come.
        wanted: how the model takes them.
    """

    def __init__(self, model: nn.Module, given: ImageInput, wanted: ImageInput) -> None:
        super().__init__()
        self.ratio: Tensor
        self.shift: Tensor
        self.model, self._key, self._size = model, wanted.key, wanted.size[1:]
        shape = (1, -1, 1, 1)
        ratio = torch.tensor(given.std) / torch.tensor(wanted.std)
        shift = (torch.tensor(given.mean) - torch.tensor(wanted.mean)) / torch.tensor(wanted.std)
        self.register_buffer("ratio", ratio.reshape(shape))
        self.register_buffer("shift", shift.reshape(shape))

    def forward(self, images: Tensor | None = None, **named: Tensor) -> Any:
        """The model's answer to images (B, C, H, W), however they are called."""
        values = images if images is not None else next(iter(named.values()))
        values = values * self.ratio + self.shift
        if values.shape[-2:] != self._size:
            values = nn.functional.interpolate(values, self._size, mode="bilinear", antialias=True)
        return self.model(values) if self._key is None else self.model(**{self._key: values})
