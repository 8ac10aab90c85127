"""Predicted against measured time, and what exits cost that no sample takes.

The share of the unmodified model's time is predicted by ``evaluate`` for the very samples that are timed. At
batch 1 every sample counts by the median of its rounds; what a mean over samples predicts is the ratio of
the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import offramp
from bench.runtime.cases import Case, lightest, shared_out, spread
from bench.runtime.rivals import ours, plain
from bench.runtime.timing import interleaved, middle, ratios
from offramp import CostTable, ExitChoice, ExitConfig, Frontier, evaluate

SAMPLES = {"fashion": (300, 640), "resnet50": (24, 128), "text": (60, 128)}
"""How many are timed, at batch 1 and at larger ones."""
TARGETS = (0.25, 0.45, 0.65, 0.85)  # of the full model's MACs
ROUNDS = 1000
NEVER = 2.0  # a threshold that no probability exceeds


def prediction(
    case: Case, batch: int, costs: CostTable, frontier: Frontier | None, seconds: float
) -> list[dict[str, Any]]:
    """Configurations: share of the MACs, of the time as predicted, of the time as measured.

    Four share the samples out among four exits so that the cost is about ``TARGETS``; the best that the
    search found is a fifth, where there was a search.
    """
    part, macs = case.report.picked(SAMPLES[case.name][batch > 1]), offramp.measure_cost(case.net)
    exits = spread(case.net, macs)
    configs = [shared_out(part.records, macs, exits, target) for target in TARGETS]
    configs += [] if frontier is None else [frontier[-1]]
    calls = [plain(case.model, case.select), ours(case.net, ExitConfig())]
    calls += [ours(case.net, config, costs) for config in configs]
    times = middle(interleaved(calls, part.batches(batch), ROUNDS, seconds))
    assert costs.meta is not None
    plain_seconds, found = costs.eager, []
    for i, config in enumerate(configs):
        told, off = ratios(times[:, [i + 2, 0]]), ratios(times[:, [i + 2, 1]])
        found.append({
            "name": "searched" if i == len(TARGETS) else f"{TARGETS[i]:.0%} of the MACs",
            "exits": len(config.choices),
            "macs": evaluate(part.records, macs, config).relative_cost,
            "predicted": evaluate(part.records, costs, config).cost / plain_seconds,
            "measured": told["sum"],
            "median": told["median"],
            "against off": off["sum"],
            "config": config.to_json(),
        })  # fmt: skip
    return found


def overhead(case: Case, batch: int, seconds: float) -> dict[str, Any]:
    """All exits off against the unmodified model; at batch 1 also exits that no sample takes at every cut."""
    part, alone = case.report.picked(SAMPLES[case.name][batch > 1]), plain(case.model, case.select)
    calls = [alone, ours(case.net, ExitConfig())]
    config, count = nobody_leaves(case), 0
    if batch == 1:
        calls += [ours(case.net, config), chain(case, config, True), chain(case, config, False)]
        count = len(config.choices)
    times = middle(interleaved(calls, part.batches(batch), ROUNDS, seconds))
    found: dict[str, Any] = {
        "plain_ms": 1e3 * float(np.median(times[:, 0])),
        "off": ratios(times[:, [1, 0]])["median"],
    }
    if count:
        beyond = (times[:, 2] - times[:, 1]) - (times[:, 3] - times[:, 4])
        found.update(exits=count, per_exit_us=1e6 * float(np.median(beyond)) / count)
    return found


def nobody_leaves(case: Case) -> ExitConfig:
    """The lightest head at every cut, at a threshold that is never reached."""
    net, macs = case.net, offramp.measure_cost(case.net)
    choices = []
    for p in range(1, len(net.positions)):
        if net.exists[p].any():
            head = net.head_names[lightest(net, macs, p)]
            choices.append(ExitChoice(net.positions[p], head, NEVER))
    return ExitConfig(tuple(choices))


def chain(case: Case, config: ExitConfig, heads: bool) -> Callable[[Any], Any]:
    """The spans between a configuration's exits, with or without running the heads there; no sample leaves.

    The two differ by the heads' own time, in the place where they run.
    """
    net, at, links = case.net, 0, list[Any]()
    for choice in config.choices:
        p = net.positions.index(choice.position)
        links.append((net.partition.span(at, p), net.exit_fn(p, net.head_names.index(choice.head))))
        at = p
    rest = net.partition.span(at, len(net.positions))

    @torch.inference_mode()
    def call(inputs: Any) -> Any:
        values = net.partition.spec.flatten(inputs)
        mask, boundary = net.mask(values), tuple(values)
        for span, run_exit in links:
            boundary = span(*boundary)
            if heads:
                run_exit(boundary, mask)
        return net.answer(rest(*boundary))

    return call
