"""Module calls of a traced model: which operations each call of each module made, and which calls are blocks.

A block is what an engineer would call one: a module with parts of its own that is not itself a list of
blocks. Its inside is not cut automatically. Models without blocks are cut before each leaf that has
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from offramp.flow import Flow


@dataclass
class ModuleCall:
    """One call of a module.

    Args:
        name: path in the model, with "@2" and so on for later calls of the same module.
        path: path in the model.
        module: what was called.
        first: index of its first operation.
        last: index of its last operation.
    """

    name: str
    path: str
    module: nn.Module
    first: int
    last: int

    @property
    def composite(self) -> bool:
        """Whether the module has parts."""
        return any(True for _ in self.module.children())

    def holds(self, other: ModuleCall) -> bool:
        """Whether ``other`` was called inside this call."""
        return (
            other.path.startswith(self.path + ".") and self.first <= other.first and other.last <= self.last
        )


def module_calls(flow: Flow) -> list[ModuleCall]:
    """Every call of every sub-module, in order of their first operation."""
    modules = dict(flow.trace.model.named_modules(remove_duplicate=False))
    calls: dict[str, ModuleCall] = {}
    times: dict[str, int] = {}
    for i, node in enumerate(flow.nodes):
        if flow.is_free(node):  # sizes are hoisted out of their call, and weights may be computed anywhere
            continue
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if not path or path not in modules:
                continue
            if key not in calls:
                times[path] = times.get(path, 0) + 1
                name = path if times[path] == 1 else f"{path}@{times[path]}"
                calls[key] = ModuleCall(name, path, modules[path], i, i)
            calls[key].last = i
    return list(calls.values())


def block_ends(calls: Sequence[ModuleCall]) -> list[str]:
    """Names of the calls whose ends are cut automatically, in order."""
    blocks = [call for call in calls if call.composite and not _lists_blocks(call, calls)]
    outer = [
        call for call in calls if call.composite and not any(b.holds(call) for b in blocks if b is not call)
    ]
    return [call.name for call in outer]


def leaf_ends(calls: Sequence[ModuleCall]) -> list[str]:
    """Names of the leaf calls after which a leaf with weights follows."""
    leaves = [call for call in calls if not call.composite]
    return [before.name for before, after in pairwise(leaves) if _has_weights(after.module)]


def _lists_blocks(call: ModuleCall, calls: Sequence[ModuleCall]) -> bool:
    return any(call.holds(other) and _is_listed_block(other, calls) for other in calls)


def _is_listed_block(call: ModuleCall, calls: Sequence[ModuleCall]) -> bool:
    """An element of a list or sequence that has parts and is more than a sequence of leaves."""
    last = call.path.rpartition(".")[2]
    return last.isdigit() and call.composite and not isinstance(call.module, nn.Sequential)


def _has_weights(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters())
