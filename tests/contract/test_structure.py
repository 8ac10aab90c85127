from __future__ import annotations

import ast
from pathlib import Path

import pytest

import offramp

ROOT = Path(offramp.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
names = [str(path.relative_to(ROOT)) for path in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_a_module_stays_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


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
