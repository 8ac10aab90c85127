"""Adaptive pooling as operations that other runtimes are fast at.

The exporters spell it out in gathers and additions, which takes longer than the block before the exit. Here
it becomes ordinary average pooling where the cells are equal, and else one product with a matrix of shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

_ADAPTIVE = (
    torch.ops.aten.adaptive_avg_pool1d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool3d.default,
)
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)

_NUMPY = {torch.float16: np.float16, torch.float64: np.float64}


def replace_pooling(module: GraphModule) -> bool:
    """Replace adaptive average pooling in a traced module, in place; whether there was any."""
    found = [node for node in module.graph.nodes if node.target in _ADAPTIVE]
    for node in found:
        node.target = pooled
    if found:
        module.recompile()
    return bool(found)


def pooled(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Adaptive average pooling of x (B, C, ...) with one to three extents, known, to a grid."""
    extent = [int(size) for size in x.shape[2:]]
    if all(size % cells == 0 for size, cells in zip(extent, sizes, strict=True)):
        kernel: Any = [size // cells for size, cells in zip(extent, sizes, strict=True)]
        mean: Tensor = _AVERAGE[len(kernel) - 1](x, kernel)
        return mean
    share: npt.NDArray[np.float64] = np.ones((1, 1))
    for size, cells in zip(extent, sizes, strict=True):
        share = np.asarray(np.kron(share, shares(size, cells)), np.float64)
    # (H * W, h * w), made in its dtype: a runtime would keep a conversion of a constant
    matrix = torch.from_numpy(share.astype(_NUMPY.get(x.dtype, np.float32))).to(x)
    return (x.flatten(2) @ matrix).reshape(*x.shape[:2], *sizes)


def shares(size: int, cells: int) -> npt.NDArray[np.float64]:
    """What share each of ``size`` values has in each of ``cells`` means, (size, cells).

    >>> shares(3, 2).tolist()
    [[0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]
    """
    found = np.zeros((size, cells))
    for cell in range(cells):
        start, end = cell * size // cells, math.ceil((cell + 1) * size / cells)
        found[start:end, cell] = 1 / (end - start)
    return found
