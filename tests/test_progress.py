"""Bars are shown where a person looks, on standard error, and nowhere else."""

from __future__ import annotations

import sys
import types

import pytest

from offramp._progress import progress_bar


@pytest.mark.parametrize(
    ("terminal", "show", "shown"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_where_a_bar_is_shown(capsys, monkeypatch, terminal, show, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with progress_bar("Counting", 4, show) as advance:
        for i in range(1, 5):
            advance(i)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("Counting" in err and "4/4" in err) is shown
    assert bool(err) is shown


def test_an_unknown_total(capsys):
    with progress_bar("Counting", None, True) as advance:
        advance(3)
    assert "3/?" in capsys.readouterr().err


def test_a_bar_ends_with_an_error(capsys):
    with pytest.raises(RuntimeError), progress_bar("Counting", 3, True) as advance:  # noqa: PT012
        advance(1)
        raise RuntimeError
    assert "1/3" in capsys.readouterr().err


class ZMQInteractiveShell:
    """The shell of a kernel, by its name."""


def test_a_notebook_gets_one_line_of_text(monkeypatch, capsys):
    shell = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    with progress_bar("Training", 40, None) as advance:
        for done in range(1, 41):
            advance(done)
    lines = capsys.readouterr().err.split("\r")
    assert len(lines) == 3  # nothing, the first step, the end
    assert lines[1].startswith("Training   2% 1/40, 0 s")
    assert lines[2].startswith("Training 100% 40/40, ")
    assert lines[2].endswith("\n")
    with progress_bar("Reading", None, None) as advance:
        advance(7)
    assert "Reading 7, 0 s" in capsys.readouterr().err
    with progress_bar("Hidden", 3, False) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    with progress_bar("No kernel", 3, None) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
