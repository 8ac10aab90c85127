"""``heads="auto"``: the kinds of head tried at a position, by its shape and by what leaving there saves."""

from __future__ import annotations

import torch

from offramp.graph import count_macs, count_module
from offramp.heads.features import FeatureSpec
from offramp.heads.registry import head_factory, reduced

SHARE = 0.05
"""Of the MACs behind a position, what a head there may cost: far less than leaving there saves."""

NETWORK_SHARE = 0.022
"""The same for heads that are small networks, which also take longest to train: the first blocks' share."""

KEPT = 2**14
"""Values of one sample that training may keep for a head; beyond it, heads that pool to less are taken."""

_NETWORKS = ("convnet", "local-global")
_KINDS = {
    "NC": (("linear",), ("mlp",)),
    "NCL": (("linear-meanmax",), ("mlp", "mlp-meanmax"), ("conv",)),
    "NLC": (("tokens",), ("mlp-tokens",), ("local-global", "attention")),
    **dict.fromkeys(("NCDHW", "NDHWC"), (("linear-meanmax",), ("mlp-2x2",), ("conv",))),
    "NCHW": (("linear-meanmax",), ("mlp", "mlp-2x2"), ("convnet", "conv")),
    "per token": (("linear",), ("conv", "mlp")),
}


def default_heads(spec: FeatureSpec, outputs: int, remaining: int) -> tuple[str, ...]:
    """The kinds of head to try at a position: ``heads="auto"``; one to three names, the cheapest first.

    A cheap one always, a richer pooled one, and one that convolves or attends: of each the best that costs at
    most ``SHARE`` of the ``remaining`` MACs of the backbone behind it (``NETWORK_SHARE``, for the small
    networks), and whose reduced feature has at most ``KEPT`` values. The order of preference comes from
    ``bench/heads``.
    """
    kind = "per token" if spec.per_token and spec.extent else spec.layout
    cheap, *richer = _KINDS.get(kind, _KINDS["NCHW"])
    found = (
        next((name for name in kinds if _fits(name, spec, outputs, remaining)), None) for kinds in richer
    )
    return (cheap[0], *(name for name in found if name is not None))


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
