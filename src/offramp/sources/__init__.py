"""Models and data by name: ``timm:...``, image folders, tables, and a user's own callables."""

from offramp.sources.datasets import to_device_of
from offramp.sources.models import SourceModel, of_callable
from offramp.sources.project import (
    is_own,
    load_input_exits,
    load_project,
    load_source_model,
    load_splits,
)
from offramp.sources.samples import SampleReader, sample_reader
from offramp.sources.splits import Splits
from offramp.sources.summary import DataSummary, DataWarning

__all__ = [
    "DataSummary", "DataWarning", "SampleReader", "SourceModel", "Splits", "is_own", "load_input_exits",
    "load_project", "load_source_model", "load_splits", "of_callable", "sample_reader", "to_device_of",
]  # fmt: skip
