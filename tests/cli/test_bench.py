"""`offramp bench`: measured costs of an artifact, and the dial on them."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

import offramp
import small
from offramp.artifacts.manifest import load_costs, load_frontier, read_manifest
from offramp.cli import app

MODULE = """
import small
def model():
    return small.model()
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small network, its records and frontier, and a module that gives its model."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "bench_model.py").write_text(MODULE)
    net = small.network(heads=("linear",))
    loader = small.loader()
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=2))
    records, costs = offramp.record_outputs(net, loader), offramp.measure_cost(net)
    frontier = offramp.search(records, costs, tradeoffs=[0.5, 0.8, 1.0], max_exits=1)
    offramp.save(folder / "artifact", net, frontier, costs, records={"search": records, "report": records})
    return folder / "artifact"


@pytest.fixture
def invoke(artifact, monkeypatch):
    monkeypatch.chdir(artifact.parent)
    monkeypatch.delitem(sys.modules, "bench_model", raising=False)

    def call(*arguments):
        app._state["debug"] = False
        result = CliRunner().invoke(app.app, ["bench", str(artifact), "bench_model:model", *arguments])
        return result.exit_code, result.stdout, result.stderr

    return call


def test_it_measures_and_prints(invoke):
    code, out, err = invoke("--batch-size", "2", "--threads", "1")
    assert code == 0, err
    assert "figures on the report split" in out
    assert "batches of 2, 1 thread, per sample: the unmodified model takes" in " ".join(out.split())


def test_an_artifact_in_seconds_runs_like_any_other(invoke, artifact, tmp_path):
    code, out, err = invoke("--json", "--out", str(tmp_path / "seconds"))
    assert code == 0, err
    figures = json.loads(out)
    assert figures["unit"] == "seconds"
    assert figures["configurations"][0]["relative_to_unmodified"] > 0
    manifest = read_manifest(tmp_path / "seconds")
    costs = load_costs(tmp_path / "seconds", manifest)
    assert costs.by_batch is not None
    frontier = load_frontier(tmp_path / "seconds", manifest)
    assert frontier.meta["max_exits"] == 1  # as built
    assert len(frontier) == len(figures["configurations"])
    net, frontier, costs = offramp.load(tmp_path / "seconds", small.model())
    engine = offramp.Engine(net, frontier[0], costs=costs)
    engine(small.inputs())
    assert engine.stats().macs > 0
    assert load_costs(artifact, read_manifest(artifact)).unit == "macs"  # the source is left alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unit", "euros"], "--unit: expected seconds or joules, got 'euros'"),
        (["--batch-size", "0"], "expected batch_size to be an integer of at least 1"),
        (["--dtype", "int3"], "dtype: expected"),
        (["--int8", "--dtype", "bfloat16"], "choose one"),
        (["--threads", "1000000"], "--threads: expected 1 to "),
        (["--threads", "0"], "on this machine, got 0"),
    ],
    ids=["unit", "batch", "dtype", "both", "threads", "none"],
)
def test_wrong_options_are_refused(invoke, options, message):
    code, _, err = invoke(*options)
    assert code == 1
    assert message in err


def test_memory_that_cannot_be_kept_is_said(invoke, monkeypatch):
    monkeypatch.setattr("offramp.runtime.keep_memory", lambda: False)
    code, _, err = invoke("--keep-memory")
    assert code == 1
    assert "leave it out" in err


def test_nothing_is_overwritten(invoke, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = invoke("--out", str(tmp_path))
    assert code == 1
    assert "choose another folder" in err
