"""How a model wants its inputs, from its own configuration, and a check of what it is given."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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

    ``transform`` gives images of one ``size`` (C, H, W); ``mean`` and ``std`` of each channel are on a scale
    where pixels are 0 to 1, and empty where not known. ``key`` is the keyword that the model takes images by,
    None where they are its first argument. ``certain``: it was loaded with this configuration; else it may
    have been trained otherwise.
    """

    transform: Transform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int, int]
    key: str | None = None
    certain: bool = True

    @property
    def mode(self) -> str:
        """What PIL calls images of so many channels."""
        return "L" if self.size[0] == 1 else "RGB"

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value (C,) that a pixel can have."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (0 - mean) / std, (1 - mean) / std

    def check(self, index: int, batch: object) -> None:
        """Refuse a batch that cannot have been normalised as the model was trained: ``InputError``.

        Half of the range is allowed on either side, for augmentation. Values that all lie in 0 to 1 where
        zero means another shade than black are possible, but not likely: a warning, on the first batch, as
        for values out of range where the configuration is not certain.
        """
        values = _first(batch, self.key)
        if not self.mean or not _is_image(values, len(self.mean)) or not bool(torch.isfinite(values).all()):
            return
        low, high = (bound.to(values) for bound in self.bounds())
        smallest, largest = values.amin((0, 2, 3)), values.amax((0, 2, 3))
        least, most = float(smallest.min()), float(largest.max())
        mean, std = ("/".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        message = (
            f"images: expected {float(low.min()):.2f} to {float(high.max()):.2f} by the model's own "
            f"configuration (mean {mean}, std {std}), got {least:.4g} to {most:.4g}; "
        )
        room = (high - low) / 2
        if bool((smallest < low - room).any() or (largest > high + room).any()):
            raw = most > 20 and least >= 0
            message += (
                "they seem to be pixels of 0 to 255: divide by 255 and normalise"
                if raw
                else "normalise them as the model was trained"
            )
            if self.certain:
                raise InputError(f"{message}. If it was trained so, say mean= and std= with the model")
        elif bool((low < -0.2).all()) and 0 <= least < most <= 1:  # and not all the same
            message += (
                f"they seem to be scaled to 0 to 1 and not normalised: subtract {mean}, divide by {std}"
            )
        else:
            return
        if index == 0:
            warnings.warn(message, stacklevel=2)

    def of_array(self, pixels: Any) -> Tensor:
        """Prepare one image (H, W), (H, W, C) or (C, H, W) of uint8; ``InputError`` for another shape."""
        image = require("PIL.Image", "torchvision", "preparing images")
        shape = tuple(pixels.shape)
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[-1] not in (1, 3):
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[-1] not in (2, 3, 4)):
            raise InputError(f"images: expected shape (H, W), (H, W, C) or (C, H, W) each, got {shape}")
        return self.transform(image.fromarray(pixels).convert(self.mode))

    def described(self) -> dict[str, Any]:
        """What tells this preparation from another, as plain values; "steps" for people to read."""
        steps = self.transform.func.__name__ if isinstance(self.transform, partial) else repr(self.transform)
        return {
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
            "size": [int(value) for value in self.size],
            "key": self.key,
            "steps": " ".join((steps if " at 0x" not in steps else type(self.transform).__name__).split()),
        }

    def rescaling(self, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Factor and offset (C, 1, 1) from this normalisation to one by another mean and std."""
        old_mean, old_std, new_mean, new_std = (
            torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std, mean, std)
        )
        return old_std / new_std, (old_mean - new_mean) / new_std


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
    return batch.get(key) if isinstance(batch, Mapping) else batch


@dataclass(frozen=True)
class TextInput:
    """How a model wants text: by a tokenizer of transformers, its inputs by name, at most so many tokens.

    ``name`` is where the tokenizer is from.
    """

    tokenizer: Any
    keys: tuple[str, ...]
    longest: int
    name: str = ""

    def encode(self, texts: Sequence[str | tuple[str, str]], length: int) -> dict[str, Tensor]:
        """Texts, or pairs of them, to tensors (B, length) of int64, cut or padded.

        Pairs come with "token_type_ids", by which a model tells one text from the other, if it has such.
        """
        options = {
            "padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"
        }  # fmt: skip
        if isinstance(texts[0], str):
            tokens = self.tokenizer(list(texts), **options)
            return {key: tokens[key] for key in self.keys}
        first, second = (list(part) for part in zip(*texts, strict=True))
        tokens = self.tokenizer(first, second, **options)
        types = ("token_type_ids",) * ("token_type_ids" in self.tokenizer.model_input_names)
        return {key: tokens[key] for key in (*self.keys, *types)}

    def described(self) -> dict[str, Any]:
        """What tells this tokenizer from another, as plain values: a digest of its words, and its place."""
        words: Any = getattr(self.tokenizer, "get_vocab", dict)()
        digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
        return {"tokenizer": digest[:12], "tokenizer_from": self.name}


def check_tokens(batch: object, vocabulary: int) -> None:
    """Refuse a batch with token ids that the model has no embedding for: ``InputError``."""
    ids = _first(batch, "input_ids")
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"token ids: expected 0 to {vocabulary - 1} because the model's embedding has {vocabulary} rows, "
            f"got {low} to {high}; use the tokenizer that the model was trained with"
        )


def timm_images(model: nn.Module, size: int | None = None, *, certain: bool = True) -> ImageInput:
    """From the data config of a timm model; ``size`` in pixels where it differs."""
    data = require("timm.data", "timm", "preparing images")
    own: Any = getattr(model, "pretrained_cfg", None) or {}
    channels = int((own.get("input_size") or (3,))[0])
    args = None if size is None else {"input_size": (channels, size, size)}
    config = data.resolve_model_data_config(model, args=args)
    transform = data.create_transform(**config, is_training=False)
    mean, std, shape = (tuple(config[name]) for name in ("mean", "std", "input_size"))
    return ImageInput(transform=transform, mean=mean, std=std, size=shape, certain=certain)


def torchvision_images(weights: Any, size: int | None = None) -> ImageInput:
    """From the transforms of torchvision weights; ``size`` in pixels where it differs."""
    chosen = {} if size is None else {"crop_size": size, "resize_size": size}
    transform = weights.transforms(**chosen)
    crop = transform.crop_size[0]
    return ImageInput(
        transform=transform, mean=tuple(transform.mean), std=tuple(transform.std), size=(3, crop, crop)
    )


def processor_images(processor: Any, key: str) -> ImageInput:
    """From a Hugging Face image processor; ``key`` is the model's name for images."""
    image = require("PIL.Image", "torchvision", "preparing images")
    transform = partial(_processed, processor, key)
    channels, height, width = transform(image.new("RGB", (64, 48))).shape
    normal = getattr(processor, "do_normalize", False)
    mean = tuple(processor.image_mean) if normal else (0.0,) * channels
    std = tuple(processor.image_std) if normal else (1.0,) * channels
    if not np.isclose(getattr(processor, "rescale_factor", 1 / 255), 1 / 255):
        mean = std = ()  # a range of its own
    return ImageInput(transform=transform, mean=mean, std=std, size=(channels, height, width), key=key)


def renormalised(images: ImageInput, mean: Sequence[float], std: Sequence[float]) -> ImageInput:
    """The same images on another scale, for a model trained so; one number is for all channels."""
    mean, std = (tuple(torch.tensor(v).expand(images.size[0]).tolist()) for v in (tuple(mean), tuple(std)))
    factor, offset = images.rescaling(mean, std)
    return replace(images, transform=partial(_rescaled, images.transform, factor, offset), mean=mean, std=std)


def _processed(processor: Any, key: str, picture: Any) -> Tensor:
    """A Hugging Face image processor as a transform of one image."""
    prepared: Tensor = processor(images=picture, return_tensors="pt")[key][0]
    return prepared


def _rescaled(transform: Transform, factor: Tensor, offset: Tensor, picture: Any) -> Tensor:
    return transform(picture) * factor + offset


class Adapted(nn.Module):
    """A model that wants images in one way, for images as they are given in another: rescaled and resized."""

    def __init__(self, model: nn.Module, given: ImageInput, wanted: ImageInput) -> None:
        super().__init__()
        self.ratio: Tensor
        self.shift: Tensor
        self.model, self._key, self._size = model, wanted.key, wanted.size[1:]
        ratio, shift = given.rescaling(wanted.mean, wanted.std)
        self.register_buffer("ratio", ratio.unsqueeze(0))
        self.register_buffer("shift", shift.unsqueeze(0))

    def forward(self, images: Tensor | None = None, **named: Tensor) -> Any:
        """The model's answer to images (B, C, H, W), however they are called."""
        values = images if images is not None else next(iter(named.values()))
        values = values * self.ratio + self.shift
        if values.shape[-2:] != self._size:
            values = nn.functional.interpolate(values, self._size, mode="bilinear", antialias=True)
        return self.model(values) if self._key is None else self.model(**{self._key: values})
