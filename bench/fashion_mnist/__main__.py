"""Exits against smaller models on images: ``python bench/fashion_mnist [PART] [options]``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the project root, instead of this folder

from bench.shared.command import run

run(
    "fashion_mnist",
    {
        "backbones": "backbones",
        "exits": "exits",
        "artifact": "artifact",
        "records": "records",
        "story": "story",
    },
    default="story",
)
