from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offramp import partition
from toys import cut, randn, seeded


class Cut(nn.Module):
    """before, stop, after: the layout of the feature at ``stop`` is asked for."""

    def __init__(self, before: nn.Module, after: nn.Module, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.stop, self.after, self.arrange = before, nn.Tanh(), after, arrange

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.stop(self.arrange(self.before(x))))


class Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def same(x: Tensor) -> Tensor:
    return x


LINE, CONV = nn.Linear(4, 4), nn.Conv2d(4, 4, 1)


class Scale(nn.Module):
    """Has a parameter and says nothing of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


FLAT = Call(lambda x: x.reshape(x.shape[0], -1))


@pytest.mark.parametrize(
    ("before", "after", "shape", "arrange", "wanted"),
    [
        (CONV, FLAT, (4, 4, 4), same, "NCHW"),
        (CONV, FLAT, (4, 4, 4), lambda x: x.permute(0, 2, 3, 1), "NHWC"),
        (CONV, FLAT, (4, 4, 4), lambda x: x.movedim(1, -1), "NHWC"),
        (CONV, FLAT, (4, 4, 4), lambda x: x.transpose(1, 3).neg().swapaxes(1, -1), "NCHW"),
        (CONV, FLAT, (4, 4, 4), lambda x: x.transpose(1, 2), None),  # (B, H, C, W): no layout of ours
        (CONV, FLAT, (4, 4, 4), lambda x: x.flatten(2), "NCL"),
        (CONV, FLAT, (4, 4, 4), lambda x: x.flatten(2).transpose(1, 2), "NLC"),
        (CONV, FLAT, (4, 4, 4), lambda x: x.flatten(2).mT, "NLC"),
        (CONV, FLAT, (4, 2, 8), lambda x: x.view(-1, 8, 2, 4), None),  # the channel is split
        (CONV, FLAT, (4, 4, 4), lambda x: x.flatten(1), "NC"),
        (CONV, FLAT, (4, 4, 4), lambda x: x.unsqueeze(1).squeeze(1).relu_(), "NCHW"),
        (CONV, FLAT, (4, 4, 4), lambda x: torch.cat([x, x.roll(1, 2)], 1)[:, :4], "NCHW"),
        (LINE, FLAT, (4, 4, 4), same, "NHWC"),
        (LINE, FLAT, (4, 4), same, "NLC"),
        (nn.Embedding(5, 4), FLAT, (3,), same, "NLC"),
        (Scale(), CONV, (4, 4, 4), same, "NCHW"),
        (
            Scale(),
            Call(lambda x, conv: conv(x.relu_()), CONV),
            (4, 4, 4),
            same,
            "NCHW",
        ),  # reads an in-place result
        (Scale(), Call(lambda x, conv: conv(x.permute(0, 3, 1, 2)), CONV), (4, 4, 4), same, "NHWC"),
        (Scale(), Call(lambda x, conv: x + conv(x * 2), CONV), (4, 4, 4), same, "NCHW"),
        (Scale(), Call(lambda x, norm: norm(x.flatten(1, 2)), nn.LayerNorm(4)), (4, 4, 4), same, "NHWC"),
        (Scale(), nn.LayerNorm((4, 4, 4)), (4, 4, 4), same, None),  # over the whole image
        (Scale(), nn.MaxPool2d(2), (4, 4, 4), same, "NCHW"),
        (Scale(), nn.GroupNorm(2, 4), (4, 6), same, "NCL"),
        # a linear map over tokens, as in MLP-Mixer, says less than the normalisation behind it
        (
            Scale(),
            Call(lambda x, line, norm: norm(x + line(x.mT).mT), LINE, nn.LayerNorm(6)),
            (4, 6),
            same,
            "NLC",
        ),
        # a map over positions, broadcast along the channels, whichever they are
        (Scale(), Call(lambda x, line: (x + line(torch.ones(4, 4))).flatten(1), LINE), (4, 4, 4), same, None),
        (Scale(), FLAT, (4, 4, 4), same, None),
        (Scale(), FLAT, (4,), same, "NC"),
    ],
)
def test_layouts(
    before: nn.Module,
    after: nn.Module,
    shape: tuple[int, ...],
    arrange: Callable[[Tensor], Tensor],
    wanted: str | None,
) -> None:
    model = seeded(lambda: Cut(before, nn.Sequential(after, Scale()), arrange))
    example = randn(*shape)(2)
    parts = partition(model, example.abs().long() if isinstance(before, nn.Embedding) else example)
    assert next((found.layout for found in parts.legal if found.name == "stop"), None) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("residual", "NCHW"),
        ("in-place", "NCHW"),
        ("channels last", "NHWC"),
        ("windows", "NHWC"),
        ("masked", "NLC"),
        ("encoder", "NLC"),
        ("sequence", "NCL"),
        ("flat", "NC"),
    ],
)
def test_layouts_of_the_toys(name: str, wanted: str) -> None:
    assert {found.layout for found in cut(name)[2].legal} == {wanted}
