"""Exit networks. A head sees one feature tensor and says what the model would.

    reduce    feature -> what the head needs of it (pooling; no parameters, so training caches its result)
    predict   reduced feature -> outputs (B, K), or (B, L, K) for one answer per token

    pooled_heads   linear, mlp and their kin: a pooled feature, one or two linear maps
    conv_heads     conv, convnet, separable: convolutions on a grid
    token_heads    attention, local-global: every token; and what answers for every token

A new head is a class or function ``(feature: FeatureSpec, outputs: int) -> nn.Module`` under
``register_head``; a module without ``reduce`` and ``predict`` is given the whole feature, and the mask as a
second argument if it has ``uses_mask = True``. It must not change its input in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offramp.conv_heads import conv_head, conv_net_head
from offramp.feature import FeatureSpec
from offramp.macs import count_macs, count_module
from offramp.pooled_heads import HeadFactory, pooled
from offramp.registry import Registry
from offramp.token_heads import attention_head, local_global_head, per_token_head

_HEADS: Registry[HeadFactory] = Registry("head")
register_head = _HEADS.register


def head_factory(name: str) -> HeadFactory:
    """What makes heads of a kind.

    Raises:
        InputError: no head is registered under ``name``.
    """
    return _HEADS[name]


def ask(head: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
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


SHARE = 0.05
"""Of the MACs behind a position, what a head there may cost: far less than leaving there saves."""
NETWORK_SHARE = 0.022
"""The same for heads that are small networks, which also take longest to train: the first blocks' share."""
KEPT = 2**14
"""Values of one sample that training may keep for a head; beyond it, heads that pool to less are taken."""

_IMAGE = (("linear-meanmax",), ("mlp", "mlp-2x2"), ("convnet", "conv"))
_SEQUENCE = (("tokens",), ("mlp-tokens",), ("local-global", "attention"))
_LINE = (("linear-meanmax",), ("mlp", "mlp-meanmax"), ("conv",))
_PER_TOKEN = (("linear",), ("conv", "mlp"))
_NETWORKS = ("convnet", "local-global")


def choose(spec: FeatureSpec, outputs: int, remaining: int) -> tuple[str, ...]:
    """The kinds of head to try at a position: ``heads="auto"``.

    A cheap one always, a richer pooled one, and one that convolves or attends: of each the best that costs at
    most ``SHARE`` of the MACs which leaving here saves (``NETWORK_SHARE``, for the small networks), and whose
    reduced feature has at most ``KEPT`` values. The order of preference comes from ``bench/heads.py``.

    Args:
        spec: of the feature there.
        outputs: K.
        remaining: MACs of the backbone behind it.

    Returns:
        One to three names, the cheapest first.
    """
    cheap, *richer = _candidates(spec)
    found = (
        next((name for name in kinds if _fits(name, spec, outputs, remaining)), None) for kinds in richer
    )
    return (cheap[0], *(name for name in found if name is not None))


def _candidates(spec: FeatureSpec) -> tuple[tuple[str, ...], ...]:
    if not spec.extent:
        return (("linear",), ("mlp",))
    if spec.per_token:
        return _PER_TOKEN
    return {"NLC": _SEQUENCE, "NCL": _LINE}.get(spec.layout, _IMAGE)


def _fits(name: str, spec: FeatureSpec, outputs: int, remaining: int) -> bool:
    """Whether a kind applies and is cheap enough, in MACs and, for an answer per sample, in memory."""
    with torch.device("meta"):  # shapes only; the random state is left alone
        head = head_factory(name)(spec, outputs)
        x = torch.empty(1, *spec.shape)
        values = (x, torch.empty(1, *spec.extent, dtype=torch.bool)) if spec.mask else (x,)
    if head is None:
        return False
    macs, _ = count_macs(lambda: count_module(head, *values))
    kept = reduced(head, *values).numel()
    share = NETWORK_SHARE if name in _NETWORKS else SHARE
    return macs <= share * remaining and (kept <= KEPT or spec.per_token)
