"""Training of heads on a frozen backbone whose features are computed once; calibration; fine-tuning."""

from offramp.training.cache import DTYPES, reduction
from offramp.training.calibrate import CalibrationReport, calibrate
from offramp.training.config import TrainConfig
from offramp.training.train import TrainReport, train_exits

__all__ = [
    "DTYPES", "CalibrationReport", "TrainConfig", "TrainReport", "calibrate", "reduction", "train_exits",
]  # fmt: skip
