"""Training of heads on a frozen backbone whose features are computed once; calibration; fine-tuning."""

from offramp.training.cache import DTYPES, collect_rows, reduction, stored_bytes
from offramp.training.calibrate import CalibrationReport, calibrate
from offramp.training.config import TrainConfig
from offramp.training.train import TrainReport, train_exits
from offramp.training.truth import batch_truth, check_quality, checked_labels

__all__ = [
    "DTYPES", "CalibrationReport", "TrainConfig", "TrainReport", "batch_truth", "calibrate", "check_quality",
    "checked_labels", "collect_rows", "reduction", "stored_bytes", "train_exits",
]  # fmt: skip
