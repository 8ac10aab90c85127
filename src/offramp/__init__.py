"""Early exits for trained PyTorch models: a cost dial that turns while the model runs.

Names are resolved on first use, so that what works on arrays alone (``search``, ``evaluate``) never imports
torch. They stand here twice: in the imports for type checkers, and in the table that is used at run time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from offramp._version import __version__ as __version__

if TYPE_CHECKING:
    from offramp.artifacts import (
        load as load,
        load_tasks as load_tasks,
        save as save,
        save_tasks as save_tasks,
    )
    from offramp.core import (
        BatchCosts as BatchCosts,
        Certificate as Certificate,
        CostTable as CostTable,
        ExitChoice as ExitChoice,
        ExitConfig as ExitConfig,
        ExitRecords as ExitRecords,
        Expected as Expected,
        Frontier as Frontier,
        Guarantee as Guarantee,
        JointOutcome as JointOutcome,
        Outcome as Outcome,
        evaluate as evaluate,
        evaluate_together as evaluate_together,
    )
    from offramp.errors import Expired as Expired, OfframpError as OfframpError, QueueFull as QueueFull
    from offramp.graph import Segment as Segment, partition as partition
    from offramp.guarantees import (
        Answers as Answers,
        Risk as Risk,
        certify as certify,
        early_leaver_error as early_leaver_error,
        missed_detection as missed_detection,
    )
    from offramp.heads import register_head as register_head
    from offramp.measure import measure_cost as measure_cost, record_outputs as record_outputs
    from offramp.network import (
        ExitNetwork as ExitNetwork,
        attach_exits as attach_exits,
        attach_tasks as attach_tasks,
        labels_of as labels_of,
        with_answers as with_answers,
    )
    from offramp.report import write_report as write_report
    from offramp.runtime import (
        Engine as Engine,
        EngineOutput as EngineOutput,
        Execution as Execution,
        MultiEngine as MultiEngine,
        keep_memory as keep_memory,
    )
    from offramp.serving import (
        Prediction as Prediction,
        Predictor as Predictor,
        load_predictor as load_predictor,
    )
    from offramp.solver import search as search
    from offramp.streaming import (
        StreamAnswer as StreamAnswer,
        StreamEngine as StreamEngine,
        StreamFuture as StreamFuture,
        StreamStats as StreamStats,
    )
    from offramp.tasks import (
        FittedConfidence as FittedConfidence,
        Regression as Regression,
        Task as Task,
        register_confidence as register_confidence,
        register_fitted as register_fitted,
        register_task as register_task,
    )
    from offramp.training import (
        CalibrationReport as CalibrationReport,
        TrainConfig as TrainConfig,
        calibrate as calibrate,
        train_exits as train_exits,
    )

_HOME = {
    "artifacts": (
        "load",
        "load_tasks",
        "save",
        "save_tasks",
    ),
    "core": (
        "BatchCosts",
        "Certificate",
        "CostTable",
        "ExitChoice",
        "ExitConfig",
        "ExitRecords",
        "Expected",
        "Frontier",
        "Guarantee",
        "JointOutcome",
        "Outcome",
        "evaluate",
        "evaluate_together",
    ),
    "errors": (
        "Expired",
        "OfframpError",
        "QueueFull",
    ),
    "graph": (
        "Segment",
        "partition",
    ),
    "guarantees": (
        "Answers",
        "Risk",
        "certify",
        "early_leaver_error",
        "missed_detection",
    ),
    "heads": ("register_head",),
    "measure": (
        "measure_cost",
        "record_outputs",
    ),
    "network": (
        "ExitNetwork",
        "attach_exits",
        "attach_tasks",
        "labels_of",
        "with_answers",
    ),
    "report": ("write_report",),
    "runtime": (
        "Engine",
        "EngineOutput",
        "Execution",
        "MultiEngine",
        "keep_memory",
    ),
    "serving": (
        "Prediction",
        "Predictor",
        "load_predictor",
    ),
    "solver": ("search",),
    "streaming": (
        "StreamAnswer",
        "StreamEngine",
        "StreamFuture",
        "StreamStats",
    ),
    "tasks": (
        "FittedConfidence",
        "Regression",
        "Task",
        "register_confidence",
        "register_fitted",
        "register_task",
    ),
    "training": (
        "CalibrationReport",
        "TrainConfig",
        "calibrate",
        "train_exits",
    ),
}
_PACKAGE_OF = {name: package for package, names in _HOME.items() for name in names}

__all__ = sorted(_PACKAGE_OF)


def __getattr__(name: str) -> Any:
    if name == "report":  # a package that can be called, as ``write_report``
        return importlib.import_module(f"{__name__}.report")
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    home = f"{__name__}.{_PACKAGE_OF[name]}"
    try:
        package = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", home):
            raise
        raise ImportError(
            f"offramp.{name} needs PyTorch and all of offramp, this is offramp-runtime, which runs exported "
            "models only: in another environment, pip install offramp",
            name=error.name,
        ) from None
    value = globals()[name] = getattr(package, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
