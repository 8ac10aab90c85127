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
    from offramp.certify import certify
    from offramp.confidence import register_confidence
    from offramp.config import ExitChoice, ExitConfig, Expected, Frontier
    from offramp.cost import CostTable, measure_cost
    from offramp.engine import Engine, EngineOutput
    from offramp.errors import OfframpError
    from offramp.evaluate import Outcome, evaluate
    from offramp.evidence import Certificate, Guarantee
    from offramp.heads import register_head
    from offramp.attach import attach_exits
    from offramp.network import ExitNetwork
    from offramp.partition import Segment, partition
    from offramp.records import ExitRecords, record_outputs
    from offramp.risks import Answers, Risk, early_leaver_error, missed_detection
    from offramp.search import search
    from offramp.tasks import register_task
    from offramp.training import TrainConfig, train_exits

__version__ = "0.1.0"

_HOME = {
    "Answers": "risks",
    "Certificate": "evidence",
    "CostTable": "cost",
    "Engine": "engine",
    "EngineOutput": "engine",
    "ExitChoice": "config",
    "ExitConfig": "config",
    "ExitNetwork": "network",
    "ExitRecords": "records",
    "Expected": "config",
    "Frontier": "config",
    "Guarantee": "evidence",
    "OfframpError": "errors",
    "Outcome": "evaluate",
    "Risk": "risks",
    "Segment": "partition",
    "TrainConfig": "training",
    "attach_exits": "attach",
    "certify": "certify",
    "early_leaver_error": "risks",
    "evaluate": "evaluate",
    "load": "artifact",
    "measure_cost": "cost",
    "missed_detection": "risks",
    "partition": "partition",
    "record_outputs": "records",
    "register_confidence": "confidence",
    "register_head": "heads",
    "register_task": "tasks",
    "save": "artifact",
    "search": "search",
    "train_exits": "training",
}

__all__ = [
    "Answers",
    "Certificate",
    "CostTable",
    "Engine",
    "EngineOutput",
    "ExitChoice",
    "ExitConfig",
    "ExitNetwork",
    "ExitRecords",
    "Expected",
    "Frontier",
    "Guarantee",
    "OfframpError",
    "Outcome",
    "Risk",
    "Segment",
    "TrainConfig",
    "attach_exits",
    "certify",
    "early_leaver_error",
    "evaluate",
    "load",
    "measure_cost",
    "missed_detection",
    "partition",
    "record_outputs",
    "register_confidence",
    "register_head",
    "register_task",
    "save",
    "search",
    "train_exits",
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
