"""Does measured time follow the predicted cost: ``python bench/runtime [PART] [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("runtime", {"run": "run", "engine": "engine_overhead"}, default="run")
