"""The ImageNet experiment, end to end on a tiny folder with 1,000 classes and a tiny model."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import offramp
from offramp.sources.project import load_project

Image = pytest.importorskip("PIL.Image")

SCRIPT = Path(__file__).parents[2] / "examples" / "imagenet" / "run.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("imagenet_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """train/ with one and val/ with two pictures of each of 1,000 classes."""
    root, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for part, count in (("train", 1), ("val", 2)):
        for k in range(1000):
            folder = root / part / f"n{k:08}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (8, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpeg")
    return root


OPTIONS = ["--random-weights", "--size", "32", "--epochs", "1", "--heads", "linear"]


def test_the_experiment_runs_and_is_not_run_twice(script, imagenet, tmp_path, capsys, monkeypatch):
    given = ["--data", str(imagenet), "--out", str(tmp_path / "out"), "--models", "test_resnet", *OPTIONS]
    given += ["--train", "500", "--limit", "300"]
    assert script.main(given) == 0
    out = capsys.readouterr().out
    assert "test_resnet: done" in out
    assert "paper" in out
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert row["samples"] == {"search": 300, "report": 300}
    assert row["full_macs"] > 0
    assert row["saved"] < 1
    assert row["drop_error"] >= 0
    assert (tmp_path / "out" / "test_resnet" / "manifest.json").is_file()
    assert not (tmp_path / "out" / "test_resnet.work").exists()

    def again(*_, **__):
        raise AssertionError("it was finished")

    monkeypatch.setattr(script, "build", again)
    assert script.main(given) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == [row]
    with pytest.raises(AssertionError, match="it was finished"):  # other options, another experiment
        script.main([*given, "--seed", "1"])


def test_the_splits_are_disjoint_and_search_and_report_halve_val(script, imagenet):
    options = script.arguments(["--data", str(imagenet), "--batch", "500", *OPTIONS])
    splits = load_project(*script.specs("test_resnet", options)).splits
    found = {name: set() for name in ("train", "search", "report")}
    for name, seen in found.items():
        for inputs, labels in getattr(splits, name):
            assert labels.max() < 1000
            seen.update(tuple(image.flatten().tolist()) for image in inputs[:, :, ::8, ::8])
    assert {name: len(seen) for name, seen in found.items()} == dict.fromkeys(found, 1000)
    assert len(set.union(*found.values())) == 3000


def test_figures_are_those_of_the_samples(script):
    """Two samples leave early, one of them wrong; the full model is right on three of four."""
    confidence, quality = np.zeros((2, 1, 4), np.float32), np.zeros((2, 1, 4), np.float32)
    confidence[1, 0], quality[1, 0] = [0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0]
    final, exists = np.array([1, 1, 1, 0], np.float32), np.array([[False], [True]])
    records = offramp.ExitRecords(confidence, quality, final, exists, ("input", "a"), ("h",))
    costs = offramp.CostTable(np.array([0.0, 4.0, 10.0]), np.array([[0.0], [1.0]]), "macs")
    config = offramp.ExitConfig((offramp.ExitChoice("a", "h", 0.5),))
    outcome = offramp.evaluate(records, costs, config)
    answers = script.answers(records, config, outcome)
    assert answers.tolist() == [1, 0, 1, 0]
    assert answers.mean() == outcome.quality


def test_the_papers_figures_stand_beside_ours(script):
    rows = [
        {
            "name": name, "positions": 9, "full_macs": 4_470_000_000, "full_accuracy": 0.82, "saved": 0.3,
            "drop": 0.004, "drop_error": 0.002, "exits": [1, 2], "paper_saved": script.PAPER.get(name),
        }
        for name in (*script.PAPER, "other")
    ]  # fmt: skip
    console = Console(width=80)
    with console.capture() as captured:
        console.print(script.table(rows))
    lines = {line.split()[0]: line.rstrip() for line in captured.get().splitlines()}
    for name, paper in (("resnet152", "-26.2%"), ("convnextv2_tiny", "-26.6%"), ("davit_base", "-32.0%")):
        assert lines[name].endswith(paper)
        assert "4.47  82.00%      2  -30.0%  -0.40 ± 0.20" in lines[name]
    assert lines["other"].endswith("0.20")


def test_an_error_is_one_line(script, tmp_path, capsys):
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--models", "test_resnett"]
    assert script.main(given) == 1
    assert (
        "error: test_resnett: MODEL timm:test_resnett: timm has no model of this name"
        in capsys.readouterr().err
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet152", "convnextv2_tiny", "davit_base"])
def test_the_papers_models(script, imagenet, tmp_path, name):
    given = ["--data", str(imagenet), "--out", str(tmp_path), "--models", name, *OPTIONS, "--size", "64"]
    assert script.main([*given, "--train", "200", "--limit", "100"]) == 0
    row = json.loads((tmp_path / f"{name}.json").read_text())
    assert row["positions"] >= 15
