"""Throughput at equal latency for samples that arrive one by one: ``python bench/streaming [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run("streaming", {"run": "stream"}, default="run")
