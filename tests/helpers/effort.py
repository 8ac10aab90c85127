"""The budgets of the search, changed for one test."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

import pytest

import offramp.solver


def set_effort(monkeypatch: pytest.MonkeyPatch, **changes: float) -> None:
    """Change budgets in every module of the search."""
    for info in pkgutil.iter_modules(offramp.solver.__path__):
        module = importlib.import_module(f"offramp.solver.{info.name}")
        if hasattr(module, "EFFORT"):
            monkeypatch.setattr(module, "EFFORT", replace(module.EFFORT, **changes))
