"""Which architectures can be cut, and where: ``python bench/models [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("models", {"run": "models", "families": "families"}, default="run")
