"""The snippets of the guide to looking at the dial run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import offramp
from dials import dial_costs, dial_records, honest_frontier

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "looking.md"


def test_the_guide_runs(tmp_path, capsys):
    pytest.importorskip("pandas")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    records, costs = dial_records(600), dial_costs()
    known = {"offramp": offramp, "records": records, "costs": costs, "folder": tmp_path}
    known["frontier"] = honest_frontier(records, costs)
    snippets = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(snippets) == 5
    try:
        for snippet in snippets:
            exec(snippet, known)
    finally:
        pyplot.close("all")
    assert known["path"].is_file()
    printed = capsys.readouterr().out
    assert "drop_low" in printed
    assert "\nOutcome(quality 0." in printed
    listed = re.search(r"numbered as in the frontier: (.*?)\. Qualities", GUIDE.read_text("utf-8"), re.S)[1]
    assert re.findall(r"`(\w+)`", listed) == list(known["frame"].columns)
