"""A model -> an exact chain of segments.

trace (torch.export) -> dataflow (what is alive where) -> cuts (where it may be split) -> spans (functions)
"""

from offramp.graph.adapter import unwrapped
from offramp.graph.dataflow import Flow, operation_name
from offramp.graph.layout import find_layout
from offramp.graph.macs import count_macs, count_module
from offramp.graph.modes import eval_mode, evaluating
from offramp.graph.partition import INPUT, Partition, Segment, partition
from offramp.graph.spans import Border, Span
from offramp.graph.trace import Slot, TraceOptions

__all__ = [
    "INPUT", "Border", "Flow", "Partition", "Segment", "Slot", "Span", "TraceOptions", "count_macs",
    "count_module", "eval_mode", "evaluating", "find_layout", "operation_name", "partition", "unwrapped",
]  # fmt: skip
