"""The examples of what can be registered or written anew: short, and what they print is worth printing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
NAMES = ("new_head", "new_confidence", "new_baseline")


def printed(name: str) -> list[str]:
    """Lines of an example run as a program."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def percentages(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_fewer_than_30_lines_and_no_private_import(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) < 30
    assert set(re.findall(r"(?:from|import) (offramp\S*)", text)) <= {"offramp", "offramp.baselines"}


def test_the_new_head_is_the_better_one_after_the_first_layer() -> None:
    pytest.importorskip("sklearn")
    lines = printed("new_head")
    found = {tuple(line.split()[1:3]): percentages(line)[0] for line in lines}
    assert set(found) == {(f"{p}:", head) for p in (1, 2) for head in ("linear", "profile")}
    assert min(found.values()) > 50  # of ten classes
    assert found["1:", "profile"] > found["1:", "linear"] + 3


def test_digits_of_high_confidence_are_right_more_often() -> None:
    pytest.importorskip("sklearn")
    lines = printed("new_confidence")
    assert [line.split()[0] for line in lines] == ["gap", "max-probability", "entropy"]
    for line in lines:
        every, highest = percentages(line)
        assert every > 80
        assert highest > every + 3
    assert len({percentages(line)[0] for line in lines}) == 1  # the same exits, judged differently


def test_search_ends_below_both_baselines() -> None:
    found = {line.split(" J ")[0].strip(): float(line.split()[-1]) for line in printed("new_baseline")}
    assert list(found) == ["equal shares", "same threshold", "search"]
    assert found["search"] < min(found["equal shares"], found["same threshold"])
    assert max(found.values()) < 0.1  # J of the full model
