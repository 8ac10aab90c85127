"""Every folder of benchmarks is a command that says what it does."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FOLDERS = sorted(path.parent for path in (ROOT / "bench").glob("*/__main__.py"))


def test_there_is_a_folder_for_each_question() -> None:
    assert {"confidence", "heads", "models", "runtime", "search", "startup", "streaming", "survivors"} <= {
        folder.name for folder in FOLDERS
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_help(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(folder), "--help"])
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(folder), run_name="__main__")
    assert stopped.value.code == 0
    assert "--help" in capsys.readouterr().out
