"""The order of imports of DESIGN.md: a module imports what comes before it, or beside it in its tier."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import offramp

ROOT = Path(offramp.__file__).parent
TIERS = (
    ("errors", "registry", "evidence", "config", "batching", "memory", "_files", "_progress"),
    ("inputs", "modes", "tracing", "flow", "layout", "spans", "modules", "macs", "packed", "partition"),
    ("task", "regression", "tasks", "gauges", "confidence"),
    ("feature", "pooled_heads", "conv_heads", "token_heads", "heads", "records", "cost", "ranking", "energy"),
    ("network", "mac_table", "attach", "features", "state"),
    ("recording", "evaluate", "together"),
    ("train_config", "caching", "calibration", "survivors", "finetune", "head_training", "training"),
    ("problem", "common", "lines", "pool", "methods", "refine", "parsimony", "solving", "regularise", "dial"),
    ("bounds", "search", "pvalues", "risks", "certify", "stepwise", "baselines"),
    ("execution", "rewriting", "compiled", "runner", "steps", "clock", "plans", "scheduling"),
    ("engine", "stream_buffer", "stream_request", "stream_routes", "stream_ledger", "stream_entrance"),
    ("stream_worker", "stream_engine"),
    ("manifest", "artifact", "multi_engine", "multitask", "task_artifact", "questions"),
    ("splits", "readings", "preprocessing", "specs", "model_specs", "data_specs", "project"),
    ("pipeline", "stream"),
    ("plots", "tables", "page", "report", "export", "serve"),
    ("digits", "demo", "console", "cli_options", "cli_bench", "cli_export", "cli", "__main__"),
)
TIER = {module: i for i, tier in enumerate(TIERS) for module in tier}
PURE = ("evaluate", "search", "certify", "baselines", "config", "records", "cost")
MODULES = sorted(p.relative_to(ROOT).with_suffix("") for p in ROOT.rglob("*.py") if p.stem != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules of the package imported when the module is: not those in functions or under TYPE_CHECKING."""
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
            continue
        if isinstance(node, ast.ImportFrom):
            yield from found(str(node.module), [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from found(alias.name, [])
        stack.extend(ast.iter_child_nodes(node))


def found(module: str, names: list[str]) -> Iterator[str]:
    package, _, rest = module.partition(".")
    if package == "offramp":
        yield from [rest.partition(".")[0]] if rest else [name for name in names if name in TIER]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_comes_before_it(module: Path) -> None:
    room = module.parts[0]
    assert room in TIER, f"{room} has no place in the order of imports; give it one"
    later = {name for name in imports(ROOT / f"{module}.py") if TIER[name] > TIER[room]}
    assert not later


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports(ROOT / "__init__.py")) == []


def test_there_are_no_circles() -> None:
    graph = {p.parts[0]: set[str]() for p in MODULES}
    for path in MODULES:
        graph[path.parts[0]] |= set(imports(ROOT / f"{path}.py")) - {path.parts[0]}
    while leaves := [name for name, needs in graph.items() if not needs & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_the_pure_modules_leave_torch_alone() -> None:
    script = (
        "import importlib, sys, offramp\n"
        f"for name in {PURE}: importlib.import_module('offramp.' + name)\n"
        "assert callable(offramp.search) and callable(offramp.evaluate)\n"
        "print(sorted({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
