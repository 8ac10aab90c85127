"""Words that this project once used in a sense of its own, and what the field says instead."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("src", "bench", "examples") for path in (ROOT / folder).rglob("*.py"))
GUIDES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("README.md")])

ANYWHERE = {
    r"hand(s|ed|ing)? (on|over)|handed": "activations, boundary values; passes",
    r"gauges?": "calibrator",
    r"surer|surest": "more confident, most confident",
    r"(is|are|how|as|not|too|least) sure": "confident, certain",
    r"dearer|dearest": "more expensive, most expensive",
    r"likewise|see above|see there|as for": "repeat what is meant",
    r"ways? of computing": "execution backend",
    r"line-?ups?": "heads per position",
    r"luck(y)?": "selection bias",
    r"rungs?": "price grid",
    r"ledger|station|slab": "completion, stage queue, row buffer",
    r"ask(s|ed|ing)? (an|the|its|each|every) (exit|head|task)s?": "run the exit",
    r"plain (model|eager|span|function|layout)|the plain (one|way)": "eager, baseline, unmodified",
}
"""Never in code, comments, docstrings, messages or guides: pattern -> the field's words."""

NAMES = {
    "handed", "ask", "asks", "caller", "Ask", "sure", "Judge", "fed", "gauge", "gauges", "fit_gauges",
    "whole_file", "whole_folder", "whole", "Spot", "worth", "onward", "Pool", "Goals", "RUNGS", "LUCK",
    "deserving", "missed", "deal", "dealt", "dearer", "chord", "Station", "Slab", "Entrance", "Ledger",
    "settle", "land", "admit", "overdue", "forget", "lay_out", "Draft", "Runner", "Columns", "HeadTraining",
    "StreamResult", "measure_stream", "beside", "lineup", "lineups", "objection", "heads_evaluating",
}  # fmt: skip
"""Never as the whole name of anything in the source."""

ALLOWED = {
    ("network/network.py", "gauges"): "what stored networks call calibrators: files stay readable",
    ("docs/decisions.md", "gauges"): "the same, explained",
}


def found(path: Path, pattern: str) -> list[str]:
    where = path.relative_to(ROOT).as_posix()
    hits = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for match in re.finditer(rf"(?<![\w-])({pattern})(?![\w-])", line, re.IGNORECASE):
            if not any(where.endswith(file) and match[0] == word for file, word in ALLOWED):
                hits.append(f"{where}:{number}: {match[0]!r}")
    return hits


@pytest.mark.parametrize("pattern", ANYWHERE)
def test_a_word_of_our_own_is_gone(pattern: str) -> None:
    hits = [hit for path in (*FILES, *GUIDES) for hit in found(path, pattern)]
    assert not hits, f"say: {ANYWHERE[pattern]}"


def test_names_of_our_own_are_gone() -> None:
    hits = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        where = path.relative_to(ROOT).as_posix()
        names = [token for token in tokens if token.type == tokenize.NAME and token.string in NAMES]
        hits += [f"{where}:{token.start[0]}: {token.string}" for token in names]
    assert not hits


@pytest.mark.parametrize("word", ["handed over", "asks an exit", "the surest", "likewise", "a plain model"])
def test_the_patterns_find_what_they_are_for(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "text.py").write_text(f"# {word} here\n")
    assert any(found(tmp_path / "text.py", pattern) for pattern in ANYWHERE)
