"""The digits network, trained a little, built, saved and exported: three engines, one answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offramp
from offramp import ExitConfig, TrainConfig, evaluate
from offramp.cli.demo import digit_splits
from offramp.cli.digits import DigitsResNet, load_digits, train_backbone
from offramp.pipeline import BuildConfig, build

pytest.importorskip("sklearn", reason="the digits need the extra demo")
pytest.importorskip("onnxscript", reason="exporting needs the extra onnx")
pytest.importorskip("onnxruntime", reason="running exports needs the extra onnx")

from offramp.export.onnx import to_onnx
from offramp.export.onnx_single import to_onnx_single
from offramp.export.ort import OrtEngine, OrtSingle

CLOSE = 1e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(what was built, report images, folder of the exports)."""
    digits = load_digits(0)
    splits, model = digit_splits(digits, 0), train_backbone(digits.train, epochs=3)
    config = BuildConfig(
        heads=("mlp",), cuts=("layer1", "layer2"), max_exits=2, train=TrainConfig(epochs=4, seed=0)
    )
    built, folder = build(model, splits, config, progress=False), tmp_path_factory.mktemp("digits")
    offramp.save(folder / "artifact", built.net, built.frontier, built.costs, include_backbone=True)
    net, frontier, costs = offramp.load(folder / "artifact", DigitsResNet(), restore_backbone=True)
    to_onnx(net, frontier, costs, folder / "onnx")
    to_onnx_single(net, frontier, costs, folder / "single")
    images = torch.cat([x for x, _ in splits.report or ()])
    return built, images, folder


def clear(records: Any, config: ExitConfig) -> np.ndarray[Any, Any]:
    """(N,) samples without a confidence close to a threshold."""
    close = np.zeros(records.samples, bool)
    for choice in config.choices:
        p, c = records.positions.index(choice.position), records.heads.index(choice.head)
        close |= np.abs(records.confidence[p, c] - np.float32(choice.threshold)) <= CLOSE
    return ~close


@pytest.mark.parametrize("kind", ["onnx", "single"])
def test_every_report_sample_leaves_where_the_search_said(made: Any, kind: str) -> None:
    built, images, folder = made
    make = {"onnx": OrtEngine, "single": OrtSingle}[kind]
    engine = make(folder / kind, threads=1, prepare=built.frontier)
    reference, records = offramp.Engine(built.net, prepare=built.frontier), built.records["report"]
    assert engine.frontier == built.frontier
    asked = [ExitConfig(), *(built.frontier[i] for i in (-1, len(built.frontier) // 2, 0))]
    for config in asked:
        engine.use(config)
        reference.use(config)
        got, wanted = engine(images.numpy()), reference(images)
        sure = clear(records, config)
        assert sure.mean() > 0.95
        said = evaluate(records, built.costs, config).position
        np.testing.assert_array_equal(got.position[sure], said[sure])
        np.testing.assert_allclose(got.outputs[sure], wanted.outputs.numpy()[sure], atol=CLOSE, rtol=0)
    assert len(np.unique(got.position)) > 1
    assert engine.stats().samples == len(asked) * len(images)


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide" / "export.md").read_text()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with nothing but what the guide's command installs."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    command = "pip install offramp-runtime"
    assert command in GUIDE
    install = [python, "-m", "pip", "install", "--quiet", ROOT / "packages" / "runtime"]
    done = subprocess.run(install, capture_output=True, text=True)
    if "Failed to establish a new connection" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return python


def in_(python: Path, code: str, *arguments: object) -> str:
    done = subprocess.run([python, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_pytorch_a_hundred_digits_get_the_same_answers(bare: Path, made: Any, tmp_path: Path) -> None:
    built, images, folder = made
    np.save(tmp_path / "images.npy", images[:100].numpy())
    blocks = GUIDE.split("```python")[1:]
    example = next(block for block in blocks if "no torch in this process" in block).split("```")[0]
    code = f"""
import os, sys
import numpy as np
os.chdir(sys.argv[1])
images = np.load(sys.argv[2])
{example}
np.savez(sys.argv[3], outputs=out.outputs, position=out.position)
assert "torch" not in sys.modules
"""
    (folder / "net").symlink_to(folder / "onnx")
    in_(bare, code, folder, tmp_path / "images.npy", tmp_path / "out.npz")
    got = np.load(tmp_path / "out.npz")
    config = built.frontier.at(max_drop=0.005)
    wanted = offramp.Engine(built.net, config)(images[:100])
    assert (got["outputs"].argmax(1) == wanted.outputs.argmax(1).numpy()).all()
    np.testing.assert_allclose(got["outputs"], wanted.outputs, atol=CLOSE, rtol=0)
    assert (got["position"] == wanted.position.numpy()).all()


def test_the_light_environment_holds_what_it_says(bare: Path) -> None:
    listed = json.loads(subprocess.check_output([bare, "-m", "pip", "list", "--format", "json"], text=True))
    names = {each["name"].lower() for each in listed}
    assert names >= {"offramp-runtime", "numpy", "safetensors", "onnxruntime"}
    assert not names & {"torch", "typer", "rich", "offramp"}
    code = "import offramp\ntry: offramp.attach_exits\nexcept ImportError as e: print(e)"
    assert "offramp.attach_exits needs PyTorch and all of offramp" in in_(bare, code)
    assert in_(bare, "import offramp; print(offramp.__version__)").strip() == offramp.__version__
