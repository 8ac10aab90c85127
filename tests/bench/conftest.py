"""The benchmarks as a package: tests import ``bench.FOLDER.MODULE`` from the project root."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
sys.path.append(str(ROOT))


@pytest.fixture(scope="module")
def bench(request):
    """The modules that a test file names: of bench/``FOLDER`` those in ``MODULES``."""
    pytest.importorskip("matplotlib")
    folder = f"bench.{request.module.FOLDER}"
    return SimpleNamespace(
        **{name: importlib.import_module(f"{folder}.{name}") for name in request.module.MODULES}
    )
