"""The engine: plan a configuration, run spans, take out samples that leave, switch while running."""

from offramp.runtime.backend import Activations, SpanFn, SpanProvider
from offramp.runtime.compaction import RowIndices, as_index, keep, leaving
from offramp.runtime.engine import Engine, EngineOutput
from offramp.runtime.execution import Execution
from offramp.runtime.memory import keep_memory
from offramp.runtime.multi_engine import MultiEngine
from offramp.runtime.plan import Planner

__all__ = [
    "Activations", "Engine", "EngineOutput", "Execution", "MultiEngine", "Planner", "RowIndices", "SpanFn",
    "SpanProvider", "as_index", "keep", "keep_memory", "leaving",
]  # fmt: skip
