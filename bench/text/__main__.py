"""Exits against smaller models on texts: ``python bench/text [PART] [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("text", {"prepare": "prepare", "backbones": "backbones", "run": "run"}, default="run")
