"""Guarantees: which configuration holds a bound on new samples, with probability at least 1 - delta.

    expensive ── p <= delta ──▶ cheaper ── p <= delta ──▶ cheaper ── p > delta: stop
                                        the answer ▲

Fixed-sequence testing (Learn then Test, arXiv 2110.01052; for early exits: Fast yet Safe, arXiv 2405.20915).
The order is the frontier's and the tests are chosen by the kind of data, both before the samples are looked
at: no correction for the number of configurations is due.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from offramp.core import (
    Certificate,
    CostTable,
    ExitConfig,
    ExitRecords,
    Frontier,
    Guarantee,
    check_arguments,
    check_match,
    is_number,
    simulate,
)
from offramp.errors import InputError
from offramp.guarantees.p_values import betting_p_value, binomial_p_value
from offramp.guarantees.risks import Answers, Risk, checked_losses, drop, is_integral
from offramp.guarantees.trinomial import trinomial_p_value

BINOMIAL, TRINOMIAL, BETTING = "exact binomial test", "exact trinomial test", "betting test"
DIFFERING = "share of answers that differ from the full model's"

_STARTS = 4  # where a sparse risk is required for


def certify(
    frontier: Frontier,
    records: ExitRecords,
    costs: CostTable,
    *,
    max_drop: float | None = None,
    delta: float = 0.05,
    risks: Sequence[Risk] = (),
) -> ExitConfig | None:
    """The cheapest configuration that provably keeps every bound on new samples, or None.

    With probability at least 1 - delta over the draw of the records, the answer (if there is one) keeps all
    bounds on new samples of the same distribution. For any distribution and any number of samples.

    Configurations are tested from the most expensive to the cheapest, each at level delta, until one fails. A
    configuration passes if every bound's p-value is at most the level, so several bounds hold jointly. Few
    samples may leave early under the most expensive configurations, too few to show anything about them.
    Where a risk is ``sparse`` in this way, delta is therefore split among four starts, evenly spread over the
    frontier, and from each the sequence goes on at the sum of what has not failed since (a fallback
    procedure; Bretz et al. 2009, doi 10.1002/sim.3495).

    Args:
        frontier: searched on other samples. Its order is the order of the tests.
        records: N independent samples, neither trained nor searched on, nor used to choose the arguments.
        costs: of the same network.
        max_drop: bound on the mean quality lost against the full model, in [0, 1); 0.005 is half a point.
            With records of agreement that is the share of answers that differ from the full model's.
        delta: the probability of being wrong, in (0, 1). A trinomial p-value is never below
            ``offramp.guarantees.trinomial.OUTSIDE``.
        risks: further bounds, such as ``missed_detection`` and ``early_leaver_error``.

    Returns:
        The configuration with its ``certificate``. None where no configuration with exits passes: then only
        the full model is known to lose nothing, and that needs no certificate.

    Raises:
        InputError: nothing to bound, an argument out of range, losses not as a risk says, or frontier,
            records and costs are not of the same network.
    """
    agreement = _check(frontier, records, costs, delta)
    required = _required(max_drop, risks, agreement)
    integral = is_integral(records.quality[records.exists]) and is_integral(records.final_quality)
    kind = records.quality_kind or "unknown"
    candidates = [config for config in reversed(frontier) if config.choices]
    found, level = None, 0.0
    starts = min(_STARTS if any(risk.sparse for risk in required) else 1, len(candidates))
    fresh = {start * len(candidates) // starts for start in range(starts)}
    for i, config in enumerate(candidates):
        level += delta / starts if i in fresh else 0.0
        if level == 0:
            continue
        proven = _proven(required, answers_under(records, config), integral, level)
        if proven:
            found = replace(config, certificate=Certificate(delta, records.samples, kind, proven))
        else:
            level = 0.0
    return found


def samples_needed(
    frontier: Frontier, records: ExitRecords, costs: CostTable, *, max_drop: float, delta: float = 0.05
) -> int | None:
    """Roughly how many samples it takes before ``certify`` has an answer, judged by these records.

    The first configuration to pass is the most expensive one. With E the mean of its squared differences, z
    the normal quantile of delta and d its drop, that takes about max(E, max_drop) * (z / (max_drop - d))^2
    samples, and log(1 / delta) / max_drop if not one answer differs.

    Returns:
        The number, or None where it has no exits, loses ``max_drop`` or more here, or ``max_drop`` is 0.

    Raises:
        InputError: what ``certify`` refuses too.
    """
    agreement = _check(frontier, records, costs, delta)
    [risk] = _required(max_drop, (), agreement)
    first = next((config for config in reversed(frontier) if config.choices), None)
    if first is None or risk.bound == 0:
        return None
    lost = checked_losses(risk, answers_under(records, first), False)
    room = risk.bound - float(lost.mean())
    if room <= 0:
        return None
    spread = max(float((lost**2).mean()), risk.bound)
    z = NormalDist().inv_cdf(1 - delta)
    return math.ceil(max(spread * (z / room) ** 2, -math.log(delta) / risk.bound))


def answers_under(records: ExitRecords, config: ExitConfig) -> Answers:
    """What every sample gets under a configuration; InputError where it is not of the same network."""
    ran = simulate(records, config)
    full = records.final_quality.astype(np.float64)
    return Answers(ran.quality, full, ran.position < len(records.positions))


def _proven(risks: Sequence[Risk], answers: Answers, integral: bool, level: float) -> tuple[Guarantee, ...]:
    """The guarantees, if every risk's p-value is at most the level; else none."""
    proven: list[Guarantee] = []
    for risk in risks:
        exact = integral and not risk.fractional
        losses = checked_losses(risk, answers, exact)
        lost, gained, samples = int((losses == 1).sum()), int((losses == -1).sum()), losses.size
        if not exact:  # the test is chosen by the kind of data, never by what it gives
            test, p_value = BETTING, betting_p_value(losses, risk.bound)
        elif risk.signed:
            test, p_value = TRINOMIAL, trinomial_p_value(lost, gained, samples, risk.bound)
        else:
            test, p_value = BINOMIAL, binomial_p_value(lost, samples, risk.bound)
        if not samples or p_value > level:
            return ()
        proven.append(
            Guarantee(
                risk=risk.name,
                bound=risk.bound,
                samples=samples,
                observed=float(losses.mean()),
                test=test,
                p_value=p_value,
            )
        )
    return tuple(proven)


def _required(max_drop: float | None, risks: Sequence[Risk], agreement: bool) -> list[Risk]:
    if isinstance(risks, Risk) or not all(isinstance(risk, Risk) for risk in risks):
        raise InputError(f"certify(risks=...): expected a list of risks, got {risks!r}")
    if max_drop is None and not risks:
        raise InputError("certify(): expected a bound, got none; give max_drop=0.01 or risks=[...]")
    if max_drop is None:
        return list(risks)
    own = drop(max_drop)
    # the full model agrees with itself: its quality is 1 and a difference is never negative
    return [replace(own, name=DIFFERING, signed=False) if agreement else own, *risks]


def _check(frontier: Frontier, records: ExitRecords, costs: CostTable, delta: float) -> bool:
    """Whether quality is agreement, once the arguments are what they should be."""
    if not isinstance(frontier, (Frontier, ExitRecords, CostTable)):
        raise InputError(f"certify(): expected a Frontier, got a {type(frontier).__name__}; search for one")
    check_arguments(
        "certify",
        {"frontier": (frontier, Frontier), "records": (records, ExitRecords), "costs": (costs, CostTable)},
    )
    check_match(records, costs, "certify")
    if not isinstance(delta, (int, float)) or not is_number(delta) or not 0 < delta < 1:
        raise InputError(f"certify(delta={delta!r}): expected a number between 0 and 1, such as 0.05")
    agreement = records.quality_kind == "agreement"
    if agreement and not (records.final_quality == 1).all():
        raise InputError(
            "records of agreement: expected the full model to agree with itself on every sample, got "
            f"a mean of {records.final_quality.mean():g}; record again, or leave out quality_kind"
        )
    return agreement
