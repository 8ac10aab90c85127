"""A user's own model and data: found, called, and every mistake named."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from torch import nn

from offramp.errors import InputError
from offramp.project import load_data, load_model

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
    assert isinstance(load_model("user_code:model"), nn.Linear)
    assert isinstance(load_model("user_package.inner:model"), nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("user_code", r"MODEL: expected package.module:callable, got 'user_code'"),
        (":model", r"MODEL: expected package.module:callable"),
        ("user_code:", r"MODEL: expected package.module:callable"),
        ("user_nowhere:model", r"no module 'user_nowhere'; run from its folder or install it"),
        ("user_package.gone:model", r"no module 'user_package.gone'; run from its folder or install it"),
        ("user_needy:model", r"MODEL user_needy:model: importing it fails: No module named 'user'"),
        ("user_broken:model", r"importing it fails: SyntaxError"),
        ("user_exit:model", r"importing it fails: SystemExit: 1"),
        (".code:model", r"importing it fails: TypeError"),
        ("user_code:nothing", r"user_code has no callable 'nothing'"),
        ("user_code:value", r"user_code has no callable 'value'"),
        ("user_code:raising", r"MODEL user_code:raising: calling it fails: RuntimeError: boom"),
        ("user_code:leaving", r"calling it fails: SystemExit: 2"),
        ("user_code:text", r"expected it to return a torch.nn.Module, got str"),
    ],
)
def test_a_model_that_cannot_be_had(spec, message):
    with pytest.raises(InputError, match=message):
        load_model(spec)


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
