"""Habits at a command line: -h, completion, paths that cannot be, a full disk, Ctrl-C, names that steer."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import offramp
import small
from offramp.artifacts import load_summary, read_manifest, save
from offramp.cli import app, output
from offramp.core import CostTable, ExitRecords
from offramp.errors import StorageError
from offramp.pipeline import BuildConfig, build
from offramp.report import frontier_rows, frontier_table
from offramp.sources import DataSummary, Splits
from offramp.training import TrainConfig

COMMANDS = ("demo", "build", "search", "show", "eval", "certify", "run", "bench", "export", "report")
SUMMARY = DataSummary(
    model="mine:model", data="npz:a.npz", splits={"train": 9}, classes={"a[/b]": 0}, notes=("\x1b[31m red",)
)


@pytest.fixture(scope="module")
def built():
    loaders = {name: small.loader(seed=10 * i) for i, name in enumerate(("train", "search", "report"))}
    splits = Splits(**loaders, example=small.few(small.inputs()), summary=SUMMARY)
    return build(small.model(), splits, BuildConfig(heads=("linear",), train=TrainConfig(epochs=1)))


@pytest.fixture
def artifact(built, tmp_path):
    folder = tmp_path / "artifact"
    save(folder, built.net, built.frontier, built.costs, records=built.records, summary=built.summary)
    return folder


def invoke(*arguments):
    app._state["debug"] = False
    result = CliRunner().invoke(app.app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


def run(*arguments, **options):
    command = [sys.executable, "-m", "offramp", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_short_option_for_help(command):
    assert invoke(command, "-h") == invoke(command, "--help")
    assert invoke(command, "-h")[0] == 0


def test_completion_can_be_had():
    wanted = {"_OFFRAMP_COMPLETE": "complete_bash", "COMP_WORDS": "offramp ex", "COMP_CWORD": "1"}
    out = subprocess.run(
        [sys.executable, "-m", "offramp"],
        env={**os.environ, **wanted},
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert out.split() == ["export"]


def test_what_was_found_is_stored_and_shown(artifact, tmp_path):
    assert load_summary(artifact, read_manifest(artifact)) == SUMMARY
    code, out, _ = invoke("show", artifact)
    assert code == 0
    assert "data: npz:a.npz" in out
    assert "classes: a[/b] = 0" in out
    assert "note: \ufffd[31m red" in out
    document = json.loads(invoke("show", artifact, "--json")[1])
    assert document["data"] == SUMMARY.to_dict()
    assert invoke("search", artifact)[0] == 0  # keeps it
    assert load_summary(artifact, read_manifest(artifact)) == SUMMARY
    assert invoke("report", artifact, "--out", tmp_path / "page.html")[0] == 0
    assert "<dt>classes</dt><dd>a[/b] = 0</dd>" in (tmp_path / "page.html").read_text()


def test_what_was_found_is_printed_before_the_work(built, capsys):
    output.show_found(SUMMARY, built.net)
    out = capsys.readouterr().out
    assert "splits:   train 9 samples\n" in out
    assert f"positions: {len(built.net.positions) - 1} positions after " in out


@pytest.mark.parametrize("name", ["manifest.json", "frontier.json", "heads.safetensors", "linked.html"])
def test_a_report_never_replaces_a_part_of_an_artifact(artifact, name):
    if name == "linked.html":
        os.link(artifact / "costs.json", artifact / name)
    before = {file.name: file.read_bytes() for file in artifact.iterdir()}
    code, _, err = invoke("report", artifact, "--out", artifact / name)
    assert code == 1
    assert "is a part of the artifact in" in err
    assert {file.name: file.read_bytes() for file in artifact.iterdir()} == before


def test_another_file_beside_an_artifact_can_be_replaced(artifact):
    for _ in range(2):
        assert invoke("report", artifact, "--out", artifact.parent / "page.html")[0] == 0


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x" * 243, "its name is too long, expected at most 241 bytes, got 243; choose a shorter one"),
        ("é" * 121, "expected at most 241 bytes, got 242"),
        ("x" * 300 + "/art", "its name is too long, expected at most 255 bytes, got 300"),
        ("y/" + "x" * 300, "too long"),
    ],
)
def test_names_that_are_too_long_are_refused_before_the_work(tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=message):
        output.check_writable(Path(out))
    output.check_writable(Path("x" * 241))
    code, _, err = invoke("build", "none:model", "none:data", "--out", out)
    assert code == 1
    assert message in err


@pytest.mark.parametrize("command", ["eval", "show", "search", "report"])
@pytest.mark.parametrize("name", ["x" * 300, "loop", "~nosuchuser", "loop/inside"])
def test_paths_that_cannot_be(tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    code, _, err = invoke(command, name)
    assert code == 1
    assert err.startswith("error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_standard_output_is_one_message(artifact):
    with Path("/dev/full").open("w") as full:
        done = run("eval", artifact, "--json", stdout=full)
        assert (done.returncode, done.stderr) == (
            1, "error: standard output: No space left on device; choose another path, or make room\n"
        )  # fmt: skip


def test_a_closed_pipe_is_silent(artifact):
    reader, writer = os.pipe()
    os.close(reader)
    done = run("eval", artifact, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr.strip()) == (1, "")


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.3, 0.5])
def test_control_c_at_the_start_shows_no_traceback(artifact, delay):
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.path[:] = " + repr(sys.path) + "\nprint(flush=True)\n"
         "import runpy; runpy.run_module('offramp', run_name='__main__')", "search", str(artifact)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    process.stdout.readline()  # what comes before is Python's own start
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    ours = "Traceback" in err and "/offramp/" in err  # Python may stop before the first line of ours
    assert not ours, err
    assert process.returncode in (0, 1, 130, -signal.SIGINT)


def test_messages_do_not_steer_the_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = invoke("eval", "a\x1b[31m\x07[/b]")
    assert code == 1
    assert "\x1b" not in err
    assert "a\ufffd[31m\ufffd[/b]" in err


def steering(position="a[/b]\x1b[31m", unit="[red]", samples=1):
    confidence = np.full((2, 1, samples), 0.9)
    records = ExitRecords(
        confidence, np.ones_like(confidence), np.ones(samples), np.array([[False], [True]]),
        ("input", position), ("linear",),
    )  # fmt: skip
    return records, CostTable(np.array([0.0, 1, 2]), np.array([[0.0], [0.1]]), unit)


def test_names_in_tables_are_escaped_and_one_is_singular(capsys):
    records, costs = steering()
    frontier = offramp.search(records, costs, regularise=None)
    output.show_measured(frontier, records, costs, "report")
    out = capsys.readouterr().out
    assert "(1 sample)" in out
    assert "a[/b]\ufffd[31m 100%" in out
    assert "[red]" in out
    assert "* no other row is as cheap and as good" in out


def test_tables_fit_80_columns():
    random = np.random.default_rng(0)
    quality = random.random((9, 2, 400)) < np.linspace(0.3, 0.9, 9)[:, None, None]
    records = ExitRecords(
        random.random(quality.shape), quality.astype(float), np.ones(400), np.ones((9, 2), bool),
        ("input", *(f"encoder.layers.{i}.output.dense" for i in range(8))), ("linear", "attention"),
    )  # fmt: skip
    costs = CostTable(np.linspace(0, 1, 10), np.full((9, 2), 0.01), "seconds")
    frontier = offramp.search(records, costs, regularise=None)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(frontier_table(frontier_rows(frontier, records, costs), records, costs.unit))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert all("%" in line and "…%" not in line for line in lines[1:])


def test_exits_that_beat_the_model_are_asked_about(capsys):
    records, costs = steering("layer", samples=50)
    records = replace(records, final_quality=np.zeros(50))
    output.show_measured(offramp.search(records, costs, regularise=None), records, costs, "report")
    assert (
        "do the preprocessing and the order of the classes fit the model?"
        in capsys.readouterr().out.replace("\n", " ")
    )
