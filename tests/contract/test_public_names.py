from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import FunctionType

import pytest

import offramp

VERBS = ("certify", "evaluate", "partition", "search")
MODULES = sorted(p.stem for p in Path(offramp.__file__).parent.glob("*.py") if not p.stem.startswith("__"))


def test_names_are_sorted_and_distinct() -> None:
    assert offramp.__all__ == sorted(set(offramp.__all__))


@pytest.mark.parametrize("name", offramp.__all__)
def test_every_name_resolves_to_what_its_module_defines(name: str) -> None:
    found = getattr(offramp, name)
    assert found is getattr(importlib.import_module(f"offramp.{offramp._HOME[name]}"), name)
    assert inspect.getdoc(found)


def test_names_have_a_home_and_nothing_else_has() -> None:
    assert sorted(offramp._HOME) == offramp.__all__
    assert set(offramp._HOME.values()) <= set(MODULES)


def test_the_names_that_type_checkers_see_are_the_same() -> None:
    import ast

    tree = ast.parse(Path(offramp.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    seen = {
        alias.name: str(node.module).removeprefix("offramp.")
        for node in imports
        if str(node.module).startswith("offramp.")
        for alias in node.names
    }
    assert seen == offramp._HOME


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_stays_a_function_after_its_module_is_imported(name: str) -> None:
    module = importlib.import_module(f"offramp.{name}")
    assert inspect.ismodule(module)
    assert isinstance(getattr(offramp, name), FunctionType)
    assert getattr(offramp, name) is getattr(module, name)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'offramp' has no attribute 'serach'"):
        _ = offramp.serach  # type: ignore[attr-defined]


def test_dir_lists_the_public_names() -> None:
    assert set(offramp.__all__) <= set(dir(offramp))
    assert dir(offramp) == sorted(dir(offramp))


def test_version_is_the_packages() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{offramp.__version__}"' in text
