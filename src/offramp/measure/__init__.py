"""What a network does and costs: recorded outputs, MACs, seconds, joules, throughput over a loader."""

from offramp.measure.cost import measure_cost
from offramp.measure.record import record_outputs
from offramp.measure.throughput import LabelledInputs, measure_loader, read_batches, run_configs, time_model

__all__ = [
    "LabelledInputs", "measure_cost", "measure_loader", "read_batches", "record_outputs", "run_configs",
    "time_model",
]  # fmt: skip
