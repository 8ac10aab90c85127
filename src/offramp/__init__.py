"""Early exits for trained PyTorch models: a cost dial that turns while the model runs.

Names are resolved on first use, so that the pure modules (``offramp.search``, ``offramp.evaluate``) never
import torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.artifact import load, save
    from offramp.attach import attach_exits
    from offramp.batching import BatchCosts
    from offramp.calibration import CalibrationReport, calibrate
    from offramp.certify import certify
    from offramp.confidence import register_confidence, register_fitted
    from offramp.config import ExitChoice, ExitConfig, Expected, Frontier
    from offramp.cost import CostTable, measure_cost
    from offramp.engine import Engine, EngineOutput
    from offramp.errors import Expired, OfframpError, QueueFull
    from offramp.evaluate import Outcome, evaluate
    from offramp.evidence import Certificate, Guarantee
    from offramp.execution import Execution
    from offramp.gauges import FittedConfidence
    from offramp.heads import register_head
    from offramp.memory import keep_memory
    from offramp.multi_engine import MultiEngine
    from offramp.multitask import attach_tasks, labels_of, with_answers
    from offramp.network import ExitNetwork
    from offramp.partition import Segment, partition
    from offramp.records import ExitRecords, record_outputs
    from offramp.regression import Regression
    from offramp.risks import Answers, Risk, early_leaver_error, missed_detection
    from offramp.search import search
    from offramp.stream_engine import StreamEngine
    from offramp.stream_ledger import StreamStats
    from offramp.stream_request import StreamAnswer, StreamFuture
    from offramp.task import Task
    from offramp.task_artifact import load_tasks, save_tasks
    from offramp.tasks import register_task
    from offramp.together import JointOutcome, evaluate_together
    from offramp.training import TrainConfig, train_exits

__version__ = "0.1.0"

_HOME = {
    "Answers": "risks",
    "BatchCosts": "batching",
    "CalibrationReport": "calibration",
    "Certificate": "evidence",
    "CostTable": "cost",
    "Engine": "engine",
    "EngineOutput": "engine",
    "Execution": "execution",
    "ExitChoice": "config",
    "ExitConfig": "config",
    "ExitNetwork": "network",
    "ExitRecords": "records",
    "Expected": "config",
    "Expired": "errors",
    "FittedConfidence": "gauges",
    "Frontier": "config",
    "Guarantee": "evidence",
    "JointOutcome": "together",
    "MultiEngine": "multi_engine",
    "OfframpError": "errors",
    "Outcome": "evaluate",
    "QueueFull": "errors",
    "Regression": "regression",
    "Risk": "risks",
    "Segment": "partition",
    "StreamAnswer": "stream_request",
    "StreamEngine": "stream_engine",
    "StreamFuture": "stream_request",
    "StreamStats": "stream_ledger",
    "Task": "task",
    "TrainConfig": "training",
    "attach_exits": "attach",
    "attach_tasks": "multitask",
    "calibrate": "calibration",
    "certify": "certify",
    "early_leaver_error": "risks",
    "evaluate": "evaluate",
    "evaluate_together": "together",
    "keep_memory": "memory",
    "labels_of": "multitask",
    "load": "artifact",
    "load_tasks": "task_artifact",
    "measure_cost": "cost",
    "missed_detection": "risks",
    "partition": "partition",
    "record_outputs": "records",
    "register_confidence": "confidence",
    "register_fitted": "confidence",
    "register_head": "heads",
    "register_task": "tasks",
    "save": "artifact",
    "save_tasks": "task_artifact",
    "search": "search",
    "train_exits": "training",
    "with_answers": "multitask",
}

__all__ = [
    "Answers",
    "BatchCosts",
    "CalibrationReport",
    "Certificate",
    "CostTable",
    "Engine",
    "EngineOutput",
    "Execution",
    "ExitChoice",
    "ExitConfig",
    "ExitNetwork",
    "ExitRecords",
    "Expected",
    "Expired",
    "FittedConfidence",
    "Frontier",
    "Guarantee",
    "JointOutcome",
    "MultiEngine",
    "OfframpError",
    "Outcome",
    "QueueFull",
    "Regression",
    "Risk",
    "Segment",
    "StreamAnswer",
    "StreamEngine",
    "StreamFuture",
    "StreamStats",
    "Task",
    "TrainConfig",
    "attach_exits",
    "attach_tasks",
    "calibrate",
    "certify",
    "early_leaver_error",
    "evaluate",
    "evaluate_together",
    "keep_memory",
    "labels_of",
    "load",
    "load_tasks",
    "measure_cost",
    "missed_detection",
    "partition",
    "record_outputs",
    "register_confidence",
    "register_fitted",
    "register_head",
    "register_task",
    "save",
    "save_tasks",
    "search",
    "train_exits",
    "with_answers",
]


def _resolve(name: str) -> Any:
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    value = globals()[name] = _resolve(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _verb(name: str) -> property:
    def ignore(_package: ModuleType, _submodule: object) -> None:
        """Drop the submodule that the import system wants to bind here."""

    return property(lambda _package: _resolve(name), ignore)


class _Package(ModuleType):
    """Keeps ``offramp.search`` the function after ``import offramp.search``, which would rebind it."""

    certify = _verb("certify")
    evaluate = _verb("evaluate")
    partition = _verb("partition")
    search = _verb("search")


sys.modules[__name__].__class__ = _Package
