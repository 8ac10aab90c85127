"""Which models can be cut, where, and what they cost: the table of docs/models.md.

    python bench/models [--only NAME ...]

Every model of tests/zoo.py is made at its published size with random weights (text models too: nothing is
fetched), cut automatically, and compared with its segments bit for bit on one sample and on two. The MACs
are the sum over the segments. Writes bench/results/models.json and the table; --only measures some again.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from bench.shared import command, results
from bench.shared.results import ROOT

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(ROOT / "tests" / "shim"))

import torchvision_operators

torchvision_operators.install()

from offramp import partition  # noqa: E402 (needs the shim)
from offramp.graph.macs import span_macs  # noqa: E402
from offramp.graph.partition import Partition  # noqa: E402
from toys import seeded  # noqa: E402 (lies in tests/helpers)
from zoo import TOKENS, ZOO, Model  # noqa: E402 (lies in tests/helpers)

RESULTS = results.RESULTS / "models.json"
PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- made by bench/models -->", "<!-- end -->"
HEADER = (
    "| Model | Input | Blocks | Positions | Layout | MACs here | published | Source | Note |\n"
    "|---|---|---:|---:|---|---:|---:|---|---|"
)


def measured(name: str) -> dict[str, Any]:
    """One model at its full size."""
    listed = ZOO[name]
    model = seeded(lambda: listed.make(listed.full))
    began = time.perf_counter()
    parts = partition(model, listed.draw(listed.full)(1))
    return {
        "name": name,
        "input": listed.full,
        "blocks": listed.count_blocks(model),
        "positions": [cut.name for cut in parts.cuts],
        "layouts": sorted({cut.layout for cut in parts.cuts}),
        "gmacs": macs(parts) / 1e9,
        "published": listed.gmacs,
        "source": listed.source,
        "seconds": time.perf_counter() - began,
    }


def macs(parts: Partition) -> int:
    """Of one sample, through all segments."""
    return sum(span_macs(parts.flow, [parts.border(i) for i in range(len(parts.cuts) + 2)]))


def row(found: dict[str, Any], listed: Model) -> str:
    """One line of the table."""
    published = f"{found['published']:g} G" if found["published"] else ""
    size = f"{found['input']} tokens" if listed.full == TOKENS else f"{found['input']}²"
    cells = (
        f"`{found['name'].partition(',')[0]}`{''.join(found['name'].partition(',')[1:])}",
        size,
        str(found["blocks"]),
        str(len(found["positions"])),
        ", ".join(found["layouts"]),
        f"{found['gmacs']:.4g} G",
        published,
        found["source"],
        listed.note,
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(ZOO), help="names of tests/zoo.py")
    only = parser.parse_args().only
    found = {each["name"]: each for each in results.read(RESULTS)} if only else {}
    print(HEADER, flush=True)
    for name in only or ZOO:
        found[name] = measured(name)
        print(row(found[name], ZOO[name]), flush=True)
    write([found[name] for name in ZOO if name in found])


def write(found: list[dict[str, Any]]) -> None:
    """Everything into the JSON file, the table into the page."""
    results.write(RESULTS, found)
    rows = [HEADER, *(row(each, ZOO[each["name"]]) for each in found)]
    page = PAGE.read_text()
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(before + "\n".join([START, *rows, END]) + after)
