"""An exact unconditional test for paired differences that are -1, 0 or 1: the drop of quality with labels."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


Ints = npt.NDArray[np.int64]


OUTSIDE = 1e-4
"""How often the plausible laws of ``trinomial_p_value`` may leave out the true one; part of its p-value."""


_STEP = 0.08  # between nodes of the nuisance, in standard deviations; adds under 0.5 % to a p-value of 0.05


_SMALLEST = 1e-7  # expected number of gains, or of ties, below which a law counts as having none


ROUNDING = 1 + 1e-7


_CELLS = 1_000_000  # of one table of probabilities; bounds the memory for very many samples


def trinomial_p_value(losses: int, gains: int, samples: int, bound: float) -> float:
    """The exact unconditional test of "E[d] >= bound" for N differences d in {-1, 0, 1}.

    Other samples speak as clearly against the null as those seen if their score statistic does:
    z = D / sqrt(V) with M = losses + gains, D = bound * N - (losses - gains), and V the variance at the
    null's best fit, (M + sqrt(M^2 + 4 * bound * N * D)) / 2 (Tango 1998, Stat. Med. 17, for small bounds).

    Their probability P is largest for E[d] = bound, where it depends on m = P(d != 0) alone. The p-value is
    its maximum over all m that M does not rule out, plus the chance ``OUTSIDE`` that M rules out the true one
    (Berger and Boos 1994, JASA 89). The maximum is bounded, not searched: between two nodes h apart P is at
    most what it is at the higher end plus h^2 / 8 * max|P''|, and |P''| <= sqrt(2 P) * N * I(m), with I the
    Fisher information of one sample along the boundary. (P'' is the covariance of "as clear as seen" with
    the sum of u_i * u_j over i != j, where u are the scores; that sum has variance 2 N (N - 1) I^2.)

    Args:
        losses: number of d = 1.
        gains: number of d = -1.
        samples: N; without samples the p-value is 1.
        bound: in [0, 1].
    """
    if losses - gains >= bound * samples or bound >= 1:
        return 1.0 if bound < 1 or losses >= samples else 0.0
    low, high = _plausible(losses + gains, samples, math.log(2 / OUTSIDE))
    nodes, information = _nodes(low, high, samples, bound)
    if nodes.size < 2:  # a bound of nearly 1
        return 1.0
    most = min(samples, int(samples * nodes[-1] + 7 * math.sqrt(samples * nodes[-1]) + 20))
    largest = _largest(losses, gains, samples, bound, most)
    parts = np.array_split(nodes, nodes.size * most // _CELLS + 1)
    reached = np.concatenate([_probability(part, largest, samples, bound) for part in parts])
    gap = np.diff(nodes) ** 2 * np.maximum(information[:-1], information[1:]) * (math.sqrt(2) / 8)
    ends = np.maximum(reached[:-1], reached[1:])
    worst = float(((gap + np.sqrt(gap**2 + 4 * ends)) ** 2 / 4).max())
    return min(1.0, worst * ROUNDING + 3 * _SMALLEST + OUTSIDE)


def _largest(losses: int, gains: int, samples: int, bound: float, most: int) -> Ints:
    """(most+1,) for each M = losses + gains: the most losses that speak as clearly as those seen, or -1.

    With v = z^2 / D the score statistic z is reached where bound * N * v^3 + M * v^2 = z^2: Newton's method
    from above, where it falls to the root. D grows with M, so from one M to the next the result rises by 1 at
    most.
    """
    null, seen, differing = bound * samples, losses + gains, np.arange(most + 1)
    less = null - (losses - gains)
    squared = less**2 / ((seen + math.sqrt(seen**2 + 4 * null * less)) / 2)
    if null > 0:
        v = np.minimum(np.cbrt(squared / null), np.sqrt(squared / np.maximum(differing, 1e-9)))
        for _ in range(8):
            slope = 3 * null * v**2 + 2 * differing * v
            v = v - (null * v**3 + differing * v**2 - squared) / slope
        needed = squared / v
    else:
        needed = np.sqrt(squared * np.maximum(differing, 1))
    border = np.floor((differing + null - needed) / 2 + 1e-9).astype(np.int64)
    border[seen] = max(border[seen], losses)  # what was seen belongs to the set, however it rounds
    return np.asarray(np.maximum.accumulate(np.clip(border, -1, differing)))


def _probability(nodes: Floats, largest: Ints, samples: int, bound: float) -> Floats:
    """(G,) the probability of the set of samples at every node; what lies beyond it counts as inside."""
    differing = np.arange(largest.size)
    share = (1 + bound / nodes) / 2  # of losses among the samples that differ
    weights = binomial_pmf(differing, samples, nodes)  # (G, most+1)
    grows = np.diff(largest) > 0
    at = np.where(grows, largest[:-1] + 1, largest[:-1])
    step = np.where(grows, (1 - share)[:, None], -share[:, None]) * _at_border(at, differing[:-1], share)
    start = np.full((nodes.size, 1), float(largest[0] >= 0))
    inside = np.cumsum(np.concatenate([start, step], axis=1), axis=1)  # P(losses <= largest[M] | M)
    beyond = np.maximum(1 - weights.sum(axis=1), 0)
    return np.asarray(np.maximum((weights * inside).sum(axis=1), 0) + beyond)


def _at_border(count: Ints, trials: Ints, share: Floats) -> Floats:
    """(G, K) binomial probabilities of ``count[k]`` in ``trials[k]``; 0 where that cannot be."""
    possible = (count >= 0) & (count <= trials)
    inner = np.where(possible, count, 0)
    fact = _log_factorials(int(trials.max(initial=0)))
    choose = fact[trials] - fact[inner] - fact[trials - inner]
    up, down = np.log(share)[:, None], np.log(np.maximum(1 - share, 1e-300))[:, None]
    return np.asarray(np.where(possible, np.exp(choose + inner * up + (trials - inner) * down), 0.0))


def binomial_pmf(count: Ints, samples: int, chance: Floats) -> Floats:
    """(G, K) binomial probabilities of ``count`` (K,) among ``samples``, for each ``chance`` (G,)."""
    fact = _log_factorials(samples)
    choose = fact[samples] - fact[count] - fact[samples - count]
    up, down = np.log(chance)[:, None], np.log1p(-chance)[:, None]
    return np.asarray(np.exp(choose + count * up + (samples - count) * down))


def _nodes(low: float, high: float, samples: int, bound: float) -> tuple[Floats, Floats]:
    """Nodes of m from ``low``, or the end of the boundary, to ``high``; N times the information there.

    Beyond the last possible node, where a tie is expected ``_SMALLEST`` times in N samples, the law changes
    by no more than that. Towards it each step halves what is left at most: the information has no bound.
    """
    last = 1 - _SMALLEST / samples
    nodes = [max(low, bound + 2 * _SMALLEST / samples)]
    information = [_information(nodes[0], samples, bound)]
    while nodes[-1] < last and (len(nodes) < 2 or nodes[-1] < high):
        further = nodes[-1] + _STEP / math.sqrt(information[-1])
        nodes.append(min(further, (1 + nodes[-1]) / 2, last))
        information.append(_information(nodes[-1], samples, bound))
    return np.array(nodes), np.array(information)


def _information(m: float, samples: int, bound: float) -> float:
    return samples * (1 / (2 * (m + bound)) + 1 / (2 * (m - bound)) + 1 / (1 - m))


def _plausible(count: int, samples: int, limit: float) -> tuple[float, float]:
    """All chances whose Chernoff bound on ``count`` of ``samples`` is at least exp(-limit): an interval."""
    share = count / samples

    def end(outside: float) -> float:
        inside = share
        for _ in range(50):
            middle = (outside + inside) / 2
            if samples * _divergence(share, middle) <= limit:
                inside = middle
            else:
                outside = middle
        return outside

    return end(0.0), end(1.0)


def _divergence(share: float, chance: float) -> float:
    """Kullback-Leibler divergence of two coins, in nats; ``chance`` is neither 0 nor 1."""
    heads = share * math.log(share / chance) if share > 0 else 0.0
    tails = (1 - share) * math.log((1 - share) / (1 - chance)) if share < 1 else 0.0
    return heads + tails


@lru_cache(maxsize=16)
def _log_factorials(largest: int) -> Floats:
    """(largest+1,) log(n!), by Stirling's series where that is exact to double precision."""
    n = np.arange(largest + 1, dtype=np.float64)
    x = np.maximum(n, 15) + 1
    series = 1 / (12 * x) - 1 / (360 * x**3) + 1 / (1260 * x**5) - 1 / (1680 * x**7)
    table = (x - 0.5) * np.log(x) - x + 0.5 * math.log(2 * math.pi) + series
    few = min(largest + 1, 16)
    table[:few] = [math.lgamma(i + 1) for i in range(few)]
    table.setflags(write=False)
    return np.asarray(table)
