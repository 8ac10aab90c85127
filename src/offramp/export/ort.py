"""Exported networks on ONNX Runtime: the engine's switch and answers with NumPy alone, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.core import ExitConfig
from offramp.errors import ArtifactError, needs_extra
from offramp.export.engine import Array, Call, ChainEngine, ExportedEngine, ExportOutput as OrtOutput
from offramp.export.manifest import BATCH, ExitGraph, Port, SpanGraph

__all__ = ["OrtEngine", "OrtOutput", "OrtSingle"]

_Setting = tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]
"""For one graph: thresholds of E exits, (E,), +inf where off; costs of leaving at each position, (P + 1,)."""

_SAME = ("float16", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
_DTYPES = {"float": "float32", "double": "float64", **{name: name for name in _SAME}}
"""Types of ONNX Runtime by what NumPy calls them."""

_ANSWER = ("outputs", "position", "confidence")


class OrtEngine(ChainEngine):
    """Runs what ``to_onnx`` wrote, under a configuration that can be switched while it runs.

    It starts with ``config``, without choices the full model; ``prepare`` are further configurations to make
    ready, for instance the whole frontier. One operation may use ``threads``, None for as many as the machine
    has cores. To ``fuse`` is to run everything between two enabled exits as one graph: faster by a tenth or
    so; but each such graph keeps weights of its own in memory, where the chain of short spans has them once.

    Raises:
        ArtifactError: the folder is missing, damaged, of another kind or of a newer version.
        InputError: a configuration names an exit that was not exported.
        MissingExtraError: ONNX Runtime is not installed.
    """

    kind = "onnx"

    def __init__(
        self,
        folder: str | Path,
        config: ExitConfig | None = None,
        *,
        threads: int | None = None,
        prepare: Iterable[ExitConfig] = (),
        fuse: bool = True,
    ) -> None:
        self._options = session_options(threads)
        super().__init__(folder, config, prepare=prepare, fuse=fuse)

    def _load(self, graph: SpanGraph | ExitGraph) -> Call:
        return load_graph(self.folder / graph.file, graph, self._options)


class OrtSingle(ExportedEngine[_Setting]):
    """Runs what ``to_onnx_single`` wrote; a batch is answered sample by sample.

    It starts with ``config``, without choices the full model; ``prepare`` are further configurations to make
    ready, for instance the whole frontier. One operation may use ``threads``, None for as many as the machine
    has cores.

    Raises:
        ArtifactError: the folder is missing, damaged, of another kind or of a newer version.
        InputError: a configuration names an exit that was not exported.
        MissingExtraError: ONNX Runtime is not installed.
    """

    kind = "onnx-single"

    def __init__(
        self,
        folder: str | Path,
        config: ExitConfig | None = None,
        *,
        threads: int | None = None,
        prepare: Iterable[ExitConfig] = (),
    ) -> None:
        options = session_options(threads)
        super().__init__(folder, config, prepare=prepare)
        graph = self.export.spans[0]
        with self.unchanged():
            self._session = open_session(self.folder / graph.file, options)
        check_ports(self.folder / graph.file, graph, self._session)

    def _build(self, config: ExitConfig) -> _Setting:
        thresholds = np.full(len(self.export.exits), np.inf, np.float32)
        order = [(each.position, each.head) for each in self.export.exits]
        spent = self.costs.backbone.copy()
        for position, head, threshold in self.export.resolve(config):
            thresholds[order.index((position, head))] = threshold
            if threshold < np.inf:  # one that is off is not computed
                spent[position:] += self.costs.heads[position, head]
        return thresholds, spent

    def _answer(self, plan: _Setting, values: list[Array]) -> tuple[OrtOutput, float]:
        thresholds, spent = plan
        names = [port.name for port in self.export.signature.inputs]
        feeds: dict[str, Array] = {"thresholds": thresholds}
        found = []
        for row in range(len(values[0])):
            feeds |= {name: value[row : row + 1] for name, value in zip(names, values, strict=True)}
            found.append(self._session.run(_ANSWER, feeds))
        outputs, position, confidence = (np.concatenate(parts) for parts in zip(*found, strict=True))
        at = position.astype(np.int64)
        with np.errstate(over="ignore"):  # costs may be anything finite
            return OrtOutput(outputs, at, confidence), float(spent[at].sum())


def runtime() -> Any:
    """The module onnxruntime; a ``MissingExtraError`` if it is not installed."""
    with needs_extra("onnx", "running exported networks needs ONNX Runtime; run"):
        import onnxruntime
    return onnxruntime


def session_options(threads: int | None = None) -> Any:
    """Options of a session: one operation after the other, threads that sleep while there is no work."""
    options = runtime().SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def open_session(path: Path, options: Any) -> Any:
    """A session on the CPU; an ``ArtifactError`` if ONNX Runtime refuses the file."""
    ort = runtime()
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        raise ArtifactError(f"{path}: ONNX Runtime refuses it ({error}); export it again") from error


def load_graph(path: Path, graph: SpanGraph | ExitGraph, options: Any) -> Call:
    """A graph, called with its inputs in order; an ``ArtifactError`` if it is not the one described."""
    session = open_session(path, options)
    check_ports(path, graph, session)
    wanted, names = [port.name for port in graph.outputs], [port.name for port in graph.inputs]

    def run(values: Sequence[Array]) -> Sequence[Array]:
        found: Sequence[Array] = session.run(wanted, dict(zip(names, values, strict=True)))
        return found

    return run


def check_ports(path: Path, graph: SpanGraph | ExitGraph, session: Any) -> None:
    """Refuse, with an ``ArtifactError``, a graph with other inputs or outputs than the manifest says."""
    pairs = (
        ("inputs", graph.inputs, session.get_inputs()),
        ("outputs", graph.outputs, session.get_outputs()),
    )
    for kind, ports, found in pairs:
        there = {each.name: each for each in found}
        fits = [port.name in there and _fits(port, there[port.name]) for port in ports]
        if not all(fits) or len(ports) != len(there):
            raise ArtifactError(
                f"{path}: its {kind} are not those that the manifest describes, "
                f"{', '.join(port.name for port in ports)}; export it again"
            )


def _fits(port: Port, found: Any) -> bool:
    """Whether a tensor of a graph has the type and shape of a port; what is no number may be any size."""
    named, sizes = found.type.removeprefix("tensor(").removesuffix(")"), list(found.shape)
    if len(sizes) != len(port.shape) or _DTYPES.get(named) != port.dtype:
        return False
    if sizes and not isinstance(sizes[0], int) and not port.per_sample:
        return False
    pairs = zip(port.shape, sizes, strict=True)
    return all(one in (BATCH, other) or not isinstance(other, int) for one, other in pairs)
