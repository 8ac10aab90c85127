"""The engine: plan a configuration, run spans, take out samples that leave, switch while running."""

from offramp.runtime.backend import Activations, SpanFn, SpanProvider
from offramp.runtime.compaction import RowIndices, as_index, keep, leaving
from offramp.runtime.engine import Engine, EngineOutput
from offramp.runtime.execution import Execution
from offramp.runtime.memory import keep_memory
from offramp.runtime.multi_engine import MultiEngine
from offramp.runtime.plan import EnabledExit, Planner, check_config

__all__ = [
    "Activations", "EnabledExit", "Engine", "EngineOutput", "Execution", "MultiEngine", "Planner",
    "RowIndices", "SpanFn", "SpanProvider", "as_index", "check_config", "keep", "keep_memory", "leaving",
]  # fmt: skip
