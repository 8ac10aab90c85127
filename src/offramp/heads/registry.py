"""The kinds of head by name, and how one is added.

A new head is a class or function ``(feature: FeatureSpec, outputs: int) -> nn.Module`` under
``register_head``; a module without ``reduce`` and ``predict`` is given the whole feature, and the mask as a
second argument if it has ``uses_mask = True``. It must not change its input in place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from offramp.heads.base import HeadFactory
from offramp.heads.conv import ConvHead, ConvNetHead
from offramp.heads.features import FeatureSpec
from offramp.heads.pooled import PooledHead
from offramp.heads.tokens import AttentionHead, LocalGlobalHead, PerTokenHead
from offramp.registry import Registry

_HEADS: Registry[HeadFactory] = Registry("head")
register_head = _HEADS.register

head_factory = _HEADS.__getitem__
"""What makes heads of a kind; ``InputError`` where none is registered under the name."""


def apply_head(head: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """A head's outputs for a feature (B, ...), with the mask if it wants one."""
    out: Tensor = head(x, mask) if getattr(head, "uses_mask", False) else head(x)
    return out


def reduced(head: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What training keeps of a feature (B, ...): reduced where the head reduces, else the whole."""
    if not hasattr(head, "reduce"):
        return x
    z: Tensor = head.reduce(x, mask) if getattr(head, "uses_mask", False) else head.reduce(x)  # type: ignore[operator]
    return z


def _kind(
    head: Callable[..., nn.Module],
    ranks: Collection[int],
    *,
    least: int = 1,
    per_token: bool = False,
    **options: Any,
) -> HeadFactory:
    """Heads for features whose extent has one of these numbers of dimensions, each at least so large."""

    def make(feature: FeatureSpec, outputs: int) -> nn.Module | None:
        fits = len(feature.extent) in ranks and min(feature.extent, default=least) >= least
        return head(feature, outputs, **options) if fits and feature.per_token == per_token else None

    return make


def _pooled(pooling: str, *, hidden: bool) -> HeadFactory:
    """A feature without an extent has nothing but its mean, and only a sequence has a first token."""
    ranks = {"mean": (0, 1, 2, 3), "tokens": (1,)}.get(pooling, (1, 2, 3))
    return _kind(PooledHead, ranks, pooling=pooling, hidden=hidden)


def _per_token(*, local: bool = False, hidden: bool = False) -> HeadFactory:
    return _kind(PerTokenHead, (1,), per_token=True, local=local, hidden=hidden)


def _first(*kinds: HeadFactory) -> HeadFactory:
    """The first of several kinds that applies to a feature."""

    def make(feature: FeatureSpec, outputs: int) -> nn.Module | None:
        made = (kind(feature, outputs) for kind in kinds)
        return next((head for head in made if head is not None), None)

    return make


_KINDS = {
    # one linear map of the mean, or of every token: the cheapest exit there is
    "linear": _first(_per_token(), _pooled("mean", hidden=False)),
    # two linear maps of a 4x4 grid, or of every token: position matters, and costs little at that size
    "mlp": _first(_per_token(hidden=True), _pooled("4x4", hidden=True), _pooled("mean", hidden=True)),
    # one depthwise-separable convolution on an 8x8 grid, or over neighbouring tokens
    "conv": _first(_per_token(local=True, hidden=True), _kind(ConvHead, (1, 2, 3), least=2)),
    # a small network of dense convolutions: for where much of the backbone remains, the input included
    "convnet": _kind(ConvNetHead, (2,), least=4, separable=False, deep=False),
    # the same with one more convolution: twice the cost, for the input and the first blocks
    "convnet-large": _kind(ConvNetHead, (2,), least=4, separable=False, deep=True),
    # as large, of depthwise-separable convolutions: fewer operations, more memory traffic
    "separable": _kind(ConvNetHead, (2,), least=4, separable=True, deep=True),
    "attention": _kind(AttentionHead, (1, 2, 3)),
    "local-global": _kind(LocalGlobalHead, (1, 2)),
    "tokens": _pooled("tokens", hidden=False),
    **{f"linear-{pooling}": _pooled(pooling, hidden=False) for pooling in ("max", "meanmax", "2x2", "4x4")},
    **{
        f"mlp-{pooling}": _pooled(pooling, hidden=True)
        for pooling in ("mean", "max", "meanmax", "2x2", "tokens")
    },
}
for _name, _factory in _KINDS.items():
    register_head(_name)(_factory)
