"""Does the clock follow? The engine against the plain model, batch 1 and 64, on the demo's network.

Three questions: what do spans cost when no exit is enabled; how much faster is a configuration of at most
three exits priced at no more than half of the MACs; how long does a switch take while another thread runs
batches. Samples are those of the report split; every timed call of the engine is paired with one of the plain
model next to it, and the median of the ratios counts.

    python bench/engine_overhead.py [--seed 0] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import offramp
from offramp.demo import digit_splits
from offramp.digits import load_digits, train_backbone
from offramp.pipeline import BuildConfig, Built, build
from offramp.tracing import evaluating

RESULTS = Path(__file__).parent / "results"


def pairs(engine: offramp.Engine, batches: list[torch.Tensor], rounds: int) -> list[tuple[float, float]]:
    """(engine seconds, plain seconds) of neighbouring calls on the same batch, in alternating order."""
    model, timed = engine.net.backbone, []
    with evaluating(model), torch.inference_mode():
        for warm in batches[:20]:
            engine(warm), model(warm)
        for turn in range(rounds):
            for i, batch in enumerate(batches):
                calls = [engine, model] if (turn + i) % 2 == 0 else [model, engine]
                seconds = {}
                for call in calls:
                    start = time.perf_counter()
                    call(batch)
                    seconds[call] = time.perf_counter() - start
                timed.append((seconds[engine], seconds[model]))
    return timed


def _settings(built: Built) -> list[tuple[str, offramp.ExitConfig]]:
    """At most three exits: the best within half of the MACs, and the cheapest 0.5 points below full."""
    frontier = offramp.search(built.records["search"], built.costs, max_exits=3)
    return [
        ("best within half", frontier.at(max_cost=0.5)),
        ("0.5 points lower", frontier.at(max_drop=0.005)),
    ]


def measure(built: Built, images: torch.Tensor, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    batches = list(images.split(batch_size))
    batches = [batch for batch in batches if len(batch) == batch_size]
    rows = []
    for name, config in (("all exits off", offramp.ExitConfig()), *_settings(built)):
        macs = offramp.evaluate(built.records["report"], built.costs, config).relative_cost
        timed = pairs(offramp.Engine(built.net, config), batches, rounds)
        ratios = [a / b for a, b in timed]
        total = sum(a for a, _ in timed) / sum(b for _, b in timed)
        rows.append({
            "setting": name, "exits": len(config.choices), "batch": batch_size,
            "threads": torch.get_num_threads(), "relative_macs": macs,
            "time_ratio_median": statistics.median(ratios), "time_ratio_total": total,
            "engine_ms": 1e3 * statistics.median(a for a, _ in timed),
            "plain_ms": 1e3 * statistics.median(b for _, b in timed), "pairs": len(timed),
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    digits = load_digits(options.seed)
    splits = digit_splits(digits, options.seed)
    built = build(train_backbone(digits.train, seed=options.seed), splits, BuildConfig())
    images = torch.cat([batch[0] for batch in splits.report])
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        rows += measure(built, images, 1, rounds=3) + measure(built, images, 64, rounds=30)
    table = Table(title="Engine against the plain model (time below 1 is faster)")
    for name in (
        "setting",
        "batch",
        "threads",
        "MACs",
        "time, median of pairs",
        "time, sum",
        "speed-up",
        "pairs",
    ):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for row in rows:
        table.add_row(row["setting"], str(row["batch"]), str(row["threads"]), f"{row['relative_macs']:.1%}",
                      f"{row['time_ratio_median']:.3f}", f"{row['time_ratio_total']:.3f}",
                      f"{1 / row['time_ratio_median']:.2f} x", str(row["pairs"]))  # fmt: skip
    Console().print(table)
    switch = time_switches(built, images[:64])
    print(f"switch between two configurations while batches run: median {1e6 * switch:.1f} microseconds")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "engine_overhead.json").write_text(
        json.dumps({"pairs": rows, "switch_seconds": switch}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
