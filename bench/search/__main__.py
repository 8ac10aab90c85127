"""Which search finds the better configurations, and how fast: ``python bench/search [PART] [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("search", {"compare": "search", "describe": "recordsets", "digits": "digits_records"}, default="compare")
