"""Exported to ExecuTorch, networks answer as ``Engine`` does; runs where the extra is installed."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exported
from exported import CASES, same_as_engine
from offramp import ExitConfig
from offramp.errors import ArtifactError

if importlib.util.find_spec("executorch") is None:
    pytest.skip("needs the extra executorch, which is large", allow_module_level=True)

from offramp.export.executorch import EtEngine, to_executorch

NAMES = ["uneven pooling, a model at the input", "carried mask", "regression, a head at the input"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            case, made[name] = CASES[name](), tmp_path_factory.mktemp("export") / "net"
            written = to_executorch(case.net, case.frontier, case.costs, made[name])
            assert written.check is not None
            assert written.check["largest_difference"] < 1e-4
        return made[name]

    return folder


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_the_engine(folders: Any, name: str) -> None:
    case = CASES[name]()
    engine = EtEngine(folders(name), prepare=case.frontier)
    for config in case.frontier:
        position = same_as_engine(engine, case, config)
        assert len(np.unique(position)) == len(config.choices) + 1
    assert set(same_as_engine(engine, case, ExitConfig())) == {len(case.net.positions)}


def test_it_switches_while_another_thread_calls(folders: Any) -> None:
    case = CASES["carried mask"]()
    engine = EtEngine(folders("carried mask"), prepare=case.frontier)
    arrays, configs = exported.rows(case.arrays, slice(0, 8)), (ExitConfig(), case.frontier[0])
    wanted = []
    for config in configs:
        engine.use(config)
        wanted.append(engine(arrays).position.tolist())
    seen, stop = list[list[int]](), threading.Event()

    def call() -> None:
        while not stop.is_set():
            seen.append(engine(arrays).position.tolist())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    while all(thread.is_alive() for thread in threads) and not all(each in seen for each in wanted):
        for config in configs:
            engine.use(config)
    stop.set()
    for thread in threads:
        thread.join()
    assert wanted[0] != wanted[1]
    assert all(each in wanted for each in seen)
    assert all(each in seen for each in wanted)


def test_another_kind_of_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected an exported network at .*; check the path"):
        EtEngine(tmp_path)
