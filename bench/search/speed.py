"""How fast is the search, against the published ones and as records grow?

What ``python bench/search --speed`` does, on generated records (``recordsets.py``), in one process. The
published iterative search is timed twice: with every threshold simulated in full, as in its released code,
and incrementally, which is kinder to it. Exact search must not end above any published one; the exit code
says so. Writes bench/results/search_speed.json or search_scaling.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from bench.search import recordsets
from bench.shared import results
from bench.shared.measures import objective
from offramp import CostTable, ExitRecords, search
from offramp.baselines.published import brent_iterative, brent_single_pass

SAMPLES, TRADEOFF = 50_000, 0.9
CHECKED = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
SWEEP = tuple(np.linspace(0.5, 1, 101).round(6).tolist())
ROUNDING = 1e-9

Set = tuple[ExitRecords, CostTable]


def run(options: argparse.Namespace, console: Console) -> int:
    """Run, write and print; the exit code is 1 if a published search ends below the exact one."""
    name = "search_scaling" if options.scaling else "search_speed"
    result, code = (scaling(options, console), 0) if options.scaling else speed(options, console)
    results.write(options.out / f"{name}.json", result)
    console.print(f"wrote {options.out / name}.json")
    return code


def timed(console: Console, what: str, call: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """Median CPU seconds (threads added up) and the last answer; says what is being done meanwhile."""
    seconds = []
    with console.status(what):
        for _ in range(times):
            start = time.process_time()
            answer = call()
            seconds.append(time.process_time() - start)
    return float(np.median(seconds)), answer


def speed(options: argparse.Namespace, console: Console) -> tuple[dict[str, Any], int]:
    """Seconds of a whole frontier and of one trade-off, and whether exact search is the lowest."""
    records, costs = recordsets.generated(
        0, options.samples or SAMPLES, positions=options.positions, heads=options.heads
    )
    shape = "P={} C={} N={}".format(*records.confidence.shape)
    lambdas = np.linspace(0.5, 1, options.points).round(6).tolist()
    frontier, found = timed(
        console, "frontier", lambda: search(records, costs, tradeoffs=lambdas, regularise=None)
    )
    console.print(f"{shape}: a frontier of {options.points} trade-offs, exact: {frontier:.2f} s, one process")
    one = one_tradeoff((records, costs), not options.no_whole, console)
    title = f"one trade-off, lambda {TRADEOFF:g}, {shape}"
    table = results.table(title, ("search", "seconds", "of exact search's", "J"))
    for label, row in one.items():
        ratio = row["seconds"] / one["exact"]["seconds"]
        table.add_row(label, f"{row['seconds']:.4g}", f"{ratio:.1f}", f"{row['objective']:.6f}")
    console.print(table)
    exact = {lam: found.by_tradeoff.get(lam) for lam in CHECKED}
    checks = compare((records, costs), exact if all(exact.values()) else None, console)
    higher = sum(not row["holds"] for row in checks)
    result = {
        "shape": shape, "frontier": {"tradeoffs": options.points, "seconds": frontier},
        "one_tradeoff": one, "exact_is_lowest": checks,
    }  # fmt: skip
    return result, int(higher > 0)


def one_tradeoff(data: Set, whole: bool, console: Console) -> dict[str, dict[str, float]]:
    """Seconds and J of each search at a single lambda."""
    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "exact": (lambda: _search(data, [TRADEOFF], None), 5),
        "default": (lambda: _search(data, [TRADEOFF], "auto"), 1),
        "brent-single-pass": (lambda: brent_single_pass(*data, [TRADEOFF]), 1),
        "brent-iterative, incremental": (lambda: brent_iterative(*data, [TRADEOFF], incremental=True), 1),
    }
    if whole:
        calls["brent-iterative, as released"] = lambda: brent_iterative(*data, [TRADEOFF]), 1
    rows = {}
    for label, (call, times) in calls.items():
        seconds, answers = timed(console, f"{label}, one trade-off", call, times)
        value = objective(*data, answers[TRADEOFF], TRADEOFF)
        rows[label] = {"seconds": seconds, "objective": value}
    return rows


def compare(data: Set, exact: Any, console: Console) -> list[dict[str, Any]]:
    """J of exact search, of the whole frontier where that has these trade-offs, against each published one.

    It may nowhere be higher; against the same searches with exact lines the table says where it is.
    """
    with console.status("exact against published"):
        exact = exact or _search(data, CHECKED, None)
        rivals = {
            "single-pass": _search(data, CHECKED, None, "single-pass"),
            "iterative": _search(data, CHECKED, None, "iterative"),
            "brent-single-pass": brent_single_pass(*data, CHECKED),
            "brent-iterative": brent_iterative(*data, CHECKED, incremental=True),
        }
    title = "J on the records searched: exact against published (and these with exact lines)"
    table = results.table(title, ("lambda", "exact", *rivals, "lowest of published", "of all"))
    rows = []
    for lam in CHECKED:
        values = {label: objective(*data, answers[lam], lam) for label, answers in rivals.items()}
        mine = objective(*data, exact[lam], lam)
        holds = mine <= min(values["brent-single-pass"], values["brent-iterative"]) + ROUNDING
        lowest = mine <= min(values.values()) + ROUNDING
        rows.append({"tradeoff": lam, "exact": mine, **values, "holds": holds, "lowest": lowest})
        figures = (f"{value:.6f}" for value in (mine, *values.values()))
        table.add_row(f"{lam:g}", *figures, "yes" if holds else "NO", "yes" if lowest else "no")
    console.print(table)
    return rows


def _search(data: Set, lambdas: Sequence[float], regularise: str | None, method: str = "exact") -> Any:
    return search(*data, tradeoffs=lambdas, regularise=regularise, method=method).by_tradeoff


# ------------------------------------------------------------------------------------------------- scaling


def scaling(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Exact search over N at fixed P and C, and over P * C at fixed N."""
    sizes = [(options.positions, options.heads, n) for n in options.scaling_samples]
    fixed = options.samples or SAMPLES
    exits = [(*map(int, text.split("x")), fixed) for text in options.scaling_exits]
    return {
        "tradeoffs": len(SWEEP),
        "samples": _series("N", sizes, [n for *_, n in sizes], console),
        "exits": _series("P * C", exits, [p * c for p, c, _ in exits], console),
    }


def _series(
    name: str, sizes: Sequence[tuple[int, int, int]], over: Sequence[int], console: Console
) -> dict[str, Any]:
    seconds = []
    for p, c, n in sizes:
        data = recordsets.generated(0, n, positions=p, heads=c)
        what = f"{name}: P={p} C={c} N={n}"
        seconds.append(timed(console, what, lambda d=data: _search(d, SWEEP, None))[0])
    fits = fit(np.array(over, float), np.array(seconds))
    rows = [
        (str(p), str(c), f"{n:,}", f"{spent:.3f}", f"{share:.2f}")
        for (p, c, n), spent, share in zip(sizes, seconds, fits["of_n_log_n"], strict=True)
    ]
    title, headings = f"exact search, {len(SWEEP)} trade-offs, over {name}", ("P", "C", "N", "seconds")
    console.print(results.table(title, (*headings, f"of a {name} log({name})"), rows))
    console.print(f"seconds grow as ({name})^{fits['exponent']:.2f}")
    console.print(
        f"{fits['a']:.3g} s * {name} * log({name}) is right within a factor of {fits['factor']:.2f}\n"
    )
    return {"sizes": [list(size) for size in sizes], "seconds": seconds, **fits}


def fit(over: np.ndarray, seconds: np.ndarray) -> dict[str, Any]:
    """Exponent of a power law, and ``a`` of t = a n log n: both least squares of log t."""
    exponent = float(np.polyfit(np.log(over), np.log(seconds), 1)[0]) if len(over) > 1 else float("nan")
    ratio = seconds / (over * np.log(over))
    a = float(np.exp(np.log(ratio).mean()))
    of = ratio / a
    return {
        "exponent": exponent, "a": a, "of_n_log_n": of.round(4).tolist(),
        "factor": float(np.maximum(of, 1 / of).max()),
    }  # fmt: skip
