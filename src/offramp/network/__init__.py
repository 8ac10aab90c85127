"""Segments + heads = ``ExitNetwork``: attaching exits, several tasks on one backbone, MACs, fingerprints."""

from offramp.network import copying as copying
from offramp.network.attach import HeadPlacement, answer_options, attach_exits, network_on
from offramp.network.fingerprint import graph_digest, model_digest
from offramp.network.macs import count_macs_of, counted_by, mac_table, work_of
from offramp.network.multitask import attach_tasks, check_names, labels_of, with_answers
from offramp.network.network import ConfidenceFn, ExitFn, ExitIndex, ExitNetwork, InputExit, check_finite

__all__ = [
    "ConfidenceFn", "ExitFn", "ExitIndex", "ExitNetwork", "HeadPlacement", "InputExit", "answer_options",
    "attach_exits", "attach_tasks", "check_finite", "check_names", "count_macs_of", "counted_by",
    "graph_digest", "labels_of", "mac_table", "model_digest", "network_on", "with_answers", "work_of",
]  # fmt: skip
