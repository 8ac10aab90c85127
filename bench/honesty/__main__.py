"""Does the dial keep what it promises? ``python bench/honesty [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("honesty", {"draws": "honesty"}, default="draws")
