"""What others do, on the same records and at the same costs. Arrays in, configurations out; no model.

same_threshold      one threshold for all exits
entropy_thresholds  the same, on the entropy of the outputs (BranchyNet, arXiv 1709.01686)
patience            leave when k exits in a row agree (PABEE, arXiv 2006.04152)
single_exit         the best one exit
greedy_grid         front to back, nine thresholds each (earlyon 0.3)
brent_single_pass   front to back, thresholds by bounded Brent search (DyCE, arXiv 2403.01695)
brent_iterative     the best single change until none helps, thresholds by bounded Brent search (the same)

Each minimises J (``offramp.search``) on the records given; the full model is always a candidate. ``evaluate``
takes what they return, with the records themselves; for entropy and patience, which look at something else
than the confidence, with ``entropy_records`` and ``patience_records`` of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np
import numpy.typing as npt

from offramp.common import between, curve
from offramp.core import (
    CostTable,
    ExitConfig,
    ExitRecords,
    check_match,
    check_tradeoffs,
    expected,
    full_quality,
)
from offramp.errors import InputError
from offramp.stepwise import (
    SAME,
    Exits,
    Floats,
    Goal,
    Line,
    brent,
    choices,
    front_to_back,
    iterate,
    simulated,
    summed,
)

Answers = dict[float, ExitConfig]
"""One configuration for each trade-off, with its figures on the records it was chosen on."""

Progress = Callable[[int, int], None]
Lineup = dict[int, int]
"""Which head (index) is enabled at which positions (index, rising)."""
Lineups = Callable[[ExitRecords], list[Lineup]]

GRID = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
"""The nine thresholds that earlyon 0.3 tries on a softmax confidence."""

# ---------------------------------------------------------------------------- one rule for every exit, exact


def same_threshold(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """One threshold for all exits, the best of all there are.

    Enabled is one kind of head wherever it exists, or at each position the head of the best quality.

    Args:
        records: P positions, C heads, N samples to choose on.
        costs: of the same P and C.
        tradeoffs: the lambda values in [0, 1].

    Raises:
        InputError: a trade-off is outside [0, 1], or records and costs do not match.
    """
    return _best_common(records, costs, tradeoffs, _kinds_and_best)


def single_exit(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """One exit only: of all positions, heads and thresholds the best.

    Arguments as for ``same_threshold``.

    Raises:
        InputError: as ``same_threshold``.
    """
    return _best_common(records, costs, tradeoffs, _singles)


def entropy_thresholds(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> Answers:
    """``same_threshold`` on the entropy of each exit's probabilities; to evaluate on ``entropy_records``.

    BranchyNet leaves where the entropy is below a threshold (arXiv 1709.01686).

    Arguments as for ``same_threshold``.

    Raises:
        InputError: as ``same_threshold`` and ``entropy_records``.
    """
    return same_threshold(entropy_records(records), costs, tradeoffs)


def patience(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    *,
    predictions: npt.ArrayLike | None = None,
) -> Answers:
    """Leave when k exits in a row agree, for the best k and kind of head; evaluate on ``patience_records``.

    All exits of the kind are enabled: each has to answer for the next to agree (arXiv
    2006.04152, whose patience is k - 1). The threshold lies below k.

    Arguments as for ``same_threshold`` and ``patience_records``.

    Raises:
        InputError: as these two.
    """
    derived = patience_records(records, predictions)
    return _best_common(derived, costs, tradeoffs, _kinds)


def entropy_records(records: ExitRecords) -> ExitRecords:
    """The same records with the confidence 1 - H / log K, H the entropy of the softmax of K outputs.

    Raises:
        InputError: the records hold no outputs, or one output per exit.
    """
    logits = _logits(records, "entropy_records")
    confidence = np.full(records.confidence.shape, np.nan, np.float32)
    for p, c in np.argwhere(records.exists).tolist():
        confidence[p, c] = _negentropy(logits[p, c].astype(np.float64))
    return replace(records, confidence=confidence)


def _negentropy(logits: Floats) -> Floats:
    """(N, K) outputs to (N,): 1 - H / log K; NaN where an output is not finite."""
    with np.errstate(invalid="ignore"):  # infinite outputs
        shifted = logits - logits.max(axis=1, keepdims=True)
        weight = np.exp(shifted)
        total = weight.sum(axis=1)
        entropy = np.log(total) - (weight * shifted).sum(axis=1) / total
    return np.asarray(np.clip(1 - entropy / math.log(logits.shape[1]), 0, 1))


def patience_records(records: ExitRecords, predictions: npt.ArrayLike | None = None) -> ExitRecords:
    """The same records with the confidence "so many exits of this kind in a row agree, this one included".

    Args:
        records: P positions, C heads, N samples.
        predictions: (P, C, N) the class that each exit answers; by default from the outputs in the records.

    Returns:
        Records whose confidence (P, C, N) counts 1, 2, ...; -inf where it was not finite: such an answer
        neither leaves nor agrees.

    Raises:
        InputError: neither predictions nor outputs, or predictions of another shape.
    """
    if predictions is None:
        classes = _logits(records, "patience_records", " or give predictions (P, C, N)").argmax(axis=3)
    else:
        classes = np.asarray(predictions)
    if classes.shape != records.confidence.shape:
        raise InputError(
            f"patience_records(predictions=...): expected shape {records.confidence.shape}, "
            f"got {classes.shape}; give one class for each position, head and sample"
        )
    count = np.full(records.confidence.shape, -np.inf, np.float32)
    for lineup in _kinds(records):
        before, run = None, np.zeros(records.samples, np.float32)
        for p, c in lineup.items():
            agrees = np.isfinite(run) & (classes[p, c] == classes[p if before is None else before, c])
            run = np.where(agrees, run, 0) + np.float32(1)
            run = np.where(np.isfinite(records.confidence[p, c]), run, np.float32(-np.inf))
            count[p, c], before = run, p
    return replace(records, confidence=count)


def _logits(records: ExitRecords, asked: str, otherwise: str = "") -> npt.NDArray[np.float32]:
    if records.logits is None or records.logits.shape[-1] < 2:
        got = "none" if records.logits is None else "a single one"
        raise InputError(
            f"{asked}: expected records with at least two outputs per exit, got {got}; "
            f"record the outputs of a classifier with keep_logits=True{otherwise}"
        )
    return records.logits


def _kinds(records: ExitRecords) -> list[Lineup]:
    """Each kind of head wherever it exists."""
    found = [np.flatnonzero(there).tolist() for there in records.exists.T]
    return [dict.fromkeys(places, c) for c, places in enumerate(found) if places]


def _kinds_and_best(records: ExitRecords) -> list[Lineup]:
    """The same, and at each position the head of the best mean quality."""
    mean = np.where(records.exists, records.quality.mean(axis=2, dtype=np.float64), -1.0)
    places = np.flatnonzero(records.exists.any(axis=1)).tolist()
    return [*_kinds(records), *([{p: int(mean[p].argmax()) for p in places}] if places else [])]


def _singles(records: ExitRecords) -> list[Lineup]:
    """Each exit on its own."""
    return [{p: c} for p, c in np.argwhere(records.exists).tolist()]


def _best_common(
    records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float], lineups: Lineups
) -> Answers:
    """For each trade-off the line-up and the common threshold with the lowest J."""
    lambdas = _check(records, costs, tradeoffs)
    best: dict[float, tuple[float, Exits]] = {lam: (1 - lam - SAME, ()) for lam in lambdas}
    for lineup in lineups(records):
        values, drop, cost = _curve(records, costs, lineup)
        for lam in lambdas if drop.size else ():
            objective = lam * drop + (1 - lam) * cost
            i = int(objective.argmin())
            if objective[i] < best[lam][0]:
                setting = {p: (c, between(values[i], values[i + 1])) for p, c in lineup.items()}
                best[lam] = float(objective[i]), choices(records, setting)
    return _answers(records, costs, {lam: found for lam, (_, found) in best.items()})


def _curve(
    records: ExitRecords, costs: CostTable, lineup: Lineup
) -> tuple[npt.NDArray[np.float32], Floats, Floats]:
    """Thresholds (T + 1,), quality lost (T,) and cost (T,), both over the full model's: ``common.curve``."""
    places, heads = np.array(list(lineup)), np.array(list(lineup.values()))
    quality = np.vstack([records.quality[places, heads], records.final_quality]).astype(np.float64)
    paid = np.cumsum(costs.heads[places, heads])
    cost = np.append(costs.backbone[places], costs.full) + np.append(paid, paid[-1])
    values, reached, spent = curve(records.confidence[places, heads], quality, cost)
    full = full_quality(records)
    return values, (full - reached) / (full or 1.0), spent / costs.full


# --------------------------------------------------------------------------- one threshold for each exit


def greedy_grid(
    records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float], *, grid: Sequence[float] = GRID
) -> Answers:
    """Positions front to back; at each the best head and threshold of a grid, or none; never revisited.

    While a position is decided, all later exits are off.

    Args:
        records: as for ``same_threshold``.
        costs: likewise.
        tradeoffs: likewise.
        grid: the thresholds tried.

    Raises:
        InputError: as ``same_threshold``, or the grid is empty or holds something else than numbers.
    """
    try:
        values = [float(np.float32(value)) for value in grid]
    except (TypeError, ValueError):
        values = []
    if not values or any(map(math.isnan, values)):
        raise InputError(
            f"greedy_grid(grid=...): expected at least one threshold, all numbers, got {grid!r}; "
            "leave it out for the usual nine"
        )

    def pick(line: Line) -> float:
        return max(values, key=line.fall)

    return _each(records, costs, tradeoffs, lambda goal: front_to_back(goal, pick))


def brent_single_pass(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    *,
    progress: Progress | None = None,
) -> Answers:
    """Positions front to back, each threshold by bounded Brent search; never revisited.

    The one-pass search of DyCE (arXiv 2403.01695): every head is tried, with all later exits off.

    Args:
        records: as for ``same_threshold``.
        costs: likewise.
        tradeoffs: likewise.
        progress: called with (trade-offs done, trade-offs in all).

    Raises:
        InputError: as ``same_threshold``.
        MissingExtraError: scipy is not installed.
    """
    pick = brent()
    return _each(records, costs, tradeoffs, lambda goal: front_to_back(goal, pick), progress)


def brent_iterative(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    *,
    rounds: int = 1000,
    incremental: bool = False,
    progress: Progress | None = None,
) -> Answers:
    """Of all single changes the best one, again and again, until none helps; thresholds by Brent search.

    A round tries every head at every position, each with its own bounded Brent search, and switching each
    exit off; about 30 thresholds a search, P * C searches a round, some ten to thirty rounds.

    Args:
        records: as for ``same_threshold``.
        costs: likewise.
        tradeoffs: likewise.
        rounds: at most so many changes; the released code stops at 1000.
        incremental: False simulates the whole configuration at each threshold, in time P * N like the
            released code. True computes what a sample meets before and after the position once for each
            round: the same searches up to rounding, in time N for each threshold.
        progress: called with (trade-offs done, trade-offs in all).

    Raises:
        InputError: as ``same_threshold``, or ``rounds`` is not a whole number of at least 0.
        MissingExtraError: scipy is not installed.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, Integral) or rounds < 0:
        raise InputError(
            f"brent_iterative(rounds={rounds!r}): expected a whole number of at least 0; "
            "leave it out for 1000"
        )
    pick, lines = brent(), summed if incremental else simulated
    return _each(records, costs, tradeoffs, lambda goal: iterate(goal, pick, int(rounds), lines), progress)


# -------------------------------------------------------------------------------------------------- common


def _each(
    records: ExitRecords,
    costs: CostTable,
    tradeoffs: Iterable[float],
    solve: Callable[[Goal], Exits],
    progress: Progress | None = None,
) -> Answers:
    lambdas, found = _check(records, costs, tradeoffs), {}
    for done, lam in enumerate(lambdas, start=1):
        found[lam] = solve(Goal.of(records, costs, lam))
        if progress:
            progress(done, len(lambdas))
    return _answers(records, costs, found)


def _answers(records: ExitRecords, costs: CostTable, found: dict[float, Exits]) -> Answers:
    figures = {chosen: expected(records, costs, ExitConfig(chosen)) for chosen in set(found.values())}
    return {lam: ExitConfig(chosen, lam, figures[chosen]) for lam, chosen in found.items()}


def _check(records: ExitRecords, costs: CostTable, tradeoffs: Iterable[float]) -> list[float]:
    """The distinct trade-offs, in their order."""
    check_match(records, costs)
    return list(dict.fromkeys(check_tradeoffs(tradeoffs, "tradeoffs")))
