"""The ExecuTorch exporter and engine on a stand-in for the package that runs programs in PyTorch.

``test_executorch.py`` checks the same with ExecuTorch itself, where it is installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exported import CASES, same_as_engine
from offramp.errors import ArtifactError, InputError, MissingExtraError
from offramp.export.executorch import EtEngine, to_executorch

NAMES = ("carried mask", "regression, a head at the input")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, Any]:
    """Exported programs by the content of their file, in place of a compiler."""
    kept: dict[bytes, Any] = {}

    def lower(program: Any, partitioner: Any) -> Any:
        content = f"program {len(kept)}".encode()
        kept[content] = program.module(check_guards=False)
        return SimpleNamespace(to_executorch=lambda: SimpleNamespace(buffer=content))

    def load_program(content: bytes) -> Any:
        module = kept[content]
        method = SimpleNamespace(execute=lambda values: [value.detach() for value in module(*values)])
        return SimpleNamespace(load_method=lambda name: method)

    parts = {
        "executorch": {},
        "executorch.runtime": {
            "Runtime": SimpleNamespace(get=lambda: SimpleNamespace(load_program=load_program))
        },
        "executorch.exir": {"to_edge_transform_and_lower": lower},
        "executorch.backends": {},
        "executorch.backends.xnnpack": {},
        "executorch.backends.xnnpack.partition": {},
        "executorch.backends.xnnpack.partition.xnnpack_partitioner": {"XnnpackPartitioner": object},
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("offramp.export.executorch.version", lambda name: "0.0")
    return kept


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_the_engine(programs: dict[bytes, Any], tmp_path: Path, name: str) -> None:
    case = CASES[name]()
    written = to_executorch(case.net, case.frontier, case.costs, tmp_path / "net")
    assert written.check is not None
    assert written.check["runtime"] == "executorch 0.0"
    assert written.check["largest_difference"] < 1e-4
    files = {graph.file for graph in (*written.spans, *written.exits)}
    assert files | {"manifest.json"} == {path.name for path in (tmp_path / "net").iterdir()}
    assert all(file.endswith(".pte") for file in files)
    assert len(programs) == len(files)
    assert json.loads((tmp_path / "net" / "manifest.json").read_text())["made_with"]["executorch"] == "0.0"
    engine = EtEngine(tmp_path / "net", prepare=case.frontier)
    for config in case.frontier:
        position = same_as_engine(engine, case, config)
        assert len(np.unique(position)) == len(config.choices) + 1


def test_what_the_compiler_and_the_runtime_refuse(
    programs: dict[bytes, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[NAMES[0]]()
    to_executorch(case.net, case.frontier, case.costs, tmp_path / "net")
    programs.clear()
    with pytest.raises(ArtifactError, match=r"\.pte: ExecuTorch refuses it \(.*\); export it again"):
        EtEngine(tmp_path / "net")

    def lacks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(sys.modules["executorch.exir"], "to_edge_transform_and_lower", lacks)
    message = r"\.pte cannot be written for ExecuTorch: no such operation; cut the model elsewhere, or export"
    with pytest.raises(InputError, match=message):
        to_executorch(case.net, case.frontier, case.costs, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[NAMES[0]]()
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(MissingExtraError, match=r'need ExecuTorch; run: pip install "offramp\[executorch\]"'):
        to_executorch(case.net, case.frontier, case.costs, tmp_path / "net")
