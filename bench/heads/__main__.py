"""What each kind of exit head brings: ``python bench/heads [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("heads", {"run": "heads"}, default="run")
