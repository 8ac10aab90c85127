"""A network to ExecuTorch, for phones and small devices: one ``.pte`` program per span and exit.

Programs are for one sample, whose memory is planned beforehand; XNNPACK computes what it knows. The engine
here runs them in ExecuTorch's Python runtime, to try them before they are shipped: a batch is answered sample
by sample, and calls from several threads wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from offramp.core import CostTable, Frontier
from offramp.errors import ArtifactError, needs_extra
from offramp.export.engine import Array, Call, ChainEngine, ChainStep, ExportOutput
from offramp.export.manifest import ExitGraph, Export, SpanGraph
from offramp.export.pieces import Piece
from offramp.export.verify import Check
from offramp.export.write import compiling, exported, quiet, write_folder
from offramp.network import ExitNetwork

_RUNNING = threading.Lock()


def to_executorch(
    net: ExitNetwork,
    frontier: Frontier,
    costs: CostTable,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Export:
    """Write one ``.pte`` program per span and exit, which ``EtEngine`` runs.

    The network, on the CPU and with trained heads, stays as it is; only exits that a configuration of the
    frontier uses are written; an export already at ``path`` is replaced. ``classes`` are names of the K
    outputs; ``progress`` None shows a bar when standard error is a terminal.

    Raises:
        InputError: ExecuTorch lacks an operation, or a program does not give what PyTorch gives.
        MissingExtraError: ExecuTorch is not installed.
        StorageError: the folder cannot be written, or holds something else.
    """
    release = require_executorch()
    given = (net, frontier, costs, path, classes, progress)
    return write_folder(
        *given,
        kind="executorch",
        write=_write,
        runtime=f"executorch {release}",
        ending=".pte",
        samples=1,
        made_with={"executorch": release},
    )


def _write(folder: Path, export: Export, pieces: Iterator[Piece], check: Check) -> Export:
    for piece in pieces:
        with compiling(piece, "for ExecuTorch", "export it to onnx", "root"):
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            program = exported(piece, dynamic=False)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            content = bytes(edge.to_executorch().buffer)
        path = folder / piece.graph.file
        path.write_bytes(content)
        check.piece(piece, _loaded(path), dynamic=False)
    return export


class EtEngine(ChainEngine):
    """Runs what ``to_executorch`` wrote, under a configuration that can be switched while it runs.

    It starts with ``config``, without choices the full model; ``prepare`` are further configurations to make
    ready, for instance the whole frontier.

    Raises:
        ArtifactError: the folder is missing, damaged, of another kind or of a newer version.
        InputError: a configuration names an exit that was not exported.
        MissingExtraError: ExecuTorch is not installed.
    """

    kind = "executorch"

    def _load(self, graph: SpanGraph | ExitGraph) -> Call:
        return _loaded(self.folder / graph.file)

    def _answer(self, plan: tuple[ChainStep, ...], values: list[Array]) -> tuple[ExportOutput, float]:
        rows = range(len(values[0]))
        found = [super(EtEngine, self)._answer(plan, [value[i : i + 1] for value in values]) for i in rows]
        outs = [out for out, _ in found]
        together = ExportOutput(
            np.concatenate([out.outputs for out in outs]),
            np.concatenate([out.position for out in outs]),
            np.concatenate([out.confidence for out in outs]),
        )
        return together, sum(macs for _, macs in found)


def require_executorch() -> str:
    """The version of ExecuTorch; a ``MissingExtraError`` if it is not installed."""
    with needs_extra("executorch", "exports of kind executorch need ExecuTorch; run"), quiet("root"):
        import executorch.runtime  # noqa: F401

        return version("executorch")


def _loaded(path: Path) -> Call:
    """A program, called with its inputs in order; an ``ArtifactError`` if ExecuTorch refuses the file."""
    require_executorch()
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(path.read_bytes())
        method = program.load_method("forward")
    except Exception as error:
        raise ArtifactError(f"{path}: ExecuTorch refuses it ({error}); export it again") from error

    def run(values: Sequence[Array], _kept: object = program) -> Sequence[Array]:
        # the program owns what its method reads; memory is planned for one call at a time
        with _RUNNING:
            found = method.execute([torch.from_numpy(value) for value in values])
        return [value.numpy() for value in found]

    return run
