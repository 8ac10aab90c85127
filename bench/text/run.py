"""Exits at every layer of a fine-tuned MiniLM against the same encoder with fewer layers.

Heads are trained on the split that the backbone was fine-tuned on, configurations are searched and chosen on
a second, and every figure is of a third. All seeds of the heads' initial weights are columns of one network,
so the backbone runs once. Writes JSON and a picture:

    OUT/text.json, OUT/text.png

    python bench/text --data DIR --backbones DIR --out bench/results [--kind spam] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import offramp
from bench.shared import command, results
from bench.shared.measures import figures
from bench.text.encoder import DEPTH, Encoded, accuracy, backbone_folder, load_classifier, load_data
from bench.text.picture import draw
from offramp import CostTable, ExitConfig, ExitNetwork, ExitRecords, Frontier, register_head
from offramp.heads.registry import head_factory

CUTS = ("bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(DEPTH - 1)))
DROPS = (0.0, 0.0025, 0.005, 0.01)  # in accuracy, allowed on the search split
CHECKED = 64  # report samples that the engine answers as well


@cache
def seeded(kind: str, seed: int) -> str:
    """A kind of head under a name of its own, "kind-seed"."""
    register_head(f"{kind}-{seed}")(head_factory(kind))
    return f"{kind}-{seed}"


def attach(
    model: nn.Module,
    example: dict[str, Tensor],
    heads: str | Sequence[str],
    seeds: Sequence[int],
    cuts: str | Sequence[str] = CUTS,
) -> ExitNetwork:
    """A network with every head once per seed, as "kind-seed"; each has initial weights of its own."""
    net = offramp.attach_exits(model, example, heads=heads, cuts=cuts)
    wanted: dict[str, list[str]] = {}
    for p, c, _ in net.exits():
        wanted.setdefault(net.positions[p], []).extend(seeded(net.head_names[c], seed) for seed in seeds)
    return offramp.attach_exits(model, example, heads=wanted, cuts=cuts)


def of_seed(records: ExitRecords, costs: CostTable, seed: int) -> tuple[ExitRecords, CostTable]:
    """The columns of one seed."""
    columns = [c for c, name in enumerate(records.heads) if name.endswith(f"-{seed}")]
    picked = replace(
        records,
        confidence=records.confidence[:, columns],
        quality=records.quality[:, columns],
        exists=records.exists[:, columns],
        heads=tuple(records.heads[c] for c in columns),
    )
    return picked, replace(costs, heads=costs.heads[:, columns])


def points(records: ExitRecords, costs: CostTable, frontier: Frontier) -> list[tuple[float, float]]:
    """(share of the MACs, accuracy) of every configuration."""
    outcomes = offramp.evaluate(records, costs, frontier)
    return [(round(outcome.relative_cost, 5), round(outcome.quality, 5)) for outcome in outcomes]


def without(records: ExitRecords, costs: CostTable, position: str) -> tuple[ExitRecords, CostTable]:
    """No exits at a position."""
    p = records.positions.index(position)
    exists, heads = records.exists.copy(), costs.heads.copy()
    exists[p], heads[p] = False, 0
    return replace(records, exists=exists), replace(costs, heads=heads)


def one_seed(parts: dict[str, ExitRecords], costs: CostTable, seed: int) -> tuple[dict[str, Any], Frontier]:
    """Search on one split, report on the other: with all exits, and with those after layers only."""
    search, own = of_seed(parts["search"], costs, seed)
    report, _ = of_seed(parts["report"], costs, seed)
    frontier, found = offramp.search(search, own), {"seed": seed, "alone": alone(report, own)}
    found["all"] = {**dial(report, own, frontier), "same_threshold": common(search, report, own)}
    search, fewer = without(search, own, CUTS[0])
    report, _ = without(report, own, CUTS[0])
    found["layers"] = dial(report, fewer, offramp.search(search, fewer))
    return found, frontier


def dial(report: ExitRecords, costs: CostTable, frontier: Frontier) -> dict[str, Any]:
    """What a frontier gives on the report split, and the configurations chosen by their figures on search."""
    chosen = {f"{drop:g}": figures(report, costs, frontier.at(max_drop=drop)) for drop in DROPS}
    return {"chosen": chosen, "frontier": points(report, costs, frontier)}


def common(search: ExitRecords, report: ExitRecords, costs: CostTable) -> list[tuple[float, float]]:
    """The rival with one threshold for all exits."""
    return points(report, costs, offramp.search(search, costs, method="same-threshold"))


def alone(records: ExitRecords, costs: CostTable) -> list[dict[str, Any]]:
    """Accuracy of every exit if all samples left there, and its share of the MACs."""
    return [
        {
            "exit": f"{records.positions[p]} {records.heads[c]}",
            "accuracy": float(records.quality[p, c].mean()),
            "macs": float((costs.backbone[p] + costs.heads[p, c]) / costs.full),
        }
        for p, c in zip(*np.nonzero(records.exists), strict=True)
    ]


def family(folder: Path, kind: str, data: Encoded, costs: CostTable) -> list[dict[str, float]]:
    """The same encoder with fewer layers (each costs the same), fine-tuned in the same way."""
    layer = (costs.backbone[2] - costs.backbone[1]) / costs.full
    return [
        {
            "depth": depth,
            "macs": 1 - (DEPTH - depth) * layer,
            "accuracy": accuracy(load_classifier(folder, kind, depth), data),
        }
        for depth in range(1, DEPTH)
        if backbone_folder(folder, kind, depth).exists()
    ]


def engine_agrees(
    net: ExitNetwork, config: ExitConfig, data: Encoded, records: ExitRecords, costs: CostTable
) -> int:
    """How many of the first report samples the engine stops elsewhere than the records say; batches of 16."""
    engine = offramp.Engine(net, config)
    part = data.rows(slice(CHECKED))
    stopped = torch.cat([engine(batch).position for batch in part.batches(16)]).numpy()
    wanted = offramp.evaluate(records.subset(np.arange(len(part))), costs, config).position
    return int((stopped != wanted).sum())


def experiment(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One data set, all seeds."""
    start = time.perf_counter()
    data = load_data(arguments.data, kind)
    data = {name: part.rows(slice(arguments.limit)) for name, part in data.items()}
    model = load_classifier(arguments.backbones, kind)
    net = attach(model, data["train"].rows(slice(2)).inputs, arguments.heads, arguments.seeds)
    config = offramp.TrainConfig(epochs=arguments.epochs)
    work = arguments.work and arguments.work / kind
    training = offramp.train_exits(net, data["train"].batches(), config=config, work_dir=work)
    parts = {
        name: offramp.record_outputs(net, data[name].batches(), work_dir=work)
        for name in ("search", "report")
    }
    costs = offramp.measure_cost(net)
    seeds, engine = [], -1
    for seed in arguments.seeds:
        found, frontier = one_seed(parts, costs, seed)
        seeds.append(found)
        if engine < 0:
            engine = engine_agrees(net, frontier.at(max_drop=0.005), data["report"], parts["report"], costs)
    return {
        "samples": {name: len(part) for name, part in data.items()},
        "accuracy": {
            "train": training.full_quality,
            **{name: float(part.final_quality.mean()) for name, part in parts.items()},
        },
        "macs": costs.full,
        "training": asdict(config),
        "heads": sorted({name.rsplit("-", 1)[0] for name in net.head_names}),
        "seeds": seeds,
        "family": family(arguments.backbones, kind, data["report"], costs),
        "engine_disagrees": engine,
        "seconds": time.perf_counter() - start,
    }


def show(kind: str, result: dict[str, Any]) -> None:
    """The table."""
    full, seeds = result["accuracy"]["report"], result["seeds"]
    count, macs = result["samples"]["report"], result["macs"]
    print(f"\n{kind}: full model {full:.4f} on {count} report samples, {macs:.4g} MACs")
    for exits, told in (("all", "exits from the embeddings on"), ("layers", "exits after layers only")):
        print(f"  {told}: allowed on search, MACs saved, drop on report in points (each seed)")
        for drop in seeds[0][exits]["chosen"]:
            rows = [found[exits]["chosen"][drop] for found in seeds]
            saved = ", ".join(f"{1 - each['macs']:.1%}" for each in rows)
            lost = ", ".join(f"{100 * each['drop']:+.2f} ± {100 * each['interval']:.2f}" for each in rows)
            mean = (
                np.mean([1 - each["macs"] for each in rows]),
                100 * np.mean([each["drop"] for each in rows]),
            )
            print(f"    {100 * float(drop):.2f}   {mean[0]:.1%} ({saved})   {mean[1]:+.2f} ({lost})")
    for member in result["family"]:
        lost = 100 * (full - member["accuracy"])
        print(f"  the first {member['depth']} layers, fine-tuned: {1 - member['macs']:.1%}   {lost:+.2f}")
    print(f"  engine and records disagree on {result['engine_disagrees']} of {CHECKED} samples")
    print(f"  {result['seconds']:.0f} s")


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that the part prepare wrote")
    parser.add_argument("--backbones", type=Path, required=True, help="folder that the part backbones wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", nargs="+", choices=("spam", "sentences"), default=["spam", "sentences"])
    parser.add_argument("--heads", nargs="+", help="kinds of heads; those of 'auto' without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--limit", type=int, help="so many samples of each split: a smoke test")
    parser.add_argument("--work", type=Path, help="folder from which a killed run goes on")
    command.add_threads(parser, 1)
    arguments = parser.parse_args()
    arguments.heads = arguments.heads or "auto"
    path = arguments.out / "text.json"
    document = results.read(path)
    for kind in arguments.kind:
        document[kind] = experiment(kind, arguments)
        show(kind, document[kind])
    results.write(path, document)
    draw(document, arguments.out / "text.png")
