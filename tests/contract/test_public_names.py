from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import offramp

VERBS = ("certify", "evaluate", "partition", "search")
ROOT = Path(offramp.__file__).parent


def test_names_are_sorted_and_distinct() -> None:
    assert offramp.__all__ == sorted(set(offramp.__all__))


@pytest.mark.parametrize("name", offramp.__all__)
def test_every_name_is_what_its_package_lists(name: str) -> None:
    package = importlib.import_module(f"offramp.{offramp._PACKAGE_OF[name]}")
    assert getattr(offramp, name) is getattr(package, name)
    assert name in package.__all__ if hasattr(package, "__path__") else True
    assert inspect.getdoc(getattr(offramp, name))


def test_the_names_that_type_checkers_see_are_the_same() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        str(alias.asname): str(node.module).removeprefix("offramp.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == offramp._PACKAGE_OF


def test_the_package_is_an_ordinary_module() -> None:
    assert type(sys.modules["offramp"]) is ModuleType


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_stays_a_function_after_its_module_is_imported(name: str) -> None:
    importlib.import_module(f"offramp.{offramp._PACKAGE_OF[name]}.{name}")
    assert isinstance(getattr(offramp, name), FunctionType)


def test_no_package_is_called_like_a_public_name() -> None:
    assert not {path.stem for path in ROOT.iterdir()} & set(offramp.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'offramp' has no attribute 'serach'"):
        _ = offramp.serach


def test_dir_lists_the_public_names() -> None:
    assert set(offramp.__all__) <= set(dir(offramp))
    assert dir(offramp) == sorted(dir(offramp))


def test_version_is_the_packages() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{offramp.__version__}"' in text
