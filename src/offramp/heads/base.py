"""What every exit network is: ``reduce`` (no parameters, so training caches its result), then ``predict``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from offramp.heads.features import FeatureSpec, pool, pool_tokens

HeadFactory = Callable[[FeatureSpec, int], nn.Module | None]
"""Makes a head for a feature and K outputs; None where this kind of head does not apply."""


class Head(nn.Module):
    """Base of the built-in heads; ``grid`` is the number of cells along each side of the pooled feature.

    Heads of one position with equal ``reduction`` share what training caches. ``uses_mask`` says whether a
    head is called with a mask beside the feature.
    """

    def __init__(self, feature: FeatureSpec, grid: int = 1, reduction: str = "") -> None:
        super().__init__()
        self.layout, self.grid, self.uses_mask = feature.layout, grid, feature.mask
        self.cells = [min(grid, size) for size in feature.extent]
        self.reduction = reduction or f"grid{grid}"

    def reduce(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature (B, ...) to (B, C), (B, C, l) or (B, C, h, w). No parameters."""
        if mask is not None:  # as many cells, however short the texts of a batch
            return pool_tokens(x, self.cells[0], mask)
        return pool(x, self.layout, self.grid)

    def predict(self, z: Tensor) -> Tensor:
        """Reduced feature to outputs (B, K)."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature (B, ...), and mask (B, L) where there is one, to outputs (B, K)."""
        return self.predict(self.reduce(x, mask))
