"""What does each kind of head bring? ResNet-56 on Fashion-MNIST, every kind at six positions.

Heads train on some of the images that the backbone was trained on. For each exit: its MACs, and on the 10,000
test images its accuracy, how well its confidence ranks its errors (AUROC of correctness), and the accuracy of
"the most confident 80 % leave here, the others run the full model". Then frontiers: configurations are
searched for on the 5,000 held-out images with some kinds of head only, and reported on the test images.

    python bench/heads --backbones DIR [--images 20000] [--epochs 6] [--work DIR]

writes bench/results/heads.json and heads.png. With ``--records DIR``, a seed's folder that
``python bench/fashion_mnist exits`` wrote, nothing is trained, and the tables are of those exits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import offramp
from bench.fashion_mnist.exits import PAPER, plain
from bench.fashion_mnist.fashion import Fashion, load_fashion
from bench.fashion_mnist.resnet import load_backbone
from bench.search.recordsets import load
from bench.shared import command, results
from bench.shared.figures import PALETTE, panels
from bench.shared.measures import objective, only
from offramp import CostTable, ExitRecords, Frontier
from offramp.core.ranking import auroc

POSITIONS = ("layer1.0", "layer1.2", "layer1.6", "layer2.3", "layer3.0", "layer3.4")
POOLED = ("linear", "linear-meanmax", "linear-2x2", "linear-4x4", "mlp-mean", "mlp-2x2", "mlp")
EVERYWHERE = (*POOLED, "conv", PAPER)
NETS = ("convnet", "convnet-large")
MORE = {
    "layer1.0": (*NETS, "separable"),
    "layer1.2": NETS,
    "layer1.6": ("convnet",),
    "layer2.3": ("convnet", "attention", "local-global"),
}
AT_INPUT = {"input-convnet": "convnet", "input-convnet-large": "convnet-large"}
LAMBDAS = (0.8, 0.9, 0.95, 0.98, 0.99)
TRADEOFFS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.965, 0.98, 0.985, 0.99, 0.995, 1.0)
DROPS = (0.005, 0.001)
LEAVE = 0.8

Kept = Callable[[str], bool]
SETS: dict[str, Kept] = {
    "the paper's": lambda head: head == PAPER,
    "pooled linear": lambda head: head.startswith("linear"),
    "and MLPs": lambda head: head in POOLED,
    "and conv": lambda head: head in (*POOLED, "conv"),
    "and convnets": lambda head: head in (*POOLED, "conv", *NETS),
    "and convnets at the input": lambda head: head in (*POOLED, "conv", *NETS, *AT_INPUT),
    "kinds that auto takes": lambda head: head in ("linear-meanmax", "mlp", "conv", "convnet"),
}


def attach(backbones: Path, data: Fashion, seed: int) -> offramp.ExitNetwork:
    """ResNet-56 with all kinds of heads."""
    wanted = {name: (*EVERYWHERE, *MORE.get(name, ())) for name in POSITIONS}
    return offramp.attach_exits(
        load_backbone(backbones, 56),
        data.test[0][:2],
        heads=wanted,
        cuts=POSITIONS,
        input_exits=AT_INPUT,
        seed=seed,
    )


def single(records: ExitRecords, costs: CostTable) -> list[dict[str, Any]]:
    """Every exit by itself; shares in percent."""
    found = []
    for p, c in zip(*records.exists.nonzero(), strict=True):
        right, confidence = records.quality[p, c], records.confidence[p, c]
        leave = np.argsort(-confidence, kind="stable")[: int(LEAVE * len(confidence))]
        mixed = records.final_quality.copy()
        mixed[leave] = right[leave]
        found.append(
            {
                "position": records.positions[p],
                "head": records.heads[c],
                "head_macs": int(costs.heads[p, c]),
                "cost": 100 * float(costs.backbone[p] + costs.heads[p, c]) / costs.full,
                "accuracy": 100 * float(right.mean()),
                "auroc": float(auroc(confidence, right)),
                "surest_leave": 100 * float(mixed.mean()),
            }
        )
    return found


def frontier_of(search: ExitRecords, report: ExitRecords, costs: CostTable) -> dict[str, Any]:
    """A frontier found on one split, its figures on the other."""
    frontier = offramp.search(search, costs, tradeoffs=TRADEOFFS)
    outcomes = offramp.evaluate(report, costs, frontier)
    points = sorted((100 * o.relative_cost, 100 * o.quality) for o in outcomes)
    full, drops = float(report.final_quality.mean()), {}
    for drop in DROPS:
        outcome = offramp.evaluate(report, costs, frontier.at(max_drop=drop))
        drops[str(drop)] = {"cost": 100 * outcome.relative_cost, "drop": 100 * (full - outcome.quality)}
    return {"points": points, "at": drops, "j": _objectives(frontier, report, costs)}


def _objectives(frontier: Frontier, report: ExitRecords, costs: CostTable) -> dict[str, float]:
    """J at every trade-off, in units of the full model's."""
    return {str(lam): objective(report, costs, frontier.at(tradeoff=lam), lam) / (1 - lam) for lam in LAMBDAS}


def show(document: dict[str, Any]) -> None:
    """Two tables."""
    print("position   head                  MACs  cost % accuracy   AUROC  most confident 80 % leave")
    for row in document["exits"]:
        print(
            f"{row['position']:10s} {row['head']:16s} {row['head_macs']:9d} {row['cost']:7.2f} "
            f"{row['accuracy']:8.2f} {row['auroc']:7.3f} {row['surest_leave']:18.2f}"
        )
    print(f"\nJ in units of the full model's, at lambda {', '.join(map(str, LAMBDAS))}")
    print("heads                       <= 0.5: cost   drop  <= 0.1: cost   drop  J")
    for name, result in document["sets"].items():
        figures = [f"{at['cost']:13.2f} {at['drop']:6.2f}" for at in result["at"].values()]
        values = " ".join(f"{value:.3f}" for value in result["j"].values())
        print(f"{name:26s} {' '.join(figures)}  {values}")


def draw(document: dict[str, Any], path: Path) -> None:
    """Left: each exit by itself. Right: frontiers with more and more kinds of head."""
    settings = {**PALETTE, "font.size": 8.5, "axes.titlesize": 9.5}
    with panels(path, (1, 2), (12, 4.4), settings=settings) as (_, axes):
        left, right = axes[0]
        colours = plt.get_cmap("tab20")
        kinds = list(dict.fromkeys(row["head"] for row in document["exits"]))
        for i, kind in enumerate(kinds):
            rows = [row for row in document["exits"] if row["head"] == kind]
            x, y = [row["cost"] for row in rows], [row["accuracy"] for row in rows]
            left.plot(x, y, "o-", ms=3, lw=1, color=colours(i % 20), label=kind)
        left.set(
            xlabel="MACs up to and with the exit, %", ylabel="accuracy on test images, %", ylim=(70, 94.5)
        )
        left.set_title("Each kind of head by itself", loc="left")
        left.legend(fontsize=6.5, ncols=2)
        for i, (name, result) in enumerate(document["sets"].items()):
            x, y = np.array(result["points"]).T
            right.plot(x, np.maximum.accumulate(y), lw=1.2, color=colours(2 * i), label=name)
        right.axhline(document["full"], color="#888888", lw=0.8, ls=":")
        right.set(xscale="log", xlim=(1.5, 100), ylim=(document["full"] - 3, document["full"] + 0.4))
        right.set(xlabel="average MACs, % of the full model", ylabel="accuracy on test images, %")
        right.set_title("Frontiers, with more and more kinds", loc="left")
        right.legend(fontsize=7, loc="lower right")


def recorded(data: Fashion, arguments: argparse.Namespace) -> tuple[ExitRecords, ExitRecords, CostTable]:
    """Train and record: on the held-out images, on the test images; and costs."""
    net = attach(arguments.backbones, data, arguments.seed)
    pick = torch.randperm(len(data.train[0]), generator=torch.Generator().manual_seed(arguments.seed))
    images, labels = (part[pick[: arguments.images]] for part in data.train)
    config = offramp.TrainConfig(
        epochs=arguments.epochs, distillation=0.7, seed=arguments.seed, cache_dtype="float16", calibration=0
    )
    start = time.perf_counter()
    offramp.train_exits(net, plain((images, labels)), config=config, work_dir=arguments.work)
    print(f"heads trained, {time.perf_counter() - start:.0f} s", flush=True)
    parts = [(x[: arguments.limit], y[: arguments.limit]) for x, y in (data.held_out, data.test)]
    search, report = (offramp.record_outputs(net, plain(p), work_dir=arguments.work) for p in parts)
    return search, report, offramp.measure_cost(net)


def compared(search: ExitRecords, report: ExitRecords, costs: CostTable) -> dict[str, Any]:
    """Every exit by itself, and frontiers of sets of kinds that there are."""
    kept = {tuple(map(keep, search.heads)): name for name, keep in reversed(SETS.items())}  # each once
    named = {name: SETS[name] for heads, name in reversed(kept.items()) if any(heads)}
    sets = {}
    for name, keep in named.items():
        parts = (only(part, lambda _, head, keep=keep: keep(head)) for part in (search, report))
        sets[name] = frontier_of(*parts, costs)
    full = 100 * float(report.final_quality.mean())
    return {"full": full, "exits": single(report, costs), "sets": sets}


def main() -> None:
    parser = command.parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--backbones", type=Path, help="folder of fashion_resnet*.safetensors, to train on")
    source.add_argument("--records", type=Path, help="folder of recorded exits, with search/ and report/")
    command.add_fashion(parser, backbones=False)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    parser.add_argument("--images", type=int, default=20_000, help="to train the heads on")
    parser.add_argument("--limit", type=int, help="search and report on so many images only")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder from which a killed run goes on")
    command.add_threads(parser)
    arguments = parser.parse_args()
    if arguments.records:
        (search, costs), (report, _) = (load(arguments.records / name) for name in ("search", "report"))
        document: dict[str, Any] = {"records": "bench/fashion_mnist/exits.py"}
    else:
        search, report, costs = recorded(load_fashion(arguments.data), arguments)
        document = {name: getattr(arguments, name) for name in ("images", "epochs", "seed")}
    document |= compared(search, report, costs)
    show(document)
    results.write(arguments.out / "heads.json", document)
    draw(document, arguments.out / "heads.png")
