"""Batches in, rows on disk: checked inputs and labels, and arrays computed once from a loader, resumably."""

from offramp.data.collect import checked_batches, collect
from offramp.data.inputs import LABEL_KEYS, InputSpec
from offramp.data.row_store import Array

__all__ = [
    "LABEL_KEYS", "Array", "InputSpec", "checked_batches", "collect",
]  # fmt: skip
