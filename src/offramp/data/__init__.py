"""Batches in, rows on disk: checked inputs and labels, and arrays computed once from a loader, resumably."""

from offramp.data.collect import WEIGHTS, checked_batches, collect, named_batches
from offramp.data.inputs import LABEL_KEYS, InputSpec, Lengths, as_tensors, has_arrays
from offramp.data.row_store import Array
from offramp.data.threads import advise_threads, threads_for

__all__ = [
    "LABEL_KEYS", "WEIGHTS", "Array", "InputSpec", "Lengths", "advise_threads", "as_tensors",
    "checked_batches", "collect", "has_arrays", "named_batches", "threads_for",
]  # fmt: skip
