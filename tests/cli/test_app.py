"""The command line as a user meets it: help, a whole project, JSON, every kind of failure."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import offramp
from offramp import ExitRecords
from offramp.artifacts.manifest import load_frontier, read_manifest
from offramp.cli import app
from offramp.core.config import config_to_dict

OWN_PROJECT = Path(__file__).parents[2] / "examples" / "own_project"


@pytest.fixture
def invoke():
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments):
        app._state["debug"] = False
        result = CliRunner().invoke(app.app, [str(a) for a in arguments])
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the example user project, made small."""
    folder = tmp_path_factory.mktemp("project")
    text = (OWN_PROJECT / "shop.py").read_text().replace("range(8)", "range(1)").replace("2000", "400")
    (folder / "shop.py").write_text(text.replace("1000", "300"))
    return folder


@pytest.fixture(scope="module")
def artifact(project, tmp_path_factory):
    """An artifact built from that project by the command line."""
    out = tmp_path_factory.mktemp("built") / "artifact"
    with_cwd = pytest.MonkeyPatch()
    with_cwd.chdir(project)
    try:
        result = CliRunner().invoke(
            app.app, ["build", "shop:model", "shop:data", "--out", str(out), "--epochs", "8"]
        )
    finally:
        with_cwd.undo()
    assert result.exit_code == 0, result.output
    assert "next: offramp report" in result.stdout
    assert not list(out.parent.glob(".*"))  # no working folder left
    return out


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project)


@pytest.mark.parametrize("command", ["demo", "build", "search", "show", "eval", "certify", "run", "report"])
def test_help_explains(invoke, command):
    code, out, _ = invoke(command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 8
    assert "Usage" in out


def test_without_arguments_it_shows_what_there_is(invoke):
    _, out, _ = invoke()
    commands = ("demo", "build", "search", "show", "eval", "certify", "run", "report")
    assert all(name in out for name in commands)


def test_version(invoke):
    assert invoke("--version")[:2] == (0, offramp.__version__ + "\n")


def test_eval_as_table_and_as_json(invoke, artifact):
    code, out, _ = invoke("eval", artifact)
    assert code == 0
    assert "configurations, figures on the report split (300 samples)" in out
    code, out, _ = invoke("eval", artifact, "--json")
    document = json.loads(out)
    assert (code, document["split"], document["samples"]) == (0, "report", 300)
    costs = [row["relative_cost"] for row in document["configurations"]]
    assert all(0 < cost <= 1 for cost in costs)
    assert set(document["configurations"][0]) >= {"choices", "quality", "drop", "exit_shares", "expected"}


def test_eval_of_one_choice(invoke, artifact):
    wanted = load_frontier(artifact, read_manifest(artifact)).at(max_cost=0.6)
    code, out, _ = invoke("eval", artifact, "--max-cost", "0.6", "--json")
    (row,) = json.loads(out)["configurations"]
    assert (code, row["choices"]) == (0, config_to_dict(wanted)["choices"])


def test_choice_out_of_range_says_the_range(invoke, artifact):
    code, out, err = invoke("eval", artifact, "--max-cost", "0.0001")
    assert (code, out) == (1, "")
    assert "costs run from" in err
    code, _, err = invoke("eval", artifact, "--max-cost", "0.5", "--max-drop", "0.1")
    assert code == 1
    assert "expected exactly one of" in err


def test_search_again_changes_the_frontier_only(invoke, artifact, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in artifact.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    code, out, _ = invoke("search", copy, "--max-exits", "1", "--regularise", "none", "--json")
    assert code == 0
    assert all(len(row["choices"]) <= 1 for row in json.loads(out)["configurations"])
    changed = {f.name for f in artifact.iterdir() if f.read_bytes() != (copy / f.name).read_bytes()}
    assert changed == {"frontier.json", "manifest.json"}
    for method in ("single-pass", "iterative", "same-threshold"):
        assert invoke("search", copy, "--method", method, "--regularise", "0.001")[0] == 0
    code, _, err = invoke("search", copy, "--method", "magic")
    assert code == 1
    assert "magic" in err
    assert "exact" in err
    code, _, err = invoke("search", copy, "--regularise", "much")
    assert code == 1
    assert "expected 'auto', 'none' or a number, got 'much'" in err


@pytest.fixture
def own_copy(artifact, tmp_path):
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def test_certify_stores_what_it_shows(invoke, own_copy, tmp_path):
    before = {file.name: file.read_bytes() for file in own_copy.iterdir()}
    code, out, _ = invoke("certify", own_copy, "--max-drop", "0.2", "--delta", "0.1")
    assert code == 0
    assert "expected at" in out
    assert "With probability at least 90% over the draw of the 300 samples" in out
    assert "the drop of quality against the full model is at most 0.2" in out
    assert "These samples (report split) chose the configuration" in out
    changed = {name for name, content in before.items() if (own_copy / name).read_bytes() != content}
    assert changed == {"frontier.json", "manifest.json"}
    configurations = json.loads(invoke("eval", own_copy, "--json")[1])["configurations"]
    (index,) = [row["index"] for row in configurations if "certificate" in row]
    assert f"configuration {index} of" in out
    assert invoke("report", own_copy, "--out", tmp_path / "page.html")[0] == 0
    assert "With probability at least 90% over the draw" in (tmp_path / "page.html").read_text()
    code, out, _ = invoke("certify", own_copy, "--max-drop", "0.2", "--delta", "0.1", "--json")
    document = json.loads(out)
    assert (code, document["certified"], document["index"]) == (0, True, index)
    assert document["certificate"] == configurations[index]["certificate"]
    assert document["in_words"].startswith("With probability")


def test_certify_says_no_with_its_own_exit_code(invoke, own_copy, tmp_path):
    before = (own_copy / "frontier.json").read_bytes()
    records = ExitRecords.load(own_copy / "records-report.safetensors")
    records = replace(records, quality=np.ones_like(records.quality), final_quality=np.ones(records.samples))
    records.subset(range(20)).save(tmp_path / "few.safetensors")
    replace(records, quality=0 * records.quality).save(tmp_path / "bad.safetensors")
    arguments = ["certify", own_copy, "--max-drop", "0.01", "--records"]
    code, out, err = invoke(*arguments, tmp_path / "few.safetensors")
    assert (code, err) == (3, "")
    assert "no configuration can be certified to lose at most 0.01 with delta 0.05 on 20 samples" in out
    assert "roughly 300 samples would do" in out
    code, out, _ = invoke(*arguments, tmp_path / "bad.safetensors")
    assert code == 3
    assert "even the most expensive one loses that much on them: allow more, or search again" in out
    code, out, _ = invoke(*arguments, tmp_path / "few.safetensors", "--json")
    assert (code, json.loads(out)) == (3, {"certified": False, "samples": 20, "samples_needed": 300})
    assert (own_copy / "frontier.json").read_bytes() == before


def test_certify_on_records_of_ones_own(invoke, own_copy, tmp_path):
    records = ExitRecords.load(own_copy / "records-report.safetensors")
    records.subset(range(200)).save(tmp_path / "new.safetensors")
    code, out, _ = invoke("certify", own_copy, "--max-drop", "0.3", "--records", tmp_path / "new.safetensors")
    assert code == 0
    assert "the draw of the 200 samples" in out
    assert f"({tmp_path / 'new.safetensors'})".replace("\n", "") in out.replace("\n", "")
    replace(records, heads=records.heads[::-1]).save(tmp_path / "other.safetensors")
    code, _, err = invoke(
        "certify", own_copy, "--max-drop", "0.3", "--records", tmp_path / "other.safetensors"
    )
    assert code == 1
    assert "these records are of another network" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--max-drop", "0.1", "--split", "search"],
            "--split search: exits or configurations were chosen on",
        ),
        (["--max-drop", "0.1", "--split", "train"], "--split train: exits or configurations"),
        (["--max-drop", "0.1", "--split", "fresh"], "holds no fresh records"),
        (["--max-drop", "0.1", "--split", "report", "--records", "x"], "expected --split or --records"),
        (["--max-drop", "0.1", "--records", "nowhere"], "nowhere"),
        (["--max-drop", "1"], "max_drop: expected a fraction"),
        (["--max-drop", "0.1", "--delta", "0"], "expected a number between 0 and 1"),
    ],
)
def test_certify_refuses(invoke, artifact, arguments, message):
    code, out, err = invoke("certify", artifact, *arguments)
    assert (code, out) == (1, "")
    assert message in err


def test_certify_needs_a_bound(invoke, artifact):
    code, _, err = invoke("certify", artifact)
    assert code == 2
    assert "--max-drop" in err


def test_run_measures(invoke, artifact, inside):
    code, out, _ = invoke("run", artifact, "shop:model", "shop:data", "--max-drop", "0.02", "--json")
    document = json.loads(out)
    assert code == 0
    assert 0 < document["relative_macs"] < 1
    assert sum(document["exit_shares"].values()) == pytest.approx(1)
    code, out, _ = invoke("run", artifact, "shop:model", "shop:data")
    assert code == 0
    assert "MACs 100.0% of the full model" in out
    code, _, err = invoke("run", artifact, "shop:model", "shop:data", "--split", "other")
    assert code == 1
    assert "expected train, search or report" in err


def test_report_writes_a_page(invoke, artifact, tmp_path):
    code, out, _ = invoke("report", artifact, "--out", tmp_path / "page.html", "--title", "Sales & trends")
    assert code == 0
    assert str(tmp_path / "page.html") in out
    assert "Sales &amp; trends" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("out", ["", ".", "/"])
def test_report_needs_a_path_that_ends_in_a_name(invoke, artifact, out):
    code, _, err = invoke("report", artifact, "--out", out)
    assert code == 1
    assert "expected a path that ends in a name" in err


def test_build_without_labels_and_report_split(invoke, tmp_path, monkeypatch):
    (tmp_path / "plain.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Block(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.f = nn.Linear(16, 16)\n"
        "    def forward(self, x):\n        return torch.relu(self.f(x)) + x\n"
        "def model():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(Block(), Block(), Block(), nn.Linear(16, 3))\n"
        "def data():\n    torch.manual_seed(1)\n"
        "    return {name: list(torch.randn(200, 16).split(50)) for name in ('train', 'search')}\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["build", "plain:model", "plain:data", "--out", tmp_path / "a", "--epochs", "2"]
    code, _, err = invoke(*arguments)
    assert code == 1
    assert "search split: the loader gives no labels" in err
    assert "--agreement" in err
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("plain.py", "__pycache__")] == []
    code, out, _ = invoke(*arguments, "--agreement", "--heads", "linear,mlp", "--cuts", "0,1", "--json")
    assert code == 0
    assert json.loads(out)["positions"] == ["input", "0", "1"]
    code, out, _ = invoke("eval", tmp_path / "a")
    assert code == 0
    assert "expect less on new ones" in out
    code, _, err = invoke("report", tmp_path / "a")
    assert code == 1
    assert "holds no report records" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "shop", "shop:data", "--out", "x"], "or package.module:callable, got 'shop'"),
        (["build", "nothing:model", "shop:data", "--out", "x"], "no module 'nothing'"),
        (["build", "shop:modle", "shop:data", "--out", "x"], "shop has no callable 'modle'"),
        (
            ["build", "shop:data", "shop:data", "--out", "x"],
            "expected it to return a torch.nn.Module, got dict",
        ),
        (["build", "shop:model", "shop:model", "--out", "x"], "expected a mapping with 'train'"),
        (["build", "shop:model", "shop:data", "--out", "x", "--heads", "lineer"], "did you mean 'linear'"),
        (
            ["build", "shop:model", "shop:data", "--out", "x", "--cuts", "blocks.9"],
            "no module call 'blocks.9'",
        ),
        (["build", "shop:model", "shop:data", "--out", "x", "--epochs", "0"], "TrainConfig.epochs"),
        (["build", "shop:model", "shop:data", "--out", "shop.py/x"], "not a folder you may write to"),
        (["eval", "nowhere"], "expected an artifact at nowhere, found no folder"),
        (["eval", "."], "expected an artifact at ., found no manifest.json"),
        (["report", "nowhere"], "found no folder; check the path"),
    ],
)
def test_bad_input_is_one_message(invoke, inside, arguments, message):
    code, out, err = invoke(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("out", ["", "/", "..", "full"])
def test_an_output_that_cannot_be_is_refused_before_the_work(invoke, inside, project, out):
    (project / "full").mkdir(exist_ok=True)
    (project / "full" / "mine.txt").write_text("keep")
    code, _, err = invoke("build", "shop:model", "shop:data", "--out", out)
    assert code == 1
    assert err.startswith("error: ")
    assert "cannot write" in err or "exists and is not an artifact" in err
    assert (project / "full" / "mine.txt").read_text() == "keep"
    assert not list(project.glob(".*.work"))


def test_options_reach_the_artifact(invoke, inside, tmp_path):
    arguments = ["build", "shop:model", "shop:data", "--out", tmp_path / "a", "--epochs", "1", "--json"]
    options = ["--heads", "linear", "--confidence", "margin", "--store-backbone", "--max-exits", "1"]
    code, out, _ = invoke(*arguments, *options)
    assert code == 0
    assert set(json.loads(out)["samples"]) == {"search", "report"}
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["network"]["confidence"] == "margin"
    assert "backbone.safetensors" in manifest["files"]
    assert len({(tmp_path / "a" / name).stat().st_mode for name in manifest["files"]}) == 1
    code, out, _ = invoke("search", tmp_path / "a", "--json")  # as many exits as it was built with
    assert all(len(row["choices"]) <= 1 for row in json.loads(out)["configurations"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[(torch.rand(6, 1, 32), torch.zeros(6, 1).long())]", "labels: expected shape"),
        ("[(torch.rand(6, 1, 32), torch.full((6,), 9))]", "expected 0 to 3"),
        ("[(torch.full((6, 1, 32), math.nan), torch.zeros(6).long())]", "not finite"),
        ("[(torch.rand(6, 1, 31), torch.zeros(6).long())]", "expected shape"),
        ("[]", "yields no samples"),
        ("Broken()", "reading batch 1 fails: ZeroDivisionError: division by zero"),
    ],
)
def test_run_refuses_data_that_does_not_fit(invoke, artifact, inside, project, data, message):
    (project / "odd.py").write_text(
        "import math, torch\nfrom shop import data as good\n"
        "class Broken:\n"
        "    def __iter__(self):\n        yield from list(good()['report'])[:1]\n        1 / 0\n"
        f"def data():\n    return good() | {{'report': {data}}}\n"
    )
    __import__("sys").modules.pop("odd", None)
    code, out, err = invoke("run", artifact, "shop:model", "odd:data", "--max-cost", "1")
    assert (code, out) == (1, "")
    assert message in err


def test_errors_name_the_split(invoke, inside, project, tmp_path):
    text = "from shop import data as good\ndef data():\n    return good() | {'report': []}\n"
    (project / "hollow.py").write_text(text)
    code, _, err = invoke("build", "shop:model", "hollow:data", "--out", tmp_path / "a")
    assert code == 1
    assert "report split: the loader yields no samples" in err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[(torch.rand(6, 1, 32), torch.full((6,), 4))]", "train split: labels: expected 0 to 3"),
        ("[(torch.rand(6, 1, 32), torch.zeros(6))]", "train split: labels: expected integers"),
    ],
)
def test_labels_are_looked_at_before_the_work(invoke, inside, project, tmp_path, data, message):
    (project / "labels.py").write_text(
        f"import torch\nfrom shop import data as good\ndef data():\n    return good() | {{'train': {data}}}\n"
    )
    sys.modules.pop("labels", None)
    code, _, err = invoke("build", "shop:model", "labels:data", "--out", tmp_path / "a")
    assert code == 1
    assert message in err
    assert not list(tmp_path.glob(".a.work/*"))


def test_exits_at_the_input_and_a_task_by_name(invoke, inside, tmp_path):
    arguments = ["shop:model", "shop:data", "--input-exit", "small=shop:model"]
    build = ["build", *arguments, "--input-exit", "pooled=linear", "--task", "classification"]
    code, out, err = invoke(*build, "--heads", "linear", "--epochs", "1", "--out", tmp_path / "a", "--json")
    assert code == 0, err
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["network"]["heads"] == ["linear", "small", "pooled"]
    code, out, err = invoke("run", tmp_path / "a", *arguments, "--max-cost", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["batches"] == 3
    for options, message in (
        (["--task", "clasification"], "did you mean 'classification'"),
        (["--input-exit", "linear"], "--input-exit: expected NAME=MODEL or NAME=KIND"),
        (["--input-exit", "x=lineer"], "did you mean 'linear'"),
        (["--mask", "words"], "mask: expected the name of an input, one of 0; got 'words'"),
        (["--device", "tpu7"], "--device tpu7"),
    ):
        code, _, err = invoke("build", "shop:model", "shop:data", "--out", tmp_path / "b", *options)
        assert (code, message in err) == (1, True), err


def test_a_model_and_images_by_name(invoke, tmp_path):
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(15):
            picture = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            image.fromarray(picture).save(tmp_path / "pets" / name / f"{i}.jpg")
    names = ["timm:test_resnet,pretrained=false,classes=2,size=32", f"imagefolder:{tmp_path / 'pets'}"]
    options = ["--out", tmp_path / "a", "--heads", "linear", "--epochs", "1"]
    code, out, err = invoke("build", *names, *options)
    assert code == 0, err
    assert f"offramp run {tmp_path / 'a'} {names[0]} {names[1]}" in out.replace("\n", "")
    code, out, err = invoke("run", tmp_path / "a", *names, "--json")
    assert code == 0, err
    assert json.loads(out)["relative_macs"] == 1
    code, _, err = invoke("build", names[0].replace("classes=2", "classes=5"), names[1], *options)
    assert code == 1
    assert "expected 5 classes because the model has 5 outputs, got 2 (cat, dog)" in err


def test_run_goes_through_the_data_once_and_keeps_no_batch(invoke, artifact, inside, project):
    (project / "counting.py").write_text(
        "import weakref\nfrom shop import data as good\n"
        "passes, alive, most = [], [], []\n"
        "class Counting:\n"
        "    def __iter__(self):\n"
        "        passes.append(1)\n"
        "        for x, y in good()['report']:\n"
        "            x = x.clone()\n"
        "            alive.append(weakref.ref(x))\n"
        "            most.append(sum(each() is not None for each in alive))\n"
        "            yield x, y\n"
        "def data():\n    return good() | {'report': Counting()}\n"
    )
    sys.modules.pop("counting", None)
    code, out, err = invoke("run", artifact, "shop:model", "counting:data", "--json")
    assert code == 0, err
    assert json.loads(out)["batches"] == 3
    counting = sys.modules["counting"]
    assert len(counting.passes) == 1
    assert max(counting.most) <= 2  # the one before may not have gone yet


def test_a_folder_that_may_not_be_searched(invoke, monkeypatch):
    def forbidden(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", forbidden)
    for arguments in (["eval", "locked/artifact"], ["report", "locked/artifact"]):
        code, out, err = invoke(*arguments)
        assert (code, out) == (1, "")
        assert err == "error: permission denied: locked/artifact; choose a path that you may read\n"


def test_damaged_artifact(invoke, artifact, tmp_path):
    for name in ("heads.safetensors", "frontier.json", "manifest.json"):
        copy = tmp_path / name.replace(".", "-")
        copy.mkdir()
        for file in artifact.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        code, _, err = invoke("eval", copy)
        assert code == 1
        assert err.startswith("error: ")


def test_unexpected_errors_ask_for_debug(invoke, artifact, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("offramp.artifacts.load_frontier", broken)
    code, _, err = invoke("eval", artifact)
    assert code == 70
    assert err == "unexpected error: RuntimeError: a bug\nrun again with --debug and report the traceback\n"


def test_demo_prints_for_people_or_for_machines(invoke, monkeypatch, tmp_path):
    def quick(out, console, seed):
        console.print("for people")
        return {"out": str(out), "seed": seed}

    monkeypatch.setattr("offramp.cli.demo.run_demo", quick)
    assert invoke("demo", "--out", tmp_path)[:2] == (0, "for people\n")
    code, out, _ = invoke("demo", "--out", tmp_path, "--seed", "3", "--json")
    assert (code, json.loads(out)) == (0, {"out": str(tmp_path), "seed": 3})


def test_control_c_is_130_and_a_closed_pipe_is_silent(invoke, artifact, monkeypatch):
    for error, wanted in ((KeyboardInterrupt(), (130, "stopped")), (BrokenPipeError(), (1, ""))):

        def stop(*_, error=error):
            raise error

        monkeypatch.setattr("offramp.artifacts.load_frontier", stop)
        code, _, err = invoke("eval", artifact)
        assert (code, err.startswith(wanted[1])) == (wanted[0], True)
        assert "Traceback" not in err


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "offramp", "eval", "nowhere"]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert (plain.returncode, "Traceback" in plain.stderr) == (1, False)
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr


def test_control_c_leaves_nothing_half_written(tmp_path):
    slow = (
        "import time\nfrom shop import *\nfrom shop import data as fast\n"
        "def slow(batches):\n    for batch in batches:\n        time.sleep(0.3)\n        yield batch\n"
        "class Slow:\n    def __init__(self, loader):\n        self.loader = loader\n"
        "    def __iter__(self):\n        print('started', flush=True)\n        return slow(self.loader)\n"
        "def data():\n    return {name: Slow(loader) for name, loader in fast().items()}\n"
    )
    (tmp_path / "slowly.py").write_text(slow)
    text = (OWN_PROJECT / "shop.py").read_text().replace("range(8)", "range(1)")
    (tmp_path / "shop.py").write_text(text)
    command = [sys.executable, "-m", "offramp", "build", "slowly:model", "slowly:data", "--out", "artifact"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # started in the background of a shell, a test run ignores the signal and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for _ in range(2):  # once for the example batch, once for the cache
        assert process.stdout.readline() == "started\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here with the same command" in err
    assert "Traceback" not in err
    assert not (tmp_path / "artifact").exists()
    assert not list(tmp_path.glob("*.tmp"))
