"""A network to ExecuTorch, for phones and small devices: one ``.pte`` program per span and exit.

Programs are for one sample, whose memory is planned beforehand; XNNPACK computes what it knows. The engine
here runs them in ExecuTorch's Python runtime, to try them before they are shipped: a batch is answered sample
by sample, and calls from several threads wait for each other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from offramp._progress import progress_bar
from offramp.core import CostTable, Frontier
from offramp.errors import ArtifactError, InputError, MissingExtraError
from offramp.export.engine import Array, Call, ChainEngine, ExportOutput, Step
from offramp.export.manifest import ExitGraph, Export, SpanGraph, check_replaceable, write_export
from offramp.export.onnx import WRITING, contained_warnings, exported, made_with, summary
from offramp.export.pieces import Piece, check_exportable, pieces, signature_of
from offramp.export.verify import Check
from offramp.network import ExitNetwork
from offramp.storage import atomic_folder

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
    """Write a folder of ``.pte`` programs that ``EtEngine`` runs.

    Args:
        net: with trained heads, on the CPU; left as it is.
        frontier: its configurations; only exits that one of them uses are written.
        costs: of the network.
        path: of the folder; an export already there is replaced.
        classes: names of the K outputs.
        progress: None shows a bar when standard error is a terminal.

    Returns:
        What was written.

    Raises:
        InputError: ExecuTorch lacks an operation, or a program does not give what PyTorch gives.
        MissingExtraError: ExecuTorch is not installed.
        StorageError: the folder cannot be written, or holds something else.
    """
    runtime = require_executorch()
    check_exportable(net)
    check_replaceable(Path(path))
    check, signature = Check(f"executorch {runtime}"), signature_of(net, classes)
    spans, exits = list[SpanGraph](), list[ExitGraph]()
    found = list(pieces(net, frontier, samples=1))
    with atomic_folder(Path(path)) as folder, progress_bar(WRITING, len(found), progress) as advance:
        for done, each in enumerate(found, start=1):
            piece = replace(each, graph=replace(each.graph, file=f"{each.graph.file}.pte"))
            graph = piece.graph
            (folder / graph.file).write_bytes(_program(piece))
            check.piece(piece, _loaded(folder / graph.file), dynamic=False)
            if isinstance(graph, SpanGraph):
                spans.append(graph)
            else:
                exits.append(graph)
            advance(done)
        export = Export(
            "executorch", signature, frontier, costs, tuple(spans), tuple(exits), check=check.found()
        )
        write_export(folder, export, {**made_with(), "executorch": runtime})
    return export


class EtEngine(ChainEngine):
    """Runs what ``to_executorch`` wrote, under a configuration that can be switched while it runs.

    Args:
        folder: of the export.
        config: to start with; without choices it is the full model.
        prepare: further configurations to make ready, for instance the whole frontier.

    Raises:
        ArtifactError: the folder is missing, damaged, of another kind or of a newer version.
        InputError: a configuration names an exit that was not exported.
        MissingExtraError: ExecuTorch is not installed.
    """

    kind = "executorch"

    def _load(self, graph: SpanGraph | ExitGraph) -> Call:
        return _loaded(self.folder / graph.file)

    def _answer(self, plan: tuple[Step, ...], values: list[Array]) -> tuple[ExportOutput, float]:
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
    """The version of ExecuTorch.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with _quiet():
            import executorch.runtime  # noqa: F401
        return version("executorch")
    except ImportError as error:
        raise MissingExtraError(
            'exports of kind executorch need ExecuTorch; run: pip install "offramp[executorch]"'
        ) from error


def _program(piece: Piece) -> bytes:
    """A piece as the content of a ``.pte`` file.

    Raises:
        InputError: ExecuTorch lacks an operation.
    """
    try:
        with _quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            program = exported(piece, dynamic=False)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
    except Exception as error:  # its compiler has many classes of them
        raise InputError(
            f"export: {piece.graph.file} cannot be written for ExecuTorch: {summary(error)}; cut the model "
            "elsewhere, or export it to onnx"
        ) from error


def _loaded(path: Path) -> Call:
    """A program, to be called with its inputs in order.

    Raises:
        ArtifactError: ExecuTorch refuses the file.
        MissingExtraError: it is not installed.
    """
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Importing and compiling warn of ExecuTorch's own deprecated calls, and log what they could not load."""
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with contained_warnings():
            yield
    finally:
        log.setLevel(level)
