"""Manifests of exports with a right checksum and something wrong in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exported import CASES
from mutations import mutated
from offramp import CostTable, ExitConfig
from offramp.errors import ArtifactError, OfframpError
from offramp.export import onnx, onnx_single
from offramp.export.manifest import WEIGHTS
from offramp.export.ort import OrtEngine, OrtSingle
from offramp.storage.folder import MANIFEST, document_digest

NAME = "carried mask"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain and a single graph of one network."""
    folder, case = tmp_path_factory.mktemp("exports"), CASES[NAME]()
    onnx.to_onnx(case.net, case.frontier, case.costs, folder / "chain")
    onnx_single.to_onnx_single(case.net, case.frontier, case.costs, folder / "single")
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def reseal(folder: Path, change: Change) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    document.pop("sha256")
    change(document)
    (folder / MANIFEST).write_text(json.dumps({**document, "sha256": document_digest(document)}))


def entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("name", ["../elsewhere.onnx", "{folder}/elsewhere.onnx", "unlisted.onnx"])
@pytest.mark.parametrize("part", ["spans", "exits", "fused"])
def test_no_graph_is_loaded_that_no_checksum_covers(copy: Path, part: str, name: str) -> None:
    name = name.format(folder=copy)
    document = json.loads((copy / "chain" / MANIFEST).read_text())
    shutil.copy(copy / "chain" / document[part][0]["file"], copy / "chain" / name)
    reseal(copy / "chain", lambda d: d[part][0].update(file=name))
    with pytest.raises(ArtifactError, match="is not in its list of files; export it again"):
        OrtEngine(copy / "chain", threads=1)


@pytest.mark.parametrize("name", ["../elsewhere.onnx", "{folder}/elsewhere.onnx"])
def test_a_path_in_the_list_of_files_is_none_either(copy: Path, name: str) -> None:
    name = name.format(folder=copy)
    shutil.copy(copy / "single" / "model.onnx", copy / "elsewhere.onnx")

    def change(document: dict[str, Any]) -> None:
        document["spans"][0]["file"] = name
        document["files"][name] = entry(copy / "elsewhere.onnx")

    reseal(copy / "single", change)
    with pytest.raises(ArtifactError, match=r"elsewhere.onnx' is missing; copy the whole folder again"):
        OrtSingle(copy / "single", threads=1)


def test_weights_that_are_not_listed_are_not_used(copy: Path) -> None:
    reseal(copy / "chain", lambda d: d["files"].pop(WEIGHTS))
    with pytest.raises(ArtifactError, match=r"weights.bin is not in its list of files; export it again"):
        OrtEngine(copy / "chain", threads=1)


def test_a_link_out_of_the_folder_is_refused(copy: Path) -> None:
    (copy / "single" / "model.onnx").rename(copy / "elsewhere.onnx")
    (copy / "single" / "model.onnx").symlink_to("../elsewhere.onnx")
    with pytest.raises(ArtifactError, match=r"model.onnx: is a link out of the folder; put the file itself"):
        OrtSingle(copy / "single", threads=1)


def port(name: str = "x9", shape: Any = ("batch", 6), dtype: str = "int64") -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": dtype}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("keyword"), "keyword is missing"),
        (lambda d: d.update(keyword=1), "keyword: expected true or false, got 1"),
        (lambda d: d.update(positions=["a", "b"]), 'positions: expected a list of distinct names, "input"'),
        (lambda d: d.update(positions="input"), "positions: expected a list of distinct names"),
        (lambda d: d.update(heads=["tokens", "tokens"]), "heads: expected a list of distinct names"),
        (lambda d: d.update(heads=[["tokens"]]), "heads: expected a list of distinct names"),
        (lambda d: d.update(task=""), "task: expected a name, got ''"),
        (lambda d: d.update(mask_input=-1), "mask_input: expected a whole number or null, got -1"),
        (lambda d: d.update(mask_input=2), "mask_input: expected an index below 2, got 2"),
        (lambda d: d.update(mask_input=None), "mask: expected None, as mask_input says"),
        (lambda d: d.update(mask_input=1), "mask: expected 'ids', as mask_input says"),
        (lambda d: d.update(mask_input=None, mask=None), "its inputs are not what is there"),
        (lambda d: d.update(classes=["a"]), "classes: expected 3 names, one per output"),
        (lambda d: d.update(classes=3), "classes: expected a list of names or null, got 3"),
        (lambda d: d.update(spans={}), r"spans: expected a list, got \{\}"),
        (lambda d: d.update(spans=[3]), r"spans\[0\]: expected an object, got 3"),
        (lambda d: d.update(check=3), "check: expected an object or null, got 3"),
        (lambda d: d.update(inputs=[]), "inputs: expected at least one, with distinct names"),
        (lambda d: d["inputs"][0].update(graph_name="x1"), "inputs: expected at least one, with distinct"),
        (lambda d: d["inputs"][0].update(shape=[4, 6]), "x0: expected one row per sample"),
        (
            lambda d: d["inputs"][0].update(shape=["batch", -6]),
            r"inputs\[0\].shape: expected a list of sizes",
        ),
        (lambda d: d["inputs"][0].update(shape=None), r"inputs\[0\].shape: expected a list of sizes"),
        (lambda d: d["inputs"][0].update(dtype="object"), r"inputs\[0\].dtype: expected a type of NumPy"),
        (lambda d: d["answer"].update(shape=["batch"]), "answer.shape: expected 2 or 3 sizes"),
        (
            lambda d: d["answer"].update(shape=["batch", 9]),
            "its outputs are not what is wanted at position 3",
        ),
        (lambda d: d["spans"][0].update(to=-1), r"spans\[0\].to: expected a whole number of at least 0"),
        (lambda d: d["spans"][0].update(to=0), "its spans do not lead from position 0 to 3"),
        (lambda d: d["spans"][1]["inputs"].append(port()), "span-1-2.onnx: its inputs are not what is there"),
        (
            lambda d: d["spans"][1].update(outputs=[]),
            "its outputs are not what is wanted|are not what is there",
        ),
        (lambda d: d["fused"][0].update({"from": 5}), "expected a span between positions of spans"),
        (lambda d: d["fused"][0].update(file="span-0-1.onnx"), "expected a file called span-0-3"),
        (lambda d: d["exits"].reverse(), "exits: expected them in order of position and head, each once"),
        (lambda d: d["exits"][1].update(position=7), "exit-2-1.onnx: there is no position 7"),
        (lambda d: d["exits"][1].update(head=7), "exit-2-1.onnx: there is no head 7"),
        (lambda d: d["exits"][0].update(file="exit-2-1.onnx"), "expected a file called exit-1-0"),
        (lambda d: d["exits"][0].update(outputs=[]), "exit-1-0.onnx: it does not give an answer"),
        (lambda d: d["exits"][0]["inputs"][1].update(shape=["batch", 7]), "its mask is not like the input 0"),
        (lambda d: d.update(thresholds=[[0.5, 0.5]]), "thresholds: expected those of its frontier"),
        (lambda d: d.update(exits=[]), "no head 'tokens' at 'layers.0'"),
        (
            lambda d: d.update(costs=json.loads(CostTable([0, 1], [[1]], "macs").to_json())),
            r"costs: expected 3 positions and 2 heads, got \(1, 1\)",
        ),
        (lambda d: d["frontier"].update(by_tradeoff=3), "frontier: damaged"),
    ],
)
def test_a_wrong_field_is_named(copy: Path, change: Change, message: str) -> None:
    reseal(copy / "chain", change)
    with pytest.raises(ArtifactError, match=f"its manifest is damaged, .*{message}"):
        OrtEngine(copy / "chain", threads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["spans"].clear(), "its spans do not lead from position 0 to 3"),
        (lambda d: d["spans"][0]["inputs"].pop(), "spans: expected one graph that takes the inputs"),
        (lambda d: d["spans"][0].update(inputs=[]), "spans: expected one graph that takes the inputs"),
        (lambda d: d["spans"][0]["outputs"].pop(), "spans: the graph does not give an answer"),
    ],
)
def test_a_wrong_field_of_a_single_graph_is_named(copy: Path, change: Change, message: str) -> None:
    reseal(copy / "single", change)
    with pytest.raises(ArtifactError, match=f"its manifest is damaged, {message}"):
        OrtSingle(copy / "single", threads=1)


def test_a_graph_with_other_ports_than_described_is_refused(copy: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        for graph in (*document["spans"], *document["exits"]):
            for each in (*graph["inputs"], *graph["outputs"]):
                each["name"] = each["name"].replace("h1_0", "h")

    reseal(copy / "chain", change)
    with pytest.raises(ArtifactError, match=r"its (in|out)puts are not those that the manifest describes"):
        OrtEngine(copy / "chain", threads=1, fuse=False)


def test_no_number_of_json_names_the_file(copy: Path) -> None:
    text = (copy / "chain" / MANIFEST).read_text()
    (copy / "chain" / MANIFEST).write_text(text.replace('"mask_input": 0', '"mask_input": NaN'))
    with pytest.raises(ArtifactError, match=r"manifest.json: expected .*NaN is no number of JSON.*; copy it"):
        OrtEngine(copy / "chain", threads=1)


def test_an_engine_does_not_mix_two_exports(copy: Path) -> None:
    case = CASES[NAME]()
    engine = OrtEngine(copy / "chain", threads=1)
    onnx.to_onnx(case.net, case.frontier, case.costs, copy / "chain")
    with pytest.raises(
        ArtifactError, match="was replaced or changed since it was checked; make a new engine"
    ):
        engine.prepare(case.frontier[0])
    engine(case.arrays)  # what it has goes on


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "loop"])
def test_paths_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for kind in (OrtEngine, OrtSingle):
        with pytest.raises(ArtifactError):
            kind(tmp_path / name)


def same_or_refused(whole: Path, folder: Path, count: int, seed: int) -> list[str]:
    """Load and run exports with mutated manifests; what gave other answers, or another error."""
    random, wrong = np.random.default_rng(seed), []
    case = CASES[NAME]()
    for name, kind in (("chain", OrtEngine), ("single", OrtSingle)):
        shutil.copytree(whole / name, folder / name)
        document = json.loads((folder / name / MANIFEST).read_text())
        document.pop("sha256")
        configs = [ExitConfig(), *case.frontier]
        wanted = [kind(folder / name, config, threads=1)(case.arrays) for config in configs]
        for _ in range(count):
            what, changed = mutated(document, random)
            sealed = {**changed, "sha256": document_digest(changed)}
            (folder / name / MANIFEST).write_text(json.dumps(sealed))
            try:
                for config, answer in zip(configs, wanted, strict=True):
                    found = kind(folder / name, config, threads=1)(case.arrays)
                    if not np.array_equal(found.outputs, answer.outputs):
                        wrong.append(f"other answers: {name} {what}")
            except OfframpError:
                continue
            except Exception as error:
                wrong.append(f"{name} {what}: {error!r}")
    return wrong


def test_mutated_manifests_are_refused_or_give_the_same(whole: Path, tmp_path: Path) -> None:
    assert same_or_refused(whole, tmp_path, 150, seed=0) == []


@pytest.mark.long
def test_five_thousand_mutated_manifests(whole: Path, tmp_path: Path) -> None:
    assert same_or_refused(whole, tmp_path, 2500, seed=1) == []


def test_a_pipe_in_the_place_of_a_graph_is_not_waited_for(copy: Path) -> None:
    (copy / "single" / "model.onnx").unlink()
    os.mkfifo(copy / "single" / "model.onnx")
    with pytest.raises(ArtifactError, match=r"'model.onnx' is missing"):
        OrtSingle(copy / "single", threads=1)
