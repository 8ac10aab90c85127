"""Several tasks to a folder and back."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from torch import nn

import offramp
import small
from multitask_nets import Guess, Shared, data
from offramp.artifacts import multitask
from offramp.artifacts.artifact import replace_frontier
from offramp.artifacts.manifest import pinned, read_manifest, write_manifest
from offramp.artifacts.multitask import load_tasks, save_tasks
from offramp.errors import ArtifactError, InputError, StorageError
from offramp.network.multitask import attach_tasks
from offramp.runtime.multi_engine import MultiEngine


@pytest.fixture(scope="module")
def made():
    """(model, inputs, networks, frontiers, costs, records); the heads are untrained."""
    x, what, where, _ = data(60).tensors
    nets = attach_tasks(
        small.model(Shared),
        x[:2],
        {
            "what": {"heads": ("linear",), "input_exits": {"guess": Guess()}},
            "where": {
                "heads": {"blocks.0": ("mlp",), "blocks.1": ("linear",)},
                "input_exits": {"raw": "mlp"},
            },
        },
    )
    labels = {"what": what, "where": where}
    records = {name: offramp.record_outputs(net, [(x, labels[name])]) for name, net in nets.items()}
    costs = {name: offramp.measure_cost(net) for name, net in nets.items()}
    frontiers = {name: offramp.search(records[name], costs[name], tradeoffs=(0.6, 0.9)) for name in nets}
    return nets["what"].backbone, x, nets, frontiers, costs, records


def test_a_round_trip(made, tmp_path, monkeypatch):
    model, x, nets, frontiers, costs, records = made
    kept = {name: {"search": each} for name, each in records.items()}
    save_tasks(tmp_path / "tasks", nets, frontiers, costs, records=kept)
    traced = []
    tracing = importlib.import_module("offramp.graph.partition")
    real = tracing.trace
    monkeypatch.setattr(tracing, "trace", lambda *args: traced.append(1) or real(*args))
    again, more, tables = load_tasks(tmp_path / "tasks", model, input_exits={"what": {"guess": Guess()}})
    assert len(traced) == 1
    assert list(again) == list(nets) == list(more) == list(tables)
    for name, net in again.items():
        assert more[name] == frontiers[name]
        np.testing.assert_array_equal(tables[name].heads, costs[name].heads)
        assert small.same(small.weights(net), small.weights(nets[name]))
    wanted, got = MultiEngine(nets)(x), MultiEngine(again)(x)
    assert all(torch.equal(got[name].outputs, wanted[name].outputs) for name in nets)
    one, _, _ = offramp.load(tmp_path / "tasks" / "where", model)  # each is an artifact like any other
    assert one.head_names == nets["where"].head_names
    save_tasks(tmp_path / "tasks", nets, frontiers, costs)  # one already there is replaced
    assert not (tmp_path / "tasks" / "what" / "records-search.safetensors").exists()


def test_the_backbone_is_stored_once(made, tmp_path):
    model, x, nets, frontiers, costs, _ = made
    save_tasks(tmp_path / "t", nets, frontiers, costs, include_backbone=True)
    assert (tmp_path / "t" / "what" / "backbone.safetensors").exists()
    assert not (tmp_path / "t" / "where" / "backbone.safetensors").exists()
    other, exits = small.model(Shared, seed=5), {"what": {"guess": Guess()}}
    with pytest.raises(ArtifactError, match=r"was made for another model.*pass restore_backbone=True"):
        load_tasks(tmp_path / "t", other, input_exits=exits)
    again, _, _ = load_tasks(tmp_path / "t", other, restore_backbone=True, input_exits=exits)
    with torch.inference_mode():
        assert torch.equal(again["where"](x), model(x)["where"])


def test_folders_that_are_not_whole(made, tmp_path):
    model, _, nets, frontiers, costs, _ = made
    folder, exits = tmp_path / "t", {"what": {"guess": Guess()}}

    def load():
        return load_tasks(folder, model, input_exits=exits)

    with pytest.raises(ArtifactError, match=r"holds no tasks.json; expected a folder from save_tasks"):
        load()
    save_tasks(folder, nets, frontiers, costs)
    with pytest.raises(ArtifactError, match="input_exits: no task 'who'; it has 'what', 'where'"):
        load_tasks(folder, model, input_exits={**exits, "who": {}})
    with pytest.raises(ArtifactError, match=r"where: expected input exits none, got guess"):
        load_tasks(folder, model, input_exits={**exits, "where": {"guess": Guess()}})
    with pytest.raises(ArtifactError, match="its heads do not fit this model"):
        load_tasks(folder, model, input_exits={"what": {"guess": nn.Flatten()}})
    listed, text = folder / "tasks.json", (folder / "tasks.json").read_text()
    document = json.loads(text)
    for change, message in [
        ({"tasks": {}}, "save the tasks again"),
        ({"tasks": {"../what": "0"}}, r"got '../what'; save the tasks again"),
        ({"version": 9}, "newer than this release reads"),
        ({"tasks": {**document["tasks"], "where": "0"}}, "where: is not what was saved with the other tasks"),
    ]:
        listed.write_text(json.dumps({**document, **change}))
        with pytest.raises(ArtifactError, match=message):
            load()
    listed.write_text(text)
    heads = folder / "where" / "heads.safetensors"
    heads.write_bytes(heads.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="it is not whole, copy it again"):
        load()


def rewrite_digest(folder):
    """As if the task had been saved with the others."""
    document = json.loads((folder / "tasks.json").read_text())
    document["tasks"]["where"] = pinned(folder / "where")
    (folder / "tasks.json").write_text(json.dumps(document))


def test_tasks_of_different_models_are_not_mixed(made, tmp_path):
    model, x, nets, frontiers, costs, _ = made
    save_tasks(tmp_path / "t", nets, frontiers, costs)
    other = offramp.attach_exits(model, x[:2], heads=("linear",), cuts=["blocks.0"], output="where")
    table, loader = offramp.measure_cost(other), [(x, torch.zeros(len(x), dtype=torch.long))]
    frontier = offramp.search(offramp.record_outputs(other, loader), table, tradeoffs=(0.6,))
    offramp.save(tmp_path / "t" / "where", other, frontier, table)
    rewrite_digest(tmp_path / "t")
    with pytest.raises(ArtifactError, match="where: parts: the model is cut in other places"):
        load_tasks(tmp_path / "t", model, input_exits={"what": {"guess": Guess()}})


def test_a_frontier_of_another_network(made, tmp_path):
    model, _, nets, frontiers, costs, _ = made
    save_tasks(tmp_path / "t", nets, frontiers, costs)
    where, figures = tmp_path / "t" / "where", offramp.Expected(1, 1, 1, 1, 1)
    strange = offramp.ExitConfig([offramp.ExitChoice("blocks.0", "guess", 0.5)], expected=figures)
    described = read_manifest(where)
    (where / "frontier.json").write_text(offramp.Frontier([strange]).to_json())
    write_manifest(where, {key: described[key] for key in ("backbone", "network", "inputs")})
    rewrite_digest(tmp_path / "t")
    with pytest.raises(ArtifactError, match="where: its parts do not belong together: frontier: the network"):
        load_tasks(tmp_path / "t", model, input_exits={"what": {"guess": Guess()}})


def test_a_tasks_frontier_may_be_replaced(made, tmp_path):
    model, _, nets, frontiers, costs, _ = made
    save_tasks(tmp_path / "t", nets, frontiers, costs)
    one = offramp.Frontier([frontiers["where"][0]])
    replace_frontier(tmp_path / "t" / "where", one)
    _, again, _ = load_tasks(tmp_path / "t", model, input_exits={"what": {"guess": Guess()}})
    assert again["where"] == one
    save_tasks(tmp_path / "t", nets, frontiers, costs)


def test_what_cannot_be_saved(made, tmp_path):
    _, _, nets, frontiers, costs, _ = made
    with pytest.raises(InputError, match="expected a frontier for each of 'what', 'where', got 'what'"):
        save_tasks(tmp_path / "t", nets, {"what": frontiers["what"]}, costs)
    with pytest.raises(InputError, match="expected networks that share their segments"):
        save_tasks(tmp_path / "t", {**nets, "where": small.network()}, frontiers, costs)
    with pytest.raises(InputError, match="expected names of letters"):
        save_tasks(tmp_path / "t", {"a/b": nets["what"]}, frontiers, costs)
    assert not (tmp_path / "t").exists()


def test_what_is_not_replaced(made, tmp_path):
    _, _, nets, frontiers, costs, _ = made
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="is a file; choose another folder"):
        save_tasks(tmp_path / "file", nets, frontiers, costs)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    with pytest.raises(StorageError, match="exists and is not a folder of tasks; choose another folder"):
        save_tasks(tmp_path / "folder", nets, frontiers, costs)
    save_tasks(tmp_path / "t", nets, frontiers, costs)
    (tmp_path / "t" / "mine").write_text("mine")
    with pytest.raises(StorageError, match="holds more than a folder of tasks: mine"):
        save_tasks(tmp_path / "t", nets, frontiers, costs)
    (tmp_path / "t" / "mine").unlink()
    (tmp_path / "t" / "what" / "mine").write_text("mine")
    with pytest.raises(StorageError, match="holds more than an artifact: mine"):
        save_tasks(tmp_path / "t", nets, frontiers, costs)


@pytest.mark.parametrize("part", ["backbone", "network", "inputs", "files"])
def test_what_stays_when_a_frontier_is_replaced_is_pinned(made, tmp_path, part):
    _, _, nets, frontiers, costs, _ = made
    save_tasks(tmp_path / "t", nets, frontiers, costs)
    path = tmp_path / "t" / "where" / "manifest.json"
    before, document = pinned(path.parent), json.loads(path.read_text())
    document["files"]["frontier.json"]["bytes"] += 1
    path.write_text(json.dumps(document))
    assert pinned(path.parent) == before
    (document["files"]["heads.safetensors"] if part == "files" else document[part])["more"] = 1
    path.write_text(json.dumps(document))
    assert pinned(path.parent) != before


def test_tasks_replaced_while_they_are_read_are_read_again(made, tmp_path, monkeypatch):
    model, _, nets, frontiers, costs, _ = made
    folder, original, swapped = tmp_path / "t", multitask.read_stored, []
    save_tasks(folder, nets, frontiers, costs)
    others = {name: offramp.Frontier([frontier[0]]) for name, frontier in frontiers.items()}

    def swapping(path, restore_backbone):
        if path.name == "where" and not swapped:
            swapped.append(save_tasks(folder, nets, others, costs))
        return original(path, restore_backbone)

    monkeypatch.setattr(multitask, "read_stored", swapping)
    _, found, _ = load_tasks(folder, model, input_exits={"what": {"guess": Guess()}})
    assert found == others != frontiers
