"""Bars are shown where a person looks, on standard error, and nowhere else."""

from __future__ import annotations

import sys

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
