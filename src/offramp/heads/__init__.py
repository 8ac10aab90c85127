"""Exit networks: a feature in, outputs like the model's out; registered by name, chosen by their cost."""

from offramp.heads.auto import default_heads
from offramp.heads.features import FeatureSpec
from offramp.heads.registry import apply_head, head_factory, reduced, register_head

__all__ = [
    "FeatureSpec", "apply_head", "default_heads", "head_factory", "reduced", "register_head",
]  # fmt: skip
