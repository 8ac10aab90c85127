"""A user's own model and data: found, called, and every mistake named."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch import nn

from data_files import COLOURS, draw, images_for
from offramp.errors import InputError
from offramp.sources.preprocessing import Adapted
from offramp.sources.project import (
    load_data,
    load_input_exits,
    load_project,
    load_source_model,
    load_splits,
    parse_task,
)
from offramp.tasks.base import make_task

CODE = """
import torch
from torch import nn

x, y = torch.zeros(4, 2), torch.zeros(4).long()
batches = [(x, y)]

def model(): return nn.Linear(2, 3)
def text(): return "no model"
def raising(): raise RuntimeError("boom")
def leaving(): raise SystemExit(2)

def good(): return {"train": batches, "search": batches, "report": batches}
def two(): return {"train": batches, "search": batches}
def given(): return {**good(), "example_inputs": x[:1]}
def unlabelled(): return {"train": [x], "search": [x]}
def single(): return {"train": [[x]], "search": [x]}
def triples(): return {"train": [(x, x + 1, y)], "search": batches}
def nested(): return {"train": [((x, x), y)], "search": batches}
def mapping(): return {"train": [{"ids": x, "mask": x, "labels": y}], "search": batches}
def lacking(): return {"train": batches}
def a_list(): return [batches, batches]
def none(): return {"train": None, "search": batches}
def number(): return {"train": batches, "search": batches, "report": 3}
def generator(): return {"train": iter(batches), "search": batches}
def empty(): return {"train": [], "search": batches}
def hollow(): return {"train": [()], "search": batches}
value = 3

class Listed:
    classes = ["a", "b", "c", "d"]
    def __len__(self): return 4
    def __getitem__(self, i): return x[i], i

def listed():
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(Listed(), [0, 1]))
    return {"train": loader, "search": loader}

def size(picture): return torch.zeros(2)

class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
    def get_input_embeddings(self): return self.embed
    def forward(self, ids): return self.embed(ids).sum(1)

def tokens(): return {"train": [(torch.tensor([[4]]), y[:1])], "search": [(torch.tensor([[5]]), y[:1])]}

def vision():
    import timm
    return timm.create_model("test_resnet", num_classes=3)

def bytes(): return {"train": [(torch.rand(2, 3, 32, 32) * 255, y[:2])], "search": batches}
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder with the user's code, and the interpreter as it was afterwards."""
    (tmp_path / "user_code.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "user_package").mkdir()
    (tmp_path / "user_package" / "__init__.py").write_text("")
    (tmp_path / "user_package" / "inner.py").write_text("from user_code import *")
    (tmp_path / "user_needy.py").write_text("import user")
    (tmp_path / "user_broken.py").write_text("def model(:")
    (tmp_path / "user_exit.py").write_text("import sys; sys.exit(1)")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("user_")]:
        del sys.modules[name]


def test_a_model_from_the_current_folder():
    assert isinstance(load_source_model("user_code:model").model, nn.Linear)
    assert isinstance(load_source_model("user_package.inner:model").model, nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("user_code", r"MODEL: expected timm:NAME, .* or package.module:callable, got 'user_code'"),
        (":model", r"MODEL: expected timm:NAME, .* or package.module:callable, got ':model'"),
        ("user_code:", r"or package.module:callable, got 'user_code:'"),
        ("user_nowhere:model", r"no module 'user_nowhere'; run from its folder or install it"),
        ("user_package.gone:model", r"no module 'user_package.gone'; run from its folder or install it"),
        ("user_needy:model", r"MODEL user_needy:model: importing it fails: No module named 'user'"),
        ("user_broken:model", r"importing it fails: SyntaxError"),
        ("user_exit:model", r"importing it fails: SystemExit: 1"),
        (".code:model", r"or package.module:callable, got '.code:model'"),
        (
            "tim:resnet50",
            r"no module 'tim'; run from its folder or install it \(did you mean timm:resnet50\?\)",
        ),
        ("user_code:nothing", r"user_code has no callable 'nothing'"),
        ("user_code:value", r"user_code has no callable 'value'"),
        ("user_code:raising", r"MODEL user_code:raising: calling it fails: RuntimeError: boom"),
        ("user_code:leaving", r"calling it fails: SystemExit: 2"),
        ("user_code:text", r"expected it to return a torch.nn.Module, got str"),
    ],
)
def test_a_model_that_cannot_be_had(spec, message):
    with pytest.raises(InputError, match=message):
        load_source_model(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lacking", r"expected a mapping with 'train', 'search' and 'report' loaders, got \['train'\]"),
        ("a_list", r"expected a mapping with .* loaders, got list"),
        ("none", r"expected 'train' to be a loader that can be gone through more than once, got a NoneType"),
        ("number", r"expected 'report' to be a loader .* got a int; a list of batches or a DataLoader"),
        ("generator", r"expected 'train' to be a loader .* more than once, got a list_iterator"),
        ("empty", r"the train loader yields nothing; expected at least one batch"),
        ("hollow", r"the first train batch is an empty tuple"),
        ("raising", r"DATA user_code:raising: calling it fails: RuntimeError: boom"),
    ],
)
def test_data_that_cannot_be_had(name, message):
    with pytest.raises(InputError, match=message):
        load_data(f"user_code:{name}")


def test_splits():
    splits = load_data("user_code:good")
    assert len(splits.train) == len(splits.search) == len(splits.report) == 1
    assert load_data("user_code:two").report is None


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("good", (4, 2)),
        ("given", (1, 2)),
        ("unlabelled", (4, 2)),
        ("single", (4, 2)),
        ("triples", [(4, 2), (4, 2)]),
        ("nested", [(4, 2), (4, 2)]),
        ("mapping", {"ids": (4, 2), "mask": (4, 2)}),
    ],
)
def test_example_inputs_are_read_off_the_first_batch(name, shapes):
    example = load_data(f"user_code:{name}").example
    if isinstance(example, torch.Tensor):
        assert tuple(example.shape) == shapes
    elif isinstance(example, tuple):
        assert [tuple(value.shape) for value in example] == shapes
    else:
        assert {key: tuple(value.shape) for key, value in example.items()} == shapes


SMALL = "timm:test_resnet,pretrained=false,classes=3,size=32"


def test_the_data_set_of_a_loader_says_how_many_classes_there_are():
    assert load_data("user_code:listed").classes == 4
    assert load_data("user_code:good").classes is None


def test_a_users_loader_is_checked_against_the_model():
    splits = load_splits(
        "user_code:tokens", load_source_model("user_code:Embedding"), make_task("classification")
    )
    assert len(list(splits.train)) == 1
    message = r"DATA user_code:tokens: search: batch 0: token ids: expected 0 to 4 .* got 5 to 5"
    with pytest.raises(InputError, match=message):
        list(splits.search)
    with pytest.warns(UserWarning, match="they seem to be pixels of 0 to 255"):
        load_project("user_code:vision", "user_code:bytes")  # its own: it may have been trained so
    with pytest.raises(
        InputError, match=r"DATA user_code:bytes: train: batch 0: images: expected -1.00 to 1.00 by"
    ):
        load_project(SMALL, "user_code:bytes")


def test_a_transform_by_name(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in "abc":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(9):
            image.new("RGB", (4, 4)).save(tmp_path / "images" / name / f"{i}.png")
    data = "imagefolder:images,transform=user_code"
    project = load_project("user_code:model", f"{data}:size")
    assert project.splits.example.tolist() == [[0, 0], [0, 0]]
    with pytest.raises(InputError, match=r"transform user_code:sizes: user_code has no callable 'sizes'"):
        load_project("user_code:model", f"{data}:sizes")


def test_tasks_by_name_and_options():
    assert parse_task("classification").name == "classification"
    assert parse_task("regression,scale=2").options()["scale"] == [2]
    assert parse_task("regression,scale=2/3").options()["scale"] == [2, 3]
    with pytest.raises(InputError, match=r"--task regression,scale=x: scale: expected a number, or several"):
        parse_task("regression,scale=x")
    with pytest.raises(InputError, match="unknown task 'regresion'; did you mean 'regression'"):
        parse_task("regresion")


def test_input_exits(tmp_path):
    source = load_source_model(SMALL)
    own = "other=timm:test_efficientnet,pretrained=false,classes=3,size=32,mean=0.4,std=0.2"
    found = load_input_exits(["same=" + SMALL, own, "pooled=linear", "mine=user_code:model"], source)
    assert list(found) == ["same", "other", "pooled", "mine"]
    assert not isinstance(found["same"], Adapted)
    assert isinstance(found["other"], Adapted)
    assert found["other"](torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert found["pooled"] == "linear"
    assert isinstance(found["mine"], nn.Linear)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["linear"], r"--input-exit: expected NAME=MODEL or NAME=KIND, such as .*; got 'linear'"),
        (["=linear"], r"expected NAME=MODEL or NAME=KIND"),
        (["a=linear", "a=mlp"], r"--input-exit: 'a' is given twice; choose another name"),
        (["a=timm:test_resnett"], r"--input-exit a timm:test_resnett: timm has no model of this name"),
    ],
)
def test_input_exits_that_cannot_be(texts, message):
    with pytest.raises(InputError, match=message):
        load_input_exits(texts, load_source_model(SMALL))


def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match=r"--device tpu7: .*; try cpu"):
        load_source_model("user_code:model", "tpu7")
    source = load_source_model("user_code:model", "meta")
    assert (
        load_splits("user_code:nested", source, make_task("classification")).example[1].device.type == "meta"
    )
    assert next(load_source_model("user_code:model", "cpu").model.parameters()).device.type == "cpu"


SHADES = """
import numpy as np, torch
def bright(picture): return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
def dark(picture): return bright(picture) / 2
"""


@pytest.fixture
def photos(tmp_path):
    """Photos of two classes, and what a build with a transform of one's own found in them."""
    (tmp_path / "user_shades.py").write_text(SHADES)
    for name in COLOURS:
        draw(tmp_path / "photos" / name, name, 8)
    return load_splits("imagefolder:photos,transform=user_shades:dark", images_for(), CLASSES).summary


CLASSES = make_task("classification")


def test_a_run_uses_the_preprocessing_of_the_build(photos):
    assert photos.inputs["transform"] == "user_shades:dark"
    splits = load_splits("imagefolder:photos", images_for(), CLASSES, stored=photos)
    assert next(iter(splits.train))[0].max() <= 0.5
    message = (
        "built with transform user_shades:dark, this has transform user_shades:bright; its exits are for"
    )
    with pytest.raises(InputError, match=message):
        load_splits("imagefolder:photos,transform=user_shades:bright", images_for(), CLASSES, stored=photos)


def test_a_run_uses_the_classes_of_the_build(photos, tmp_path):
    for name in ("red", "green"):
        draw(tmp_path / "few" / name.upper(), name, 8)
    splits = load_splits("imagefolder:few", images_for(), CLASSES, stored=photos)
    assert {label for _, labels in splits.train for label in labels.tolist()} == {1, 2}
    draw(tmp_path / "few" / "pink", "red", 8)
    with pytest.raises(InputError, match="no class called 'pink'; its own are blue, green, red"):
        load_splits("imagefolder:few", images_for(), CLASSES, stored=photos)


def test_a_transform_that_a_file_names_is_not_imported_from_elsewhere(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "photos")
    message = (
        "built with transform=user_shades:dark, which is not in this folder; name it, if you want it run"
    )
    with pytest.raises(InputError, match=message):
        load_splits(f"imagefolder:{tmp_path / 'photos'}", images_for(), CLASSES, stored=photos)


def test_another_normalisation_than_the_builds_is_refused(photos):
    found = load_splits("imagefolder:photos", images_for(), CLASSES).summary
    other = replace(images_for(), images=replace(images_for().images, std=(0.5,) * 3))
    with pytest.raises(
        InputError, match=r"with std 1/1/1, this has std 0.5/0.5/0.5; its exits are for the former"
    ):
        load_splits("imagefolder:photos", other, CLASSES, stored=found)


def test_what_loaders_of_ones_own_say_is_kept():
    summary = load_data("user_code:listed").summary
    assert (summary.data, summary.inputs) == ("user_code:listed", {"kind": "loaders"})
    assert summary.splits == {"train": 2, "search": 2}
    assert summary.classes == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert load_data("user_code:good").summary.splits == {}
