"""Module calls of a traced model: which operations each call of each module made, and which calls are blocks.

A block is what an engineer would call one: a module with parts of its own that is not itself a list of
blocks. Its inside is not cut automatically. Models without blocks are cut before each leaf with weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from offramp.graph.dataflow import Flow
from offramp.graph.dynamic_quant import is_packed


@dataclass
class ModuleCall:
    """One call of a module, operations ``first`` to ``last``; ``name`` is its path, then "path@2" and so on.

    ``listed``: it is a numbered element ("3", "layer_3") of a list of blocks.
    """

    name: str
    path: str
    module: nn.Module
    listed: bool
    first: int
    last: int

    @property
    def composite(self) -> bool:
        """Whether the module has parts that are called."""
        return _has_parts(self.module)

    def inside(self, others: Sequence[ModuleCall]) -> bool:
        """Whether it was called inside one of ``others``."""
        return any(
            self.path.startswith(other.path + ".") and other.first <= self.first and self.last <= other.last
            for other in others
        )


def module_calls(flow: Flow) -> list[ModuleCall]:
    """Every call of every sub-module, in order of their first operation."""
    modules = dict(flow.trace.model.named_modules(remove_duplicate=False))
    calls: dict[str, ModuleCall] = {}
    times = Counter[str]()
    for i, node in enumerate(flow.nodes):
        if flow.is_free(node):  # sizes are hoisted out of their call, and weights may be computed anywhere
            continue
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if not path or path not in modules:
                continue
            if key not in calls:
                times[path] += 1
                calls[key] = ModuleCall(
                    name=path if times[path] == 1 else f"{path}@{times[path]}",
                    path=path,
                    module=modules[path],
                    listed=_is_listed_block(path, modules),
                    first=i,
                    last=i,
                )
            calls[key].last = i
    return list(calls.values())


def block_ends(calls: Sequence[ModuleCall], cuttable: Set[str]) -> list[str]:
    """Names of the calls whose ends are cut automatically, in order.

    ``cuttable`` are the names of those where a cut is legal right at their end. Parts inside a block where
    none is (the inside of a residual block) are no blocks of their own.
    """
    listed = [call for call in calls if call.listed]
    listed = [call for call in listed if call.name in cuttable or not call.inside(listed)]
    composite = [call for call in calls if call.composite]
    blocks = [call for call in composite if not any(part.inside([call]) for part in listed)]
    return [call.name for call in composite if not call.inside(blocks)]


def leaf_ends(calls: Sequence[ModuleCall]) -> list[str]:
    """Names of the leaf calls after which a leaf with weights follows."""
    leaves = [call for call in calls if not call.composite]
    return [
        before.name
        for before, after in pairwise(leaves)
        if any(parameter.ndim >= 2 for parameter in after.module.parameters())
    ]


def _is_listed_block(path: str, modules: dict[str, nn.Module]) -> bool:
    """A numbered element of a list whose parts are mostly blocks: more than sequences of leaves."""
    owner = modules[path.rpartition(".")[0]]
    if not (path[-1].isdigit() and isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict))):
        return False
    elements = [element for element in owner.children() if _has_parts(element)]
    blocks = [element for element in elements if not isinstance(element, nn.Sequential)]
    return modules[path] in blocks and 2 * len(blocks) >= len(elements)


def _has_parts(module: nn.Module) -> bool:
    return not is_packed(module) and any(True for _ in module.children())
