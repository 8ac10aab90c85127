"""Inner loops of the search, as machine code where numba is installed (extra ``fast``).

What ``line_search`` does with NumPy for many rows at once is done here for one row after another, with the
same answers bit for bit: gains and qualities are summed as integers, and what is rounded is computed in the
same order. Letters and terms are those of ``line_search``. Without numba the functions still run, slowly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.uint32]
Stages = npt.NDArray[np.int32]

F = TypeVar("F", bound=Callable[..., Any])

SAME = 1e-11
"""Differences in J below this are rounding of the running sums (N = 1e5 samples of magnitude 1)."""

OFF = -1
NEVER = -(1 << 62)

BEST, OWN, WEIGHTED, FORWARD, BACKWARD = range(5)
"""What ``sweep`` does: descend by best lines, by own lines, by weighted own lines; or sweep once and take
every line, front to back or back to front."""

NO_NUMBA = "OFFRAMP_NO_NUMBA"
"""Environment variable: where it is not empty, the search uses NumPy even if numba is installed."""


class Sorted(NamedTuple):
    """A problem as the kernels take it: the heads of all P positions in one row of H, sorted."""

    first: Ints  # (P + 1,) index of each position's first head, and H
    backbone: Floats  # (P,) cost up to there, over the full model's
    entry: Floats  # (H,) cost of the heads, over the full model's
    # (H, N) the samples, most confident first: with few levels of quality, level * N + sample
    order: Indices
    rank: npt.NDArray[np.int32]  # (H, N) place of each sample in that order
    quality: Floats  # (H, N)
    levels: Floats  # (V,) the values that quality takes; (0,) where they are many
    fits: (
        Bools  # (H, N) whether a threshold fits right after a sample, in that order; (H, 0): after every one
    )
    final: Floats  # (N,) quality of the backbone's output
    unit: float  # steps of the integer sums per unit of J


def available() -> bool:
    """Whether numba is installed, and not switched off by ``NO_NUMBA``."""
    return _installed() and not os.environ.get(NO_NUMBA)


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


@cache
def compiled(function: F) -> F:
    """A function of this module as machine code: made when first used, kept on disk for other processes."""
    import numba

    code = function.__code__
    own = {name: compiled(_HELPERS[name]) for name in code.co_names if name in _HELPERS}
    linked = FunctionType(code, {**function.__globals__, **own}, function.__name__)
    linked.__module__, linked.__qualname__ = function.__module__, function.__qualname__
    return cast(F, numba.njit(cache=True, nogil=True)(linked))


class Scratch(NamedTuple):
    """What one row of a sweep is worked on in."""

    later: Floats  # (P, N) what going on from each position costs a sample
    cost: Floats  # (N,) the same, from the position that a sweep back has come to
    stage: Stages  # (N,) where each sample leaves; P for the backbone's output
    base: Ints  # (N,) what leaving gains, without quality
    gain: Ints  # (V, N) the same with quality, at each of its levels
    present: Ints  # (N,) how often each sample counts; (0,) where quality has levels


def sweep(
    problem: Sorted,
    head: Ints,
    prefix: Ints,
    tradeoff: Floats,
    price: Floats,
    cap: Ints,
    weight: Ints,
    mode: int,
    sweeps: int,
) -> None:
    """Sweep B rows back and forth until no line improves them, in place; at most ``sweeps`` times.

    ``weight`` (N,) is how often each sample counts in the mode ``WEIGHTED``; (0,) elsewhere.
    """
    positions, samples, levels = len(problem.backbone), len(problem.final), len(problem.levels)
    scratch = Scratch(
        np.empty((positions, samples)),
        np.empty(samples),
        np.empty(samples, np.int32),
        np.empty(samples, np.int64),
        np.empty((levels, samples), np.int64),
        np.empty(0 if levels else samples, np.int64),
    )
    for b in range(len(head)):
        finals(problem, tradeoff[b], scratch.cost)
        stages(problem, head[b], prefix[b], scratch.stage, mode < FORWARD)
        if mode == FORWARD:
            for p in range(positions):
                scratch.later[p] = scratch.cost
        for turn in range(sweeps):
            forward = mode == FORWARD or turn % 2 == 1
            settings = tradeoff[b], price[b], cap[b], weight, mode
            if not one_way(problem, head[b], prefix[b], settings, forward, scratch) or mode >= FORWARD:
                break


def one_way(
    problem: Sorted,
    head: Ints,
    prefix: Ints,
    settings: tuple[float, float, int, Ints, int],
    forward: bool,
    scratch: Scratch,
) -> bool:
    """Lines at every position of one row (P,), in place. Returns whether any was taken."""
    lam, price, cap, weight, mode = settings
    positions, moved = len(head), False
    if forward:
        scratch.stage[:] = positions
    else:
        finals(problem, lam, scratch.cost)
    for step in range(positions):
        p = step if forward else positions - 1 - step
        if problem.first[p] == problem.first[p + 1]:
            continue
        if head[p] != OFF or mode == BEST or mode >= FORWARD:
            if not forward:
                scratch.later[p] = scratch.cost
            arrived = gains(problem, p, lam, positions if forward else p, weight, scratch)
            moved |= line(problem, p, head, prefix, (lam, price, cap, mode), arrived, scratch)
        if head[p] != OFF:
            h = problem.first[p] + head[p]
            if forward:
                leave(problem, h, p, prefix[p], scratch.stage)
            else:
                before(problem, h, p, prefix[p], lam, scratch.cost)
    return moved


def finals(problem: Sorted, lam: float, cost: Floats) -> None:
    """Write into ``cost`` (N,) what the backbone's own output costs each sample, in units of J."""
    for i in range(len(cost)):
        cost[i] = (1 - lam) - lam * problem.final[i]


def stages(problem: Sorted, head: Ints, prefix: Ints, stage: Stages, filled: bool) -> None:
    """Write into ``stage`` (N,) where each sample leaves; P where not ``filled``."""
    positions = len(head)
    stage[:] = positions
    if filled:
        for p in range(positions - 1, -1, -1):
            if head[p] != OFF:
                rank, size = problem.rank[problem.first[p] + head[p]], prefix[p]
                for i in range(len(stage)):
                    stage[i] = p if rank[i] < size else stage[i]


def gains(problem: Sorted, p: int, lam: float, least: int, weight: Ints, scratch: Scratch) -> int:
    """Write what each sample gains by leaving at p; 0 where it does not arrive: ``stage`` below ``least``.

    Returns how many arrive.
    """
    later, stage, base = scratch.later[p], scratch.stage, scratch.base
    saved, arrived, none = (1 - lam) * problem.backbone[p], 0, np.int64(0)
    for i in range(len(base)):
        value = np.int64((later[i] - saved) * problem.unit)
        base[i] = value if stage[i] >= least else none
    for i in range(len(base)):
        arrived += int(stage[i] >= least)
    for level in range(len(problem.levels)):
        row, added = scratch.gain[level], np.int64(lam * problem.unit * problem.levels[level])
        for i in range(len(base)):
            row[i] = base[i] + added if stage[i] >= least else none
        if len(weight) > 0:
            row *= weight
    for i in range(len(scratch.present)):
        scratch.present[i] = (weight[i] if len(weight) > 0 else 1) if stage[i] >= least else 0
    return arrived


def line(
    problem: Sorted,
    p: int,
    head: Ints,
    prefix: Ints,
    settings: tuple[float, float, int, int],
    arrived: int,
    scratch: Scratch,
) -> bool:
    """Give one row (P,) the best choice at p, in place, if that lowers J. Returns whether it does."""
    lam, price, cap, mode = settings
    own, samples = head[p], len(scratch.base)
    own_only = mode in (OWN, WEIGHTED)
    found, end, most, now = OFF, 0, 0.0, 0.0
    step = 1 / (problem.unit * samples)
    for c in range(problem.first[p + 1] - problem.first[p]):
        if own_only and c != own:
            continue
        h = problem.first[p] + c
        kept = prefix[p] if c == own else 0
        if len(problem.levels) > 0:
            peak, place, held = peak_by_level(problem, h, scratch.gain.ravel(), kept)
        else:
            peak, place, held = peak_by_value(problem, h, lam * problem.unit, scratch, kept)
        fixed = (1 - lam) * problem.entry[h] * arrived / samples + price
        reached = peak * step - fixed
        if c == own:
            now = held * step - fixed
        if found == OFF or reached > most:
            found, most, end = c, reached, place
    enable = most > SAME or mode == WEIGHTED
    if enable and not own_only:
        enable = np.count_nonzero(head != OFF) - (own != OFF) < cap
    improvement = (most if enable else 0.0) - now
    taken = mode >= FORWARD or improvement > SAME or (not enable and own != OFF)
    if taken:
        head[p] = found if enable else OFF
        prefix[p] = end + 1 if enable else 0
    return bool(taken)


def peak_by_level(problem: Sorted, h: int, gain: Ints, kept: int) -> tuple[int, int, int]:
    """The peak of the running sum along head h, its place, and the sum of the first ``kept`` samples.

    ``gain`` (V * N,) has one row per level of quality.
    """
    order, fits = problem.order[h], problem.fits[h]
    total, peak, held, place = np.int64(0), np.int64(NEVER), np.int64(0), 0
    for begin, stop in ((0, kept), (kept, len(order))):
        if len(fits) > 0:
            for k in range(begin, stop):
                total += gain[order[k]]
                value = total if fits[k] else np.int64(NEVER)  # without a branch: ties come at random
                if value > peak:
                    peak, place = value, k
        else:
            for k in range(begin, stop):
                total += gain[order[k]]
                if total > peak:
                    peak, place = total, k
        if begin == 0:
            held = total
    return int(peak), place, int(held)


def peak_by_value(problem: Sorted, h: int, scale: float, scratch: Scratch, kept: int) -> tuple[int, int, int]:
    """As ``peak_by_level``, of qualities that take many values."""
    order, quality, fits = problem.order[h], problem.quality[h], problem.fits[h]
    total, peak, held, place = np.int64(0), np.int64(NEVER), np.int64(0), 0
    for k in range(len(order)):
        i = order[k]
        total += (scratch.base[i] + np.int64(scale * quality[i])) * scratch.present[i]
        if total > peak and (len(fits) == 0 or fits[k]):
            peak, place = total, k
        if k == kept - 1:
            held = total
    return int(peak), place, int(held)


def leave(problem: Sorted, h: int, p: int, prefix: int, stage: Stages) -> None:
    """Let those of the samples still there leave at p that are in the prefix of head h."""
    positions, rank = len(problem.backbone), problem.rank[h]
    for i in range(len(stage)):
        stage[i] = p if stage[i] == positions and rank[i] < prefix else stage[i]


def before(problem: Sorted, h: int, p: int, prefix: int, lam: float, cost: Floats) -> None:
    """Turn what going on after p costs each sample (N,) into what arriving at p costs it, in place."""
    rank, quality = problem.rank[h], problem.quality[h]
    toll = (1 - lam) * problem.entry[h]
    saved = (1 - lam) * problem.backbone[p]
    for i in range(len(cost)):
        cost[i] = (saved - lam * quality[i] if rank[i] < prefix else cost[i]) + toll


def simulate(problem: Sorted, head: Ints, prefix: Ints, quality: Ints, cost: Floats, leavers: Ints) -> None:
    """Write the sums of quality, in steps of 1 / unit, and of cost (B,) of B rows, and their leavers (B, P).

    Exits that nobody takes are switched off.
    """
    positions, samples, none = len(problem.backbone), len(problem.final), np.int64(0)
    there = np.empty(samples, np.bool_)
    for b in range(len(head)):
        there[:] = True
        left, total, spent = samples, np.int64(0), 0.0
        for p in range(positions):
            leavers[b, p] = 0
            if head[b, p] == OFF:
                continue
            h = problem.first[p] + head[b, p]
            rank, value, size = problem.rank[h], problem.quality[h], prefix[b, p]
            count = 0
            for i in range(samples):
                leaves = there[i] & (rank[i] < size)
                total += np.int64(value[i] * problem.unit) if leaves else none
                count += int(leaves)
                there[i] = there[i] & (rank[i] >= size)
            passed = left if count > 0 else 0
            spent += passed * problem.entry[h] + count * problem.backbone[p]
            if count == 0:
                head[b, p], prefix[b, p] = OFF, 0
            leavers[b, p] = count
            left -= count
        for i in range(samples):
            total += np.int64(problem.final[i] * problem.unit) if there[i] else none
        quality[b], cost[b] = total, spent + left


def without_each(
    problem: Sorted, head: Ints, prefix: Ints, quality: Floats, cost: Floats, lost: Floats, spared: Floats
) -> None:
    """Write quality and cost (N,) of one configuration (P,), and by how much they change without each exit.

    ``lost`` and ``spared`` are (E, N), of the E enabled exits front to back.
    """
    quality[:] = problem.final
    cost[:] = 1.0
    e, nothing = len(lost), 0.0
    for p in range(len(head) - 1, -1, -1):
        if head[p] == OFF:
            continue
        e -= 1
        h, size = problem.first[p] + head[p], prefix[p]
        rank, own, change, more = problem.rank[h], problem.quality[h], lost[e], spared[e]
        spent, entry = problem.backbone[p], problem.entry[h]
        for i in range(len(quality)):
            here, later = own[i], quality[i]
            change[i] = later - here if rank[i] < size else nothing
            quality[i] = here if rank[i] < size else later
        for i in range(len(cost)):
            later = cost[i]
            more[i] = (later - spent if rank[i] < size else nothing) - entry
            cost[i] = (spent if rank[i] < size else later) + entry
    there = np.ones(len(quality), np.bool_)
    for p in range(len(head)):
        if head[p] == OFF:
            continue
        rank, size = problem.rank[problem.first[p] + head[p]], prefix[p]
        change, more = lost[e], spared[e]
        for i in range(len(there)):
            before, spent = change[i], more[i]
            change[i] = before if there[i] else nothing
            more[i] = spent if there[i] else nothing
        for i in range(len(there)):
            there[i] = there[i] & (rank[i] >= size)
        e += 1


_HELPERS = {
    each.__name__: each
    for each in (
        one_way, finals, stages, gains, line, peak_by_level, peak_by_value, leave, before,
    )
}  # fmt: skip
