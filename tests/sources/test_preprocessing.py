"""Pixels and tokens that a model cannot have been trained for; models adapted to images of another."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from offramp.errors import InputError
from offramp.sources.preprocessing import Adapted, ImageInput, check_tokens, renormalised

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def images(mean=MEAN, std=STD, size=(3, 4, 4), **more):
    return ImageInput(to_tensor, mean, std, size, **more)


def pixels(batch=5, seed=0):
    """(B, 3, 4, 4) from 0 to 1, with every shade there is."""
    values = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    values[0, :, 0, 0], values[0, :, 0, 1] = 0, 1
    return values


def normalised(values):
    return (values - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_images_as_the_model_was_trained_pass():
    low, high = images().bounds()
    torch.testing.assert_close(low, normalised(torch.zeros(3, 1, 1)).flatten())
    torch.testing.assert_close(high, normalised(torch.ones(3, 1, 1)).flatten())
    for batch in (normalised(pixels()), (normalised(pixels()), torch.zeros(5)), [1.2 * normalised(pixels())]):
        images().check(0, batch)
    images(key="pixel_values").check(0, ({"pixel_values": normalised(pixels())}, torch.zeros(5)))
    images((0.0,) * 3, (1.0,) * 3).check(0, pixels())


def test_pixels_of_0_to_255_are_refused():
    message = (
        r"images: expected -2.12 to 2.64 by the model's own configuration \(mean 0.485/0.456/0.406, "
        r"std 0.229/0.224/0.225\), got 0 to 255; they seem to be pixels of 0 to 255: divide by 255 and "
        r"normalise. If it was trained so, say mean= and std= with the model"
    )
    for index in (0, 3):
        with pytest.raises(InputError, match=message):
            images().check(index, (255 * pixels(), torch.zeros(5)))
    with pytest.raises(InputError, match="got 0 to 255"):
        images(key="pixel_values").check(0, {"pixel_values": 255 * pixels()})
    with pytest.raises(InputError, match="pixels of 0 to 255"):
        images((0.0,) * 3, (1.0,) * 3).check(0, 255 * pixels())


def test_normalised_images_for_a_model_that_takes_0_to_1_are_refused():
    with pytest.raises(InputError, match=r"expected 0.00 to 1.00 .* got -2.118 to 2.64; normalise them as"):
        images((0.0,) * 3, (1.0,) * 3).check(0, normalised(pixels()))


def test_pixels_of_0_to_1_are_suspicious_once():
    with pytest.warns(
        UserWarning, match=r"scaled to 0 to 1 and not normalised: subtract 0.485/0.456/0.406, divide"
    ):
        images().check(0, pixels())
    images().check(1, pixels())
    images().check(0, torch.zeros(2, 3, 4, 4))  # nothing to tell from


def test_a_users_own_model_is_only_warned_about():
    unsure = images(certain=False)
    with pytest.warns(UserWarning, match="got 0 to 255"):
        unsure.check(0, 255 * pixels())
    unsure.check(1, 255 * pixels())


@pytest.mark.parametrize(
    "batch",
    [
        "text",
        torch.zeros(2, 3),
        torch.full((2, 4, 4, 4), 255.0),
        torch.full((2, 3, 4, 4), 255),
        {"other": torch.full((2, 3, 4, 4), 255.0)},
        torch.full((2, 3, 4, 4), float("nan")),
        torch.empty(0, 3, 4, 4),
        (),
    ],
)
def test_what_is_no_batch_of_such_images_is_left_to_others(batch):
    images().check(0, batch)


def test_token_ids_out_of_range():
    check_tokens({"input_ids": torch.tensor([[0, 9]])}, 10)
    check_tokens(torch.zeros(2, 3), 10)
    for ids, got in ((torch.tensor([[0, 10]]), "0 to 10"), (torch.tensor([[-1, 3]]), "-1 to 3")):
        message = (
            rf"token ids: expected 0 to 9 because the model's embedding has 10 rows, got {got}; use the tok"
        )
        with pytest.raises(InputError, match=message):
            check_tokens(({"input_ids": ids, "attention_mask": ids}, torch.zeros(1)), 10)
        with pytest.raises(InputError, match=message):
            check_tokens((ids, torch.zeros(1)), 10)


def test_another_normalisation_gives_the_same_pixels():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)

    class Normal:
        def __call__(self, picture):
            return normalised(to_tensor(picture))

    given = ImageInput(Normal(), MEAN, STD, (3, 4, 4))
    other = renormalised(given, (0.5,), (0.25,))
    assert (other.mean, other.std) == ((0.5,) * 3, (0.25,) * 3)
    torch.testing.assert_close(other.of_array(image), (to_tensor(image) - 0.5) / 0.25)


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_uint8_images_in_either_layout(layout):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    given = image if layout == "HWC" else image.transpose(2, 0, 1)
    torch.testing.assert_close(images().of_array(given), to_tensor(image))


def test_grey_images_become_what_the_model_takes():
    grey = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    torch.testing.assert_close(images().of_array(grey), to_tensor(np.stack([grey] * 3, 2)))
    assert images(size=(1, 4, 4)).mode == "L"


class Spy(nn.Module):
    def forward(self, images):
        self.seen = images
        return images.mean((2, 3))


def test_a_model_adapted_to_the_images_of_another():
    given, wanted = images(), images((0.5,) * 3, (0.25,) * 3, (3, 2, 2), key="images")
    spy = Spy()
    adapted = Adapted(spy, given, wanted)
    values = pixels()
    out = adapted(normalised(values))
    assert spy.seen.shape == (5, 3, 2, 2)
    means = nn.functional.interpolate((values - 0.5) / 0.25, (2, 2), mode="bilinear", antialias=True)
    torch.testing.assert_close(spy.seen, means)
    torch.testing.assert_close(adapted(pixel_values=normalised(values)), out)
    same = Adapted(spy, wanted, images((0.5,) * 3, (0.25,) * 3))
    same(values)
    torch.testing.assert_close(spy.seen, values)
