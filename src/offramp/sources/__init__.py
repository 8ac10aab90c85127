"""Models and data by name: ``timm:...``, image folders, tables, and a user's own callables."""

from offramp.sources.models import SourceModel
from offramp.sources.project import load_input_exits, load_project, load_source_model, load_splits
from offramp.sources.splits import Splits
from offramp.sources.summary import DataSummary, DataWarning

__all__ = [
    "DataSummary", "DataWarning", "SourceModel", "Splits", "load_input_exits", "load_project", "load_source_model", "load_splits",
]  # fmt: skip
