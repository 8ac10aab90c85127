"""What an answer is worth (quality) and how certain an exit is of it (confidence)."""

from offramp.tasks.activation import AUTO, activate, check_activation, tell_of_probabilities, undone
from offramp.tasks.base import (
    Task,
    as_task,
    joined_key,
    make_task,
    register_task,
    select_output,
    token_mean,
)
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
from offramp.tasks.multi_label import Binary, MultiLabel
from offramp.tasks.regression import Regression

__all__ = [
    "AUTO", "Binary", "Classification", "FittedConfidence", "MultiLabel", "Regression", "Task",
    "TokenClassification", "activate", "as_task", "check_activation", "check_confidence", "get_confidence",
    "get_fitted", "is_fitted", "joined_key", "make_task", "register_confidence",
    "register_fitted", "register_task", "select_output", "tell_of_probabilities", "token_mean",
    "undone",
]  # fmt: skip
