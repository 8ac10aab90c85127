"""The kinds of head by name, and how one is added.

A new head is a class or function ``(feature: FeatureSpec, outputs: int) -> nn.Module`` under
``register_head``; a module without ``reduce`` and ``predict`` is given the whole feature, and the mask as a
second argument if it has ``uses_mask = True``. It must not change its input in place.
"""

from __future__ import annotations

from torch import Tensor, nn

from offramp.heads.base import HeadFactory
from offramp.heads.conv import conv_head, conv_net_head
from offramp.heads.features import FeatureSpec
from offramp.heads.pooled import pooled
from offramp.heads.tokens import attention_head, local_global_head, per_token_head
from offramp.registry import Registry

_HEADS: Registry[HeadFactory] = Registry("head")
register_head = _HEADS.register


def head_factory(name: str) -> HeadFactory:
    """What makes heads of a kind.

    Raises:
        InputError: no head is registered under ``name``.
    """
    return _HEADS[name]


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


@register_head("linear")
def linear(feature: FeatureSpec, outputs: int) -> nn.Module | None:
    """One linear map of the mean, or of every token: the cheapest exit there is."""
    return per_token_head(feature, outputs) if feature.per_token else pooled("mean", False)(feature, outputs)


@register_head("mlp")
def mlp(feature: FeatureSpec, outputs: int) -> nn.Module | None:
    """Two linear maps of a 4x4 grid, or of every token: position matters, and costs little at that size."""
    if feature.per_token:
        return per_token_head(feature, outputs, hidden=True)
    return pooled("4x4" if feature.extent else "mean", True)(feature, outputs)


@register_head("conv")
def conv(feature: FeatureSpec, outputs: int) -> nn.Module | None:
    """One depthwise-separable convolution on an 8x8 grid, or over neighbouring tokens."""
    if feature.per_token:
        return per_token_head(feature, outputs, local=True, hidden=True)
    return conv_head(feature, outputs)


@register_head("convnet")
def convnet(feature: FeatureSpec, outputs: int) -> nn.Module | None:
    """A small network of dense convolutions: for where much of the backbone remains, the input included."""
    return conv_net_head(feature, outputs)


@register_head("convnet-large")
def convnet_large(feature: FeatureSpec, outputs: int) -> nn.Module | None:
    """The same with one more convolution: twice the cost, for the input and the first blocks."""
    return conv_net_head(feature, outputs, deep=True)


@register_head("separable")
def separable(feature: FeatureSpec, outputs: int) -> nn.Module | None:
    """As large, of depthwise-separable convolutions: fewer operations, more memory traffic."""
    return conv_net_head(feature, outputs, separable=True, deep=True)


register_head("attention")(attention_head)


register_head("local-global")(local_global_head)


register_head("tokens")(pooled("tokens", hidden=False))


for _pooling in ("max", "meanmax", "2x2", "4x4"):
    register_head(f"linear-{_pooling}")(pooled(_pooling, hidden=False))


for _pooling in ("mean", "max", "meanmax", "2x2", "tokens"):
    register_head(f"mlp-{_pooling}")(pooled(_pooling, hidden=True))
