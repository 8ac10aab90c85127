"""Packages import only what lies below them, and only what a package's ``__init__`` lists."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import offramp

ROOT = Path(offramp.__file__).parent
TIERS = (
    ("_progress", "_version", "errors"),
    ("registry",),
    ("storage",),
    ("core", "data", "tasks"),
    ("graph", "guarantees", "report", "solver"),
    ("baselines", "heads", "sources"),
    ("network",),
    ("artifacts", "export", "runtime", "training"),
    ("measure", "streaming"),
    ("pipeline", "serving"),
    ("cli",),
    ("__init__", "__main__"),
)
TIER = {name: i for i, tier in enumerate(TIERS) for name in tier}
LATE = ("cli",)
"""Packages that may import inside functions: a command line starts before it knows what it needs."""
WITHOUT_TORCH = (
    *("storage", "core", "solver", "guarantees", "baselines", "report"),
    *("export", "export.manifest", "export.engine", "export.ort", "export.onnx_graphs"),
)


class Import(NamedTuple):
    """``from offramp.<module> import <name>``; ``late`` inside a function."""

    module: str
    name: str
    late: bool


def imports(source: str) -> Iterator[Import]:
    """What a module imports of the package, also inside functions and for type checkers."""
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while stack:
        node, late = stack.pop()
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            package, _, module = str(node.module).partition(".")
            if package == "offramp":
                yield from (Import(module, alias.name, late) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name.partition(".") for alias in node.names]
            yield from (Import(module, "", late) for package, _, module in names if package == "offramp")
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack.extend((child, inside) for child in ast.iter_child_nodes(node))


def listed(package: str, root: Path = ROOT) -> set[str]:
    """The names in a package's ``__all__``."""
    for node in ast.parse((root / package / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def faults(module: str, source: str, root: Path = ROOT) -> list[str]:
    """What is wrong with the imports of ``module``, such as "core.records"."""
    package, found = module.partition(".")[0], []
    for one in imports(source):
        first, _, inner = one.module.partition(".")
        if not first:  # from offramp import module
            first, inner = one.name, ""
        if one.late and package not in LATE:
            found.append(f"{module} imports {first} inside a function")
        if first == package:
            continue
        if TIER[first] >= TIER[package]:
            found.append(f"{module} imports {first}, which is not below {package}")
        if (root / first).is_dir() and (inner or one.name) not in listed(first, root):
            found.append(f"{module} imports {inner or one.name!r}, which offramp.{first} does not list")
        if inner and (root / first / "__init__.py").is_file() and inner not in listed(first, root):
            found.append(f"{module} imports from inside {first}: {inner}")
    return found


def modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def source_of(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


@pytest.mark.parametrize("module", [name for name in modules() if name != "__init__"])
def test_a_module_imports_what_lies_below_and_is_listed(module: str) -> None:
    assert faults(module, source_of(module)) == []


def test_every_package_has_a_place() -> None:
    assert {name.partition(".")[0] for name in modules()} <= set(TIER)


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("core.records", "from offramp.solver import search", "solver, which is not below core"),
        ("data.inputs", "from offramp.core import ExitRecords", "core, which is not below data"),
        ("solver.fill", "def f():\n    from offramp.core import Frontier", "core inside a function"),
        ("solver.fill", "from offramp.core.frontier import Frontier", "does not list"),
        ("solver.fill", "from offramp.core import VERSION", "'VERSION', which offramp.core does not list"),
        ("runtime.plan", "from offramp.network import _STORED", "'_STORED', which offramp.network does not"),
        ("storage.atomic", "import offramp.cli.app", "cli, which is not below storage"),
    ],
)
def test_an_arrow_turned_round_is_found(module: str, line: str, fault: str) -> None:
    assert faults(module, source_of(module)) == []
    assert any(fault in found for found in faults(module, f"{source_of(module)}\n{line}\n"))


def test_the_command_line_may_import_late() -> None:
    assert faults("cli.app", "def f():\n    from offramp.core import Frontier") == []


def test_modules_of_a_package_form_no_circle() -> None:
    graph = {name: {one.module for one in imports(source_of(name))} for name in modules() if "." in name}
    graph = {name: {need for need in needs if need in graph} for name, needs in graph.items()}
    while leaves := [name for name, needs in graph.items() if not needs & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_the_array_side_leaves_torch_alone(name: str) -> None:
    script = (
        f"import importlib, sys; importlib.import_module('offramp.{name}')\n"
        "print(sorted({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_verbs_on_arrays_leave_torch_alone() -> None:
    script = "import sys; from offramp import search, evaluate, certify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_command_line_starts_without_numpy_and_torch() -> None:
    script = "import sys, offramp.cli; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
