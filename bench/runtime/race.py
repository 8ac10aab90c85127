"""The race: models with and without exits on the same samples, and who wins at equal accuracy.

For every smaller model of the family two configurations stand against it: the one that was chosen on the
search split (its accuracy there is the member's and a margin more), and the fastest of all configurations
timed whose accuracy on the report split is not below the member's. The first is what a user gets; the second
is chosen after the fact and tells where the curve runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.runtime.cases import Case, Part
from bench.runtime.rivals import (
    EXECUTIONS,
    ONNX,
    Call,
    Entry,
    earlyon,
    hooks,
    in_parts,
    naive,
    onnx_runtime,
    ours,
    plain,
    static,
)
from bench.runtime.timing import WARM, interleaved, middle, summary
from offramp import CostTable, ExitConfig, ExitRecords, Frontier, OfframpError, evaluate

MARGIN = 0.005  # choices on 5,000 images promised 0.3 to 0.6 points too much: fashion_mnist/README.md
CURVE = (0.04, 0.06, 0.09, 0.13, 0.19, 0.28, 0.4, 0.6, 0.8)  # costs of the configurations between
FULL = "full model"
ACCURACY_BATCH = 64
ROUNDS, LEAST = 3, 5  # of every batch; batches


# ---------------------------------------------------------------------------------------------- choosing


def choose(frontier: Frontier, wanted: float) -> ExitConfig:
    """The cheapest configuration of this quality on the search split; the best one if none reaches it."""
    try:
        return frontier.at(min_quality=wanted)
    except OfframpError:
        return frontier[-1]


def configurations(frontier: Frontier, rivals: Mapping[str, float]) -> dict[ExitConfig, list[str]]:
    """What races: configurations, each with the rivals that it was chosen against.

    Args:
        frontier: searched on the search split.
        rivals: accuracy there of every static model, by name.
    """
    found: dict[ExitConfig, list[str]] = {}
    for name, quality in rivals.items():
        found.setdefault(choose(frontier, quality + MARGIN), []).append(name)
    for cost in CURVE:
        try:
            found.setdefault(frontier.at(max_cost=cost), [])
        except OfframpError:  # nothing is as cheap
            continue
    return {config: names for config, names in found.items() if config.choices}


def inside(records: ExitRecords) -> ExitRecords:
    """The same records without exits at the input, which other implementations cannot have."""
    exists = records.exists.copy()
    exists[0] = False
    return replace(records, exists=exists)


# ----------------------------------------------------------------------------------------------- entries


@dataclass(frozen=True)
class Setting:
    """Network, samples and configurations of one race.

    Args:
        case: network and samples.
        batch: samples in a call.
        costs: seconds, measured at this batch and number of threads.
        frontier: searched with these costs on the search split.
        within: the same without exits at the input.
        rivals: accuracy of every static model on the search split, by name.
        executions: other than eager.
        work: folder for exports.
        skip: called with (name, reason) for entries that cannot run here.
    """

    case: Case
    batch: int
    costs: CostTable
    frontier: Frontier
    within: Frontier
    rivals: Mapping[str, float]
    executions: Sequence[str]
    work: Path
    skip: Callable[[str, str], None]

    @property
    def models(self) -> dict[str, nn.Module]:
        """The static models by name."""
        return {FULL: self.case.model, **self.case.members}


def entries(setting: Setting) -> Iterator[tuple[Entry, list[str]]]:
    """Every entry of the race, with the rivals that its configuration was chosen against."""
    for entry in _static(setting):
        yield entry, []
    chosen = configurations(setting.frontier, setting.rivals)
    for config, names in chosen.items():
        yield _ours(f"ours {_cost(config)}", setting, config), names
        if names:
            yield from ((entry, names) for entry in _other_executions(setting, config))
            yield from ((entry, []) for entry in _others(setting, config))
    yield from ((entry, []) for entry in _earlyon(setting))


def _ours(name: str, setting: Setting, config: ExitConfig) -> Entry:
    call = ours(setting.case.net, config, setting.costs)
    return Entry(name, "ours", call, config=config, foretold=True)


def _static(setting: Setting) -> Iterator[Entry]:
    """The full model and the smaller ones: whole, in pieces of the fastest size, on other backends."""
    example = setting.case.report.rows(slice(setting.batch))
    for name, model in setting.models.items():
        whole = plain(model, setting.case.select)
        yield Entry(name, "static", whole)
        found = in_parts(whole, example)
        if found is not None:
            yield Entry(f"{name}, by {found[0]}", "static", found[1])
        for execution in setting.executions:
            file = setting.work / f"{setting.case.name}-{name}.onnx"
            make = partial(static, model, setting.case.select, execution, example, file)
            entry = Entry(
                f"{name}, {execution}",
                "static",
                whole,
                execution=execution,
                any_batch=execution != "inductor",
            )
            yield from _made(setting, entry, make)


def _other_executions(setting: Setting, config: ExitConfig) -> Iterator[Entry]:
    net, costs = setting.case.net, setting.costs
    unmade = plain(setting.case.model, setting.case.select)
    for execution in setting.executions:
        name = f"ours {_cost(config)}, {execution}"
        entry = Entry(name, "ours", unmade, config=config, execution=execution)
        if execution == ONNX:
            key = hashlib.sha256(config.to_json().encode()).hexdigest()[:12]
            folder = setting.work / f"{setting.case.name}-{key}.onnx"
            yield from _made(setting, entry, partial(onnx_runtime, net, config, costs, folder))
        else:
            yield from _made(setting, entry, partial(ours, net, config, costs, EXECUTIONS[execution]))


def _made(setting: Setting, entry: Entry, make: Callable[[], Call]) -> Iterator[Entry]:
    """An entry whose call has to be made first, which may fail on this machine."""
    try:
        yield replace(entry, call=make())
    except (OfframpError, RuntimeError, TypeError, ValueError) as error:
        setting.skip(entry.name, str(error).strip().splitlines()[0])


def _others(setting: Setting, config: ExitConfig) -> Iterator[Entry]:
    """One configuration as others run it."""
    net, select, single = setting.case.net, setting.case.select, setting.batch == 1
    if isinstance(setting.case.report.inputs, dict):
        return
    yield Entry(f"naive {_cost(config)}", "others", naive(net, config), config=config, foretold=True)
    yield _batched(f"hooks {_cost(config)}", hooks(net, config, select), config, single)


def _batched(name: str, call: Call, config: ExitConfig, single: bool) -> Entry:
    """An implementation that lets a batch leave as a whole: it follows the records at batch 1 only."""
    return Entry(name, "others", call, config=config, foretold=single, any_batch=False)


def _earlyon(setting: Setting) -> Iterator[Entry]:
    """The package, with a configuration it can run, and ours with the same."""
    net = setting.case.net
    config = choose(setting.within, min(setting.rivals.values()) + MARGIN)
    call = "it takes one tensor" if isinstance(setting.case.report.inputs, dict) else earlyon(net, config)
    yield _ours(f"ours {_cost(config)}, no exit at the input", setting, config)
    if isinstance(call, str):
        setting.skip("earlyon", call)
        return
    yield _batched(f"earlyon {_cost(config)}", call, config, setting.batch == 1)


def _cost(config: ExitConfig) -> str:
    figures = config.expected
    assert figures is not None  # a frontier's configurations have them
    return f"{figures.relative_cost:.1%}"


# ---------------------------------------------------------------------------------------------- accuracy


def accuracy(call: Call, part: Part, batch: int = ACCURACY_BATCH) -> float:
    """Share of right answers, batch by batch; samples that fill no batch are left out."""
    answers = torch.cat([call(inputs).argmax(1) for inputs in part.batches(min(batch, len(part)))])
    return float((answers == part.labels[: len(answers)]).double().mean())


def rivals(case: Case, remembered: Callable[[str, Callable[[], float]], float]) -> dict[str, float]:
    """Accuracy of the static models on the search split, by name."""
    part, found = case.search, {}
    assert part is not None  # racers have one
    for name, model in {FULL: case.model, **case.members}.items():
        call = plain(model, case.select)
        found[name] = remembered(f"{case.name}, {name}, search split", partial(accuracy, call, part))
    return found


def entry_accuracy(entry: Entry, setting: Setting) -> float:
    """On the report split."""
    report = setting.case.report
    if entry.foretold and entry.config is not None:
        return evaluate(report.records, setting.costs, entry.config).quality
    return accuracy(entry.call, report, ACCURACY_BATCH if entry.any_batch else setting.batch)


# ------------------------------------------------------------------------------------------------- result


def race(raced: Sequence[Entry], batches: Sequence[Any], batch: int, budget: float) -> list[dict[str, float]]:
    """Figures of every entry: all get the same batches, as many as the budget of seconds has room for.

    A batch counts with the median of its rounds: quantiles are then of samples, not of interruptions.
    """
    calls = [entry.call for entry in raced]
    once = interleaved(calls, batches[:2]).sum(2).mean()
    count = max(int(budget / once - 2 * WARM) // ROUNDS, LEAST)
    seconds = middle(interleaved(calls, batches[:count], ROUNDS))
    return [{**summary(seconds[:, i], batch), "calls": len(seconds)} for i in range(len(raced))]


def versus(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every rival, ours against it on the same execution backend.

    Args:
        rows: as in the results: "name", "kind", "execution", "config", "accuracy", "p50", "throughput",
            "chosen_for".
    """
    found = []
    for rival in (row for row in rows if row["kind"] != "ours"):
        mine = [r for r in rows if r["kind"] == "ours" and r["execution"] == rival["execution"]]
        if rival["kind"] == "static":
            picked = [row for row in mine if rival["name"].partition(",")[0] in row["chosen_for"]]
        else:
            picked = [row for row in mine if row["config"] == rival["config"]]
        able = [row for row in mine if row["accuracy"] >= rival["accuracy"]]
        fast = max(able, key=lambda row: row["throughput"], default=None)
        found.append({
            "rival": rival["name"],
            "chosen": picked[0]["name"] if picked else None,
            "chosen beats it": bool(picked) and beats(picked[0], rival),
            "fastest as accurate": fast and fast["name"],
            "fastest beats it": fast is not None and beats(fast, rival),
        })  # fmt: skip
    return found


def beats(row: Mapping[str, Any], rival: Mapping[str, Any]) -> bool:
    """No less accurate, and faster in the median call and in samples per second."""
    faster = row["p50"] < rival["p50"] and row["throughput"] > rival["throughput"]
    return bool(row["accuracy"] >= rival["accuracy"] and faster)
