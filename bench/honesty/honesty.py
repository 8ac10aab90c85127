"""Asked against kept: does the dial keep what ``frontier.at(max_drop=...)`` promises, and at what cost?

From every pool of records search samples are drawn again and again; what a configuration loses on the rest of
the pool is compared with the drop that was asked for, for ours and other ways to choose (draw.py). A promise
is kept where the mean over the draws is at most the ask.

    python bench/honesty                                   generated pools of 60,000 samples
    python bench/honesty --pools NAME=FOLDER[+FOLDER] ...  stored ones (bench/search/recordsets.py)
    python bench/honesty ... --grouped NAME=VIEWS          samples n, n + N / VIEWS, ... are one group
    python bench/honesty --stored                          table and plot again, from the file alone

Results go to bench/results/honesty.json, a pool at a time, and honesty.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from bench.honesty.draw import ORACLE, OURS, WAYS, Draw, measure, parts
from bench.honesty.picture import draw_picture
from bench.search.recordsets import generated, load
from bench.shared import command, results
from offramp import CostTable, ExitRecords

ASKS = (0.001, 0.002, 0.005, 0.01, 0.02)
SAMPLES = (500, 1000, 2000, 5000)
POPULATION = 60_000
LARGEST = 2 / 3  # of a pool that is drawn at most
CLEAR = 2.0  # standard errors of the mean over draws
WITHIN = 1.15  # of the oracle's cost, for asks of at least 0.5 points from 1,000 samples on
COVERED = (0.90, 0.99)

Pool = tuple[ExitRecords, CostTable]


def joined(folders: Sequence[Path], views: int) -> Pool:
    """Records of several folders as one pool; ``views`` samples of each group, one after the other."""
    sets, groups, known = [load(folder) for folder in folders], [], 0
    for records, _ in sets:
        count = records.samples // views
        groups.append(known + np.arange(records.samples) % count)
        known += count
    first = sets[0][0]
    arrays = {
        name: np.concatenate([getattr(records, name) for records, _ in sets], axis=-1)
        for name in ("confidence", "quality", "final_quality")
    }
    pool = replace(first, logits=None, final_confidence=None, groups=None, **arrays)
    return (replace(pool, groups=np.concatenate(groups)) if views > 1 else pool), sets[0][1]


def pools(arguments: argparse.Namespace) -> Iterator[tuple[str, Pool]]:
    """Names and pools."""
    views = {name: int(count) for name, _, count in (each.partition("=") for each in arguments.grouped)}
    for told in arguments.pools:
        name, _, folders = told.partition("=")
        yield name, joined([Path(each) for each in folders.split("+")], views.get(name, 1))
    if arguments.generated or not arguments.pools:
        yield "generated", generated(2, arguments.population)
        yield "generated, input exit", generated(3, arguments.population, input_exit=True)


def experiment(name: str, pool: Pool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every number of samples, all draws."""
    records, costs = pool
    found = {}
    for samples in arguments.samples:
        if samples <= LARGEST * records.samples:
            drawn = parts(records, samples, arguments.draws, arguments.seed)
            told = f"{name}, {samples} samples"
            draws = [
                measure(few, rest, costs, ASKS, seed, not arguments.uncertified)
                for seed, (few, rest) in enumerate(track(drawn, told, arguments.draws))
            ]
            found[str(samples)] = summary(draws)
    return {"pool": records.samples, "draws": arguments.draws, "asks": list(ASKS), "samples": found}


def summary(draws: Sequence[Draw]) -> dict[str, Any]:
    """Means over draws, and standard errors of what was kept."""
    ways = {}
    for way in WAYS:
        if way in draws[0].cost:
            kept = np.array([draw.kept[way] for draw in draws])
            ways[way] = {
                "cost": np.mean([draw.cost[way] for draw in draws], axis=0).round(5).tolist(),
                "kept": kept.mean(axis=0).round(6).tolist(),
                "error": (kept.std(axis=0, ddof=1) / np.sqrt(len(draws))).round(6).tolist(),
                "above": (kept > np.array(ASKS) + 1e-12).mean(axis=0).round(3).tolist(),
            }
    return {"ways": ways, "covered": round(float(np.nanmean([draw.covered for draw in draws])), 4)}


def cells(document: dict[str, Any]) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Pool, samples, index of the ask, and what was found for that number of samples."""
    for name, pool in document.items():
        for samples, found in pool["samples"].items():
            for i in range(len(pool["asks"])):
                yield name, int(samples), i, found


def verdicts(document: dict[str, Any]) -> list[str]:
    """What holds and what does not, as lines."""
    every = list(cells(document))
    broken, dear = [], []
    for name, samples, i, found in every:
        own, ask = found["ways"][OURS], document[name]["asks"][i]
        if own["kept"][i] > ask + CLEAR * own["error"][i]:
            excess = (own["kept"][i] - ask) / max(own["error"][i], 1e-12)
            kept = 100 * own["kept"][i]
            broken.append(f"{name} {samples}: asked {100 * ask:g}, kept {kept:.2f} ({excess:.1f} errors)")
        ratio = own["cost"][i] / found["ways"][ORACLE]["cost"][i]
        if ask >= ASKS[2] and samples >= SAMPLES[1] and ratio > WITHIN:
            dear.append(f"{name} {samples}: asked {100 * ask:g}, cost {ratio:.2f} of the oracle's")
    chance = 0.0228 * len(every)
    held = [found["covered"] for _, pool in document.items() for found in pool["samples"].values()]
    return [
        f"kept above the ask by more than two standard errors: {len(broken)} of {len(every)} cells, "
        f"chance alone gives {chance:.1f} where the promise is just kept",
        *(f"    {each}" for each in broken),
        f"cost above {WITHIN} of the oracle's: {len(dear)} cells of asks from 0.5 points, from 1,000 samples",
        *(f"    {each}" for each in dear),
        f"intervals hold {min(held):.1%} to {max(held):.1%} of the drops (wanted 90 to 99 %)",
    ]


def show(document: dict[str, Any], console: Console) -> None:
    """Tables: one for each pool."""
    for name, pool in document.items():
        names = ["samples", "asked", *(way for way in WAYS)]
        rows = []
        for samples, found in pool["samples"].items():
            for i, ask in enumerate(pool["asks"]):
                row = [samples, f"{100 * ask:g}"]
                for way in WAYS:
                    each = found["ways"].get(way)
                    if each is None:
                        row.append("")
                        continue
                    error = f" ±{100 * each['error'][i]:.2f}" if way == OURS else ""
                    row.append(f"{100 * each['kept'][i]:.2f}{error}\n{100 * each['cost'][i]:.1f}%")
                rows.append(row)
        title = f"{name}: drop kept in points, and cost; {pool['draws']} draws from {pool['pool']:,}"
        console.print(results.table(title, names, rows))
    for line in verdicts(document):
        console.print(line, highlight=False)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--pools", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--grouped", nargs="+", default=[], metavar="NAME=VIEWS")
    parser.add_argument("--generated", action="store_true", help="the generated pools too")
    parser.add_argument("--population", type=int, default=POPULATION, help="size of the generated pools")
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--uncertified", action="store_true", help="leave certify out")
    parser.add_argument("--stored", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    path = arguments.out / "honesty.json"
    document = results.read(path)
    if not arguments.stored:
        for name, pool in pools(arguments):
            document[name] = experiment(name, pool, arguments)
            results.write(path, document, flat=True)
    show(document, Console())
    draw_picture(document, arguments.out / "honesty.png")
