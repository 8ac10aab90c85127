"""From three splits to an artifact's parts: what is handed on, and what is refused before the work."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import builds
import offramp
import small
from offramp import pipeline
from offramp.errors import InputError, StorageError
from offramp.pipeline import BuildConfig, build, kept_bytes, summary
from offramp.sources.splits import Splits
from offramp.training.cache import run_backbone
from offramp.training.config import TrainConfig

QUICK = TrainConfig(epochs=1)


def splits(**more):
    loaders = {name: small.loader(seed=10 * i) for i, name in enumerate(("train", "search", "report"))}
    return replace(Splits(**loaders, example=small.few(small.inputs())), **more)


def test_what_the_configuration_asks_for():
    config = BuildConfig(
        heads=("linear",), cuts=("blocks.1",), confidence="margin", max_exits=1, train=QUICK,
        input_exits={"same": small.model(seed=1), "pooled": "mlp"},
    )  # fmt: skip
    built = build(small.model(), splits(), config)
    assert built.net.positions == ("input", "blocks.1")
    assert built.net.head_names == ("linear", "same", "pooled")
    assert built.net.confidence == "margin"
    assert set(built.records) == {"search", "report"}
    assert all(len(each.choices) <= 1 for each in built.frontier)
    line = json.loads(summary(built))
    assert line["samples"] == {"search": 96, "report": 96}
    assert line["full_macs"] == built.costs.full


def test_the_default_chooses_heads_for_each_position():
    net = build(small.model(), splits(), BuildConfig(train=QUICK)).net
    wanted = offramp.attach_exits(small.model(), small.few(small.inputs()), heads="auto")
    assert (net.head_names, net.exists.tolist()) == (wanted.head_names, wanted.exists.tolist())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"classes": 4},
            "train split: expected at most 3 classes because the model has 3 outputs, got 4; use the",
        ),
        ({"train": [(torch.zeros(2, 1, 8, 8), torch.full((2,), 3))]}, "train split: labels: expected 0 to 2"),
        ({"report": [(torch.zeros(2, 1, 8, 8), torch.zeros(2))]}, "report split: labels: expected integers"),
        (
            {"search": [torch.zeros(2, 1, 8, 8)]},
            "search split: the loader gives no labels; judge by agreement",
        ),
        ({"search": []}, "search split: the loader yields no samples"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_the_work(changed, message, monkeypatch):
    monkeypatch.setattr(pipeline, "train_exits", None)
    with pytest.raises(InputError, match=message):
        build(small.model(), splits(**changed), BuildConfig(heads=("linear",), train=QUICK))


def test_more_features_than_the_disk_holds_are_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "train_exits", None)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    message = (
        rf"keeps about 0.0 GB of features on disk, {tmp_path} has 0.0 GB free; give fewer training samples"
    )
    with pytest.raises(StorageError, match=message):
        build(small.model(), splits(), BuildConfig(heads=("mlp",), train=QUICK), work_dir=tmp_path / "work")


def test_what_is_stored_already_needs_no_room(monkeypatch, tmp_path):
    work = tmp_path / "work"
    whole = builds.run(work, tmp_path / "whole")
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert builds.run(work, tmp_path / "again") == whole
    [progress] = work.glob("features-*/progress.json")
    for stored in progress.parent.glob("*.bin"):  # half of it is no longer there
        stored.write_bytes(stored.read_bytes()[: stored.stat().st_size // 2])
    with pytest.raises(StorageError, match=r"has 0.0 GB free; give fewer"):
        builds.run(work, tmp_path / "again")


def test_of_two_builds_in_one_working_folder_one_says_who_has_it(tmp_path):
    whole = builds.run(tmp_path / "lone", tmp_path / "whole")
    made, said = builds.ends_of_a_pair(tmp_path, 0.2)
    assert made == [whole]
    assert re.match(r"StorageError: .*work is in use by process \d+ on .* since 20.*; wait until", said[0])


def test_a_flipped_bit_in_the_working_folder_changes_no_artifact(tmp_path):
    assert builds.changed_by_flips(tmp_path, flips=10) == []


@pytest.mark.parametrize("heads", [("linear", "mlp", "conv"), ("small-plain", "small-own")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kept_bytes_are_those_on_disk(heads, dtype, tmp_path):
    net = small.network(heads=heads)
    cache = run_backbone(net, small.loader(), tmp_path, dtype=dtype)
    stored = sum(features[0].numel() * features.element_size() for features in cache.features.values())
    assert kept_bytes(net, dtype) == stored


def test_settings_that_cannot_be():
    with pytest.raises(InputError, match="quality: expected 'labels' or 'agreement', got 'both'"):
        BuildConfig(quality="both")
    with pytest.raises(InputError, match="max_exits: expected at least 0, got -1"):
        BuildConfig(max_exits=-1)


def test_a_build_can_be_saved(tmp_path):
    built = build(small.model(), splits(report=None), BuildConfig(heads=("linear",), train=QUICK))
    offramp.save(tmp_path / "a", built.net, built.frontier, built.costs, records=built.records)
    net, _, _ = offramp.load(tmp_path / "a", small.model())
    assert net.positions == built.net.positions
