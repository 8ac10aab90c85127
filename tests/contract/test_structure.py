from __future__ import annotations

import ast
from pathlib import Path

import pytest

import offramp

ROOT = Path(offramp.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
PACKAGES = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
names = [str(path.relative_to(ROOT)) for path in MODULES]


def test_the_top_level_is_small() -> None:
    found = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert sum(path.is_dir() for path in found) <= 20
    assert sum(path.is_file() for path in found) <= 8


@pytest.mark.parametrize("package", PACKAGES, ids=[path.name for path in PACKAGES])
def test_a_package_has_3_to_14_modules(package: Path) -> None:
    assert 3 <= len([path for path in package.glob("*.py") if path.stem != "__init__"]) <= 14


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_a_module_opens_with_its_idea_in_under_15_lines(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    assert len(text.splitlines()) < 15


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_nothing_is_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill"}
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    assert all("weights_only=True" in [ast.unparse(k) for k in call.keywords] for call in loads)
