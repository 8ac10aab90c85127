"""Does it help to train a head for the samples that are likely to reach it? On handwritten digits.

For each seed a backbone, then heads with several settings of ``TrainConfig.survivors`` and, from the frontier
of the first of them, a second round (``train_exits(frontier=...)``). Configurations are found on the search
split and judged on the report split, each digit placed four times; J is compared with that of heads for which
all samples have equal weight.

    python bench/survivors [--seeds 5] [--stored]

Results are kept in bench/results/survivors.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import offramp
from bench.shared import command, results
from bench.shared.measures import objective
from offramp.cli.demo import digit_splits
from offramp.cli.digits import augmented, batches, load_digits, train_backbone
from offramp.core.ranking import rankings

TRADEOFFS = (0.7, 0.8, 0.9, 0.95, 0.98)
SETTINGS = {
    "alike": (0.0, False), "0.5": (0.5, False), "1": (1.0, False),
    "second round, 0.5": (0.5, True), "second round, 1": (1.0, True),
}  # fmt: skip
VIEWS = 4


def one_seed(seed: int, epochs: int) -> dict[str, Any]:
    """Figures of every setting."""
    digits = load_digits(seed)
    model = train_backbone(digits.train, epochs=epochs, seed=seed)
    splits, found = digit_splits(digits, seed), dict[str, Any]()
    frontier, first = None, dict[str, torch.Tensor]()
    search, report = (
        batches(augmented(part, VIEWS, seed + shift))
        for part, shift in ((digits.search, 2), (digits.report, 3))
    )
    for name, (share, second) in SETTINGS.items():
        net = offramp.attach_exits(model, splits.example, heads=("linear", "mlp", "conv"))
        config = offramp.TrainConfig(survivors=share, seed=seed)
        if second:  # weighed by the heads that the frontier was found with
            net.load_state_dict(first)
        offramp.train_exits(net, splits.train, config=config, frontier=frontier if second else None)
        if frontier is None:
            first = {key: value.clone() for key, value in net.state_dict().items()}
        costs = offramp.measure_cost(net)
        seen, unseen = (offramp.record_outputs(net, loader) for loader in (search, report))
        chosen = offramp.search(seen, costs, tradeoffs=TRADEOFFS, step=None)
        frontier = frontier or chosen
        found[name] = {
            "J": [objective(unseen, costs, chosen.by_tradeoff[lam], lam) for lam in TRADEOFFS],
            "quality": float(unseen.quality[unseen.exists].mean()),
            "auroc": float(np.nanmean(rankings(unseen))),
        }
    return found


def show(document: dict[str, Any], console: Console) -> None:
    """Means over seeds, J over that of the first setting, with the standard error of the difference."""
    rows, tradeoffs = document["seeds"], document["tradeoffs"]
    title = f"digits, {len(rows)} seeds; J on the report split, over that of equal weights"
    lambdas = [f"lambda {lam:g}" for lam in tradeoffs]
    table = results.table(title, ("survivors", *lambdas, "mean", "quality", "AUROC"))
    base = np.array([row["alike"]["J"] for row in rows])
    for name in SETTINGS:
        values = np.array([row[name]["J"] for row in rows])
        ratio = values.mean(0) / base.mean(0)
        error = (values - base).std(0, ddof=1) / len(rows) ** 0.5 / base.mean(0)
        cells = [f"{r:.3f} ± {e:.3f}" for r, e in zip(ratio, error, strict=True)]
        means = [np.mean([row[name][key] for row in rows]) for key in ("quality", "auroc")]
        table.add_row(name, *cells, f"{ratio.mean():.3f}", *(f"{mean:.4f}" for mean in means))
    console.print(table)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=50, help="of the backbone")
    parser.add_argument("--stored", action="store_true", help="run nothing: print stored results")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "survivors.json")
    options, console = parser.parse_args(), Console(width=132)
    torch.set_num_threads(1)
    if not options.stored:
        rows = []
        for seed in range(options.seeds):
            rows.append(one_seed(seed, options.epochs))
            console.print(f"seed {seed}")
            document = {"tradeoffs": TRADEOFFS, "epochs": options.epochs, "seeds": rows}
            results.write(options.out, document, flat=True)
    show(results.read(options.out), console)
