"""Weighting head training by the samples that reach a head: ``python bench/survivors [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("survivors", {"run": "survivors"}, default="run")
