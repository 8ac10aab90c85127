"""Exit networks: a feature in, outputs like the model's out; registered by name, chosen by their cost."""

from offramp.heads.auto import choose
from offramp.heads.features import FeatureSpec
from offramp.heads.registry import ask, head_factory, reduced, register_head

__all__ = [
    "FeatureSpec", "ask", "choose", "head_factory", "reduced", "register_head",
]  # fmt: skip
