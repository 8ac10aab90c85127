"""What an answer is worth (quality) and how certain an exit is of it (confidence)."""

from offramp.tasks.base import Task, as_task, make_task, register_task, select_output, token_mean
from offramp.tasks.classification import Classification, TokenClassification
from offramp.tasks.confidence import (
    check_confidence,
    get_confidence,
    get_fitted,
    is_fitted,
    register_confidence,
    register_fitted,
)
from offramp.tasks.fitted_confidence import FittedConfidence
from offramp.tasks.multi_label import MultiLabel
from offramp.tasks.regression import Regression

__all__ = [
    "Classification", "FittedConfidence", "MultiLabel", "Regression", "Task", "TokenClassification",
    "as_task", "check_confidence", "get_confidence", "get_fitted", "is_fitted", "make_task",
    "register_confidence", "register_fitted", "register_task", "select_output", "token_mean",
]  # fmt: skip
