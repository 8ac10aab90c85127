"""``offramp export``: from an artifact to a folder that another runtime runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import offramp
import small
from offramp import ExitChoice, ExitConfig, Expected, Frontier
from offramp.cli import app

pytest.importorskip("onnxscript", reason="exporting needs the extra onnx")
pytest.importorskip("onnxruntime", reason="running exports needs the extra onnx")

from offramp.export.ort import OrtEngine, OrtSingle


@pytest.fixture
def invoke() -> Any:
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        app._state["debug"] = False
        result = CliRunner().invoke(app.app, [str(each) for each in arguments])
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose two configurations use an exit each."""
    net = small.network(small.Vector, heads=("linear",))
    costs = offramp.measure_cost(net)
    configs = [
        ExitConfig(
            [ExitChoice(position, "linear", 0.4)],
            expected=Expected(0.8 + 0.05 * i, costs.full * (0.5 + 0.2 * i), 0.9, costs.full, 50),
        )
        for i, position in enumerate(net.positions[1:])
    ]
    folder = tmp_path_factory.mktemp("made") / "artifact"
    offramp.save(folder, net, Frontier(configs), costs)
    return folder


def model() -> Any:
    """MODEL of the commands below."""
    return small.model(small.Vector)


MODEL = f"{__name__}:model"


def test_every_configuration(invoke: Any, artifact: Path, tmp_path: Path) -> None:
    code, out, _ = invoke("export", artifact, MODEL, "--out", tmp_path / "net", "--classes", "a, b, c")
    assert code == 0
    assert "3 spans, 2 exits, 2 configurations" in out
    assert "compared with PyTorch on onnxruntime" in out
    assert f'engine = OrtEngine("{tmp_path / "net"}")' in out.replace("\n", "")
    engine = OrtEngine(tmp_path / "net", threads=1)
    assert engine.export.signature.classes == ("a", "b", "c")
    net, frontier, _ = offramp.load(artifact, model())
    x = small.inputs(small.Vector)
    for config in frontier:
        engine.use(config)
        wanted = offramp.Engine(net, config)(x).position.numpy()
        np.testing.assert_array_equal(engine(x.numpy()).position, wanted)


def test_one_configuration_as_one_graph(invoke: Any, artifact: Path, tmp_path: Path) -> None:
    code, out, _ = invoke(
        "export",
        artifact,
        MODEL,
        "--out",
        tmp_path / "net",
        "--to",
        "onnx-single",
        "--max-cost",
        0.6,
        "--json",
    )
    assert code == 0
    figures = json.loads(out)
    assert (figures["kind"], figures["spans"], figures["exits"]) == ("onnx-single", 1, 1)
    assert figures["configuration_count"] == 1
    assert set(figures["bytes"]) == {"manifest.json", "model.onnx"}
    assert figures["check"]["largest_difference"] < 1e-4
    engine = OrtSingle(tmp_path / "net", threads=1)
    assert len(engine.frontier[0].choices) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "tflite"), "--to: expected one of onnx, onnx-single, executorch, got 'tflite'"),
        (("--max-cost", "0.1"), "at(max_cost=0.1): costs run from 0.5"),
        (("--classes", "a,b"), "classes: expected 3 names, one per output, got 2"),
    ],
    ids=["kind", "budget", "classes"],
)
def test_refusals(
    invoke: Any, artifact: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = invoke("export", artifact, MODEL, "--out", tmp_path / "net", *arguments)
    assert code == 1
    assert message in err
    assert not (tmp_path / "net").exists()


def test_a_folder_of_something_else_is_left_alone(invoke: Any, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    code, _, err = invoke("export", artifact, MODEL, "--out", tmp_path)
    assert code == 1
    assert "exists and is not an exported network; choose another folder" in err


def test_an_extra_that_is_missing(
    invoke: Any, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    code, _, err = invoke("export", artifact, MODEL, "--out", tmp_path / "net", "--to", "executorch")
    assert code == 1
    assert 'need ExecuTorch; run: pip install "offramp[executorch]"' in err
