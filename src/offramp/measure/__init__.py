"""What a network does and costs: recorded outputs, MACs, seconds, joules, throughput over a loader."""

from offramp.measure.cost import measure_cost
from offramp.measure.record import record_outputs
from offramp.measure.throughput import Batch, RunResult, measure_loader, read_batches, run_stream, time_model

__all__ = [
    "Batch", "RunResult", "measure_cost", "measure_loader", "read_batches", "record_outputs", "run_stream",
    "time_model",
]  # fmt: skip
