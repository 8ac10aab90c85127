"""How long does it take until Python is there, the package is imported, the command line has spoken?

Each command is a process of its own. A round runs all of them once, in an order that turns by one from round
to round, so that other load of the machine falls on all of them alike. Ratios are to the empty program of the
same round, medians over rounds. The first two rounds fill the caches of files and do not count.
Writes bench/results/startup.json.

    python bench/startup [--repeats 30] [--out bench/results]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import offramp

RESULTS = Path(__file__).parents[1] / "results"
EMPTY = "python -c pass"
COMMANDS = {
    EMPTY: ["-c", "pass"],
    'python -c "import offramp"': ["-c", "import offramp"],
    'python -c "from offramp import search"': ["-c", "from offramp import search"],
    "python -m offramp --help": ["-m", "offramp", "--help"],
}
WARM_UP = 2
LOADED = "; import sys; print(len(sys.modules), *sorted({'numpy', 'torch'} & sys.modules.keys()))"


def seconds(arguments: list[str]) -> float:
    """Wall-clock time of one process, start and end included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measured(repeats: int, console: Console) -> dict[str, list[float]]:
    """Seconds of every command in every round that counts."""
    names, found = list(COMMANDS), {name: list[float]() for name in COMMANDS}
    with console.status("starting processes"):
        for turn in range(WARM_UP + repeats):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                spent = seconds(COMMANDS[name])
                if turn >= WARM_UP:
                    found[name].append(spent)
    return found


def loaded(arguments: list[str]) -> dict[str, Any] | None:
    """Which large packages a program given by -c has imported at its end; None for others."""
    if arguments[0] != "-c":
        return None
    command = [sys.executable, "-c", arguments[1] + LOADED]
    count, *packages = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {"modules": int(count), "numpy": "numpy" in packages, "torch": "torch" in packages}


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, quartiles and ratios of each command."""
    rows = {}
    for name, spent in found.items():
        low, _, high = statistics.quantiles(spent, n=4) if len(spent) > 1 else spent * 3
        ratios = [each / empty for each, empty in zip(spent, found[EMPTY], strict=True)]
        rows[name] = {
            "seconds": statistics.median(spent), "quartiles": [low, high],
            "ratio": statistics.median(ratios), "imported": loaded(COMMANDS[name]),
        }  # fmt: skip
    return rows


def table(rows: dict[str, Any], repeats: int) -> Table:
    made = Table(title=f"start-up, medians of {repeats} rounds")
    for heading in ("command", "ms", "quartiles", "to an empty program", "modules", "torch"):
        made.add_column(heading, justify="left" if heading == "command" else "right")
    for name, row in rows.items():
        low, high = (f"{1000 * each:.0f}" for each in row["quartiles"])
        there = row["imported"]
        more = (str(there["modules"]), "imported" if there["torch"] else "no") if there else ("", "")
        made.add_row(name, f"{1000 * row['seconds']:.0f}", f"{low} to {high}", f"{row['ratio']:.2f}", *more)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30, help="rounds that count")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats: expected at least 1, got {options.repeats}")
    console = Console()
    rows = summary(measured(options.repeats, console))
    console.print(table(rows, options.repeats))
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    result = {
        "machine": machine,
        "offramp": offramp.__version__,
        "repeats": options.repeats,
        "commands": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "startup.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
