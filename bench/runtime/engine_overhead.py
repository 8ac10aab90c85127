"""Does the clock follow? The engine against the unmodified model, batch 1 and 64, on the demo's network.

Three questions: what do spans cost when no exit is enabled; how much faster is a configuration of at most
three exits priced at no more than half of the MACs; how long does a switch take while another thread runs
batches. Samples are those of the report split; every timed call of the engine is paired with one of the plain
model on the same batch next to it, and the median of the ratios counts.

    python bench/runtime engine [--seed 0] [--threads 1 2]
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import offramp
from bench.runtime.timing import Seconds, interleaved
from bench.shared import command, results
from offramp.cli.demo import digit_splits
from offramp.cli.digits import load_digits, train_backbone
from offramp.graph import evaluating
from offramp.pipeline import BuildConfig, Built, build


def pairs(engine: offramp.Engine, batches: list[torch.Tensor], rounds: int) -> Seconds:
    """(pairs, 2) seconds of the engine and of the unmodified model, next to each other on the same batch."""
    model = engine.net.backbone
    with evaluating(model), torch.inference_mode():
        return interleaved([engine, model], batches, rounds).reshape(-1, 2)


def _settings(built: Built) -> list[tuple[str, offramp.ExitConfig]]:
    """At most three exits: the best within half of the MACs, and the cheapest 0.5 points below full."""
    frontier = offramp.search(built.records["search"], built.costs, max_exits=3)
    return [
        ("best within half", frontier.at(max_cost=0.5)),
        ("0.5 points lower", frontier.at(max_drop=0.005)),
    ]


def measure(built: Built, images: torch.Tensor, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each configuration."""
    batches = [batch for batch in images.split(batch_size) if len(batch) == batch_size]
    rows = []
    for name, config in (("all exits off", offramp.ExitConfig()), *_settings(built)):
        macs = offramp.evaluate(built.records["report"], built.costs, config).relative_cost
        timed = pairs(offramp.Engine(built.net, config), batches, rounds)
        engine, plain = timed.T
        rows.append({
            "setting": name, "exits": len(config.choices), "batch": batch_size,
            "threads": torch.get_num_threads(), "relative_macs": macs,
            "time_ratio_median": float(np.median(engine / plain)),
            "time_ratio_total": float(engine.sum() / plain.sum()),
            "engine_ms": 1e3 * float(np.median(engine)),
            "plain_ms": 1e3 * float(np.median(plain)), "pairs": len(timed),
        })  # fmt: skip
    return rows


def time_switches(built: Built, batch: torch.Tensor, count: int = 10_000) -> float:
    """Median seconds of ``use`` between two prepared configurations while another thread runs batches."""
    frontier = built.frontier
    engine = offramp.Engine(built.net, frontier[0], prepare=frontier)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            engine(batch)

    thread = threading.Thread(target=work)
    thread.start()
    times = []
    for i in range(count):
        start = time.perf_counter()
        engine.use(frontier[-(i % 2)])
        times.append(time.perf_counter() - start)
    done.set()
    thread.join()
    return statistics.median(times)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=50, help="of the backbone: fewer for a quick look")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    digits = load_digits(options.seed)
    splits = digit_splits(digits, options.seed)
    built = build(
        train_backbone(digits.train, epochs=options.epochs, seed=options.seed), splits, BuildConfig()
    )
    images = torch.cat([batch[0] for batch in splits.report])
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        rows += measure(built, images, 1, rounds=3) + measure(built, images, 64, rounds=30)
    names = ("setting", "batch", "threads", "MACs", "time, median of pairs", "time, sum", "speed-up", "pairs")
    cells = [
        (row["setting"], str(row["batch"]), str(row["threads"]), f"{row['relative_macs']:.1%}",
         f"{row['time_ratio_median']:.3f}", f"{row['time_ratio_total']:.3f}",
         f"{1 / row['time_ratio_median']:.2f} x", str(row["pairs"]))
        for row in rows
    ]  # fmt: skip
    title = "Engine against the unmodified model (time below 1 is faster)"
    Console().print(results.table(title, names, cells))
    switch = time_switches(built, images[:64])
    print(f"switch between two configurations while batches run: median {1e6 * switch:.1f} microseconds")
    results.write(options.out / "engine_overhead.json", {"pairs": rows, "switch_seconds": switch})
