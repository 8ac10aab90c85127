"""Rows of ``python bench/search`` summed up, shown, and held against what the default search should achieve.

    summary    rows of one method, one for each seed -> means, paired differences to the default, intervals
    verdicts   summaries of one record set -> PASS and FAIL lines
    show       both, printed

A difference is a method's J less the default search's on the same seeds: above 0 the default is better. The
intervals are 95 % ones of its mean over seeds (Student's t); where seeds are random splits of one pool, they
leave out the variance between pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from bench.search.methods import DEFAULT, EXACT, SAME
from bench.shared import results

Floats = npt.NDArray[np.float64]
Rows = list[dict[str, Any]]

BEATEN = (
    "brent-single-pass", "search/single-pass", "brent-iterative", "search/iterative", "greedy-grid",
    "patience", "single-exit",
)  # fmt: skip
COMMON = (SAME, "search/same-threshold")
COLUMNS = "J, search", "J, report", "difference", "gap", "seconds", "hypervolume", "exits"
ROUNDING = 1e-12

# ----------------------------------------------------------------------------------------------- summaries


def summary(rows: Rows, default: Rows) -> dict[str, Any]:
    """Of one method, and against ``default`` on the same seeds."""
    found, report = (np.array([row[split] for row in rows]) for split in ("search", "report"))  # (S, L)
    mine = np.array([row["report"] for row in default])
    difference = report - mine
    total = difference.sum(axis=1)
    saved = 1 - mine.sum(axis=1) / report.sum(axis=1)
    return {
        "search": float(found.sum(axis=1).mean()),
        "report": float(report.sum(axis=1).mean()),
        "report_by_seed": report.sum(axis=1).round(6).tolist(),
        "difference": float(total.mean()),
        "interval": float(half_width(total[:, None])[0]),
        "reduction": float(saved.mean()),
        "reduction_interval": float(half_width(saved[:, None])[0]),
        "seconds": float(np.median([row["seconds"] for row in rows])),
        "hypervolume": float(np.mean([hypervolume(row["points"]) for row in rows])),
        "exits": float(np.mean([row["exits"] for row in rows])),
        "by_tradeoff": {
            "report": report.mean(axis=0).round(9).tolist(),
            "difference": difference.mean(axis=0).round(9).tolist(),
            "interval": half_width(difference).round(9).tolist(),
        },
    }


def half_width(values: Floats) -> Floats:
    """(S, L) to (L,): half of the 95 % interval of the mean over S seeds; 0 for a single one."""
    seeds = len(values)
    if seeds < 2:
        return np.zeros(values.shape[1])
    return np.asarray(student.ppf(0.975, seeds - 1) * values.std(axis=0, ddof=1) / np.sqrt(seeds))


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area that (quality, cost) points dominate, up to the reference point: quality 0 at the full cost."""
    area, best, reached = 0.0, 0.0, 1.0
    for quality, cost in sorted(points, key=lambda point: point[1]):
        if quality > best and cost < 1:
            area += best * (cost - reached) if best else 0.0
            best, reached = quality, cost
    return area + best * (1 - reached)


def optimism(rows: dict[str, Rows], samples: int) -> dict[str, Any]:
    """How much higher J is on the report split than where it was minimised, summed over lambda."""
    gaps = {
        label: float(np.mean([np.sum(row["report"]) - np.sum(row["search"]) for row in found]))
        for label, found in rows.items()
    }
    reports = {
        label: float(np.mean([np.sum(row["report"]) for row in found])) for label, found in rows.items()
    }
    return {"samples": samples, "gap": gaps, "report": reports}


# ------------------------------------------------------------------------------------------------ verdicts


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the default search should achieve on this set: lines that pass, fail or (None) are unknown."""
    lower = [_lower(result, label) for label in BEATEN]
    lines = [*lower, *(_not_worse(result, label) for label in COMMON)]
    if result.get("few"):
        lines.append(_halved(result["few"]))
    known = [line["passes"] for line in lower]
    passes = None if None in known and False not in known else all(known)
    return [{"text": "lower than all of the following seven at every lambda", "passes": passes}, *lines]


def _lower(result: dict[str, Any], label: str) -> dict[str, Any]:
    """Mean J on the report split below a rival's at every lambda."""
    row = result["methods"].get(label)
    if row is None:
        return {"text": f"lower than {label}: not measured", "passes": None}
    wrong = _where(result, row, lambda difference, _: difference <= ROUNDING)
    return {"text": f"lower than {label} {_share(result, wrong)}", "passes": not wrong}


def _not_worse(result: dict[str, Any], label: str) -> dict[str, Any]:
    """Nowhere above a common threshold's by more than the interval; and by how much below in all."""
    row = result["methods"].get(label)
    if row is None:
        return {"text": f"not worse than {label}: not measured", "passes": None}
    wrong = _where(result, row, lambda difference, interval: difference + interval < -ROUNDING)
    text = f"not worse than {label} beyond noise {_share(result, wrong)}; "
    text += f"sum over lambdas {-row['reduction']:+.2%} ± {row['reduction_interval']:.2%}"
    return {"text": text, "passes": not wrong}


def _halved(few: dict[str, Any]) -> dict[str, Any]:
    """Optimism at few samples less than half of the plain optimum's."""
    gap, plain = few["gap"][DEFAULT], few["gap"][EXACT]
    text = f"gap between report and search J at {few['samples']:,} samples: {gap:.4f}"
    text += f" against {plain:.4f} of {EXACT}"
    text += f" ({gap / plain:.0%}, to be below 50 %)" if plain > 0 else ""
    return {"text": text, "passes": gap < plain / 2}


def _where(result: dict[str, Any], row: dict[str, Any], fails: Any) -> list[tuple[float, float, float]]:
    """(lambda, difference, interval) wherever ``fails(difference, interval)``."""
    columns = row["by_tradeoff"]["difference"], row["by_tradeoff"]["interval"]
    return [each for each in zip(result["tradeoffs"], *columns, strict=True) if fails(*each[1:])]


def _share(result: dict[str, Any], wrong: list[tuple[float, float, float]]) -> str:
    """At how many trade-offs something holds, and by how much it fails elsewhere."""
    count = len(result["tradeoffs"])
    told = ", ".join(f"{lam:g} ({_difference(value, interval)})" for lam, value, interval in wrong)
    return f"at {count - len(wrong)} of {count} lambdas" + (f", not at {told}" if wrong else "")


def _difference(value: float, interval: float) -> str:
    if abs(value) <= ROUNDING:
        return "equal"
    beyond = ", beyond noise" if value + interval < 0 else ""
    return f"{1e4 * value:+.1f} ± {1e4 * interval:.1f} e-4{beyond}"


# -------------------------------------------------------------------------------------------------- tables


def show(result: dict[str, Any], console: Console) -> None:
    """Sums over lambda, J by lambda, verdicts."""
    console.print(_sums(result))
    console.print(_by_tradeoff(result))
    if result["left_out"]:
        needs = "the outputs of the exits are not in these records"
        console.print(f"left out: {', '.join(result['left_out'])} ({needs})")
    show_verdicts(result, console)
    console.print()


def show_verdicts(result: dict[str, Any], console: Console) -> None:
    """One line each, below the name of the set."""
    words = {True: "[green]PASS[/]", False: "[red]FAIL[/]", None: "[yellow]----[/]"}
    console.print(f"[bold]{result['name']}[/]: mean J of {DEFAULT} on the report split", highlight=False)
    for line in result["verdicts"]:
        console.print(f"  {words[line['passes']]}  {line['text']}", highlight=False, soft_wrap=True)


def _sums(result: dict[str, Any]) -> Table:
    title = "{name}: P={positions} C={heads}, searched on {samples:,} samples, judged on {report_samples:,}, "
    title += "{seeds} seeds, full model {full_quality:.4f}"
    caption = "J: sums over lambda, means over seeds; CPU seconds"
    table = results.table(title.format(**result), ("method", *COLUMNS), caption=caption)
    for label, row in result["methods"].items():
        gap = row["report"] - row["search"]
        table.add_row(label, f"{row['search']:.4f}", f"{row['report']:.4f}",
                      "" if label == DEFAULT else f"{row['difference']:+.4f} ± {row['interval']:.4f}",
                      f"{gap:+.4f}", f"{row['seconds']:.2f}", f"{row['hypervolume']:.4f}",
                      f"{row['exits']:.1f}")  # fmt: skip
    return table


def _by_tradeoff(result: dict[str, Any]) -> Table:
    """Mean J on the report split by lambda; below it the difference to the default search, in 1e-4."""
    table = results.table(
        "J on the report split by lambda, 1e-4: mean, and difference to the default search ± 95 %",
        ("method", *(f"{lam:g}" for lam in result["tradeoffs"])),
        caption="! lower than the default; !! with an interval that excludes 0",
    )
    for label, row in result["methods"].items():
        columns = (row["by_tradeoff"][key] for key in ("report", "difference", "interval"))
        table.add_row(label, *(_cell(label, *values) for values in zip(*columns, strict=True)))
    return table


def _cell(label: str, value: float, difference: float, interval: float) -> str:
    if label == DEFAULT:
        return f"{1e4 * value:.0f}"
    mark = "" if difference >= -ROUNDING else "!" if difference + interval >= 0 else "!!"
    return f"{1e4 * value:.0f}\n{1e4 * difference:+.0f}±{1e4 * interval:.0f}{mark}"
