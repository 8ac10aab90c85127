"""P-values of "the mean loss is above the bound": binomial for losses of 0 and 1, betting for fractions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from offramp.guarantees.trinomial import ROUNDING, binomial_pmf

_AIM = 2 * math.log(1 / 0.05)  # stakes are best for a p-value of 0.05, and valid for any


_FIRST_VARIANCE = 0.25  # of a coin; counts as one sample


_LARGEST_STAKE = 0.75  # as a share of the stake that can lose everything


def binomial_p_value(losses: int, samples: int, bound: float) -> float:
    """P(X <= losses) for X binomial: the exact test of "P(loss) >= bound".

    Args:
        losses: how many of the samples lost.
        samples: N; without samples the p-value is 1.
        bound: in [0, 1].
    """
    if losses >= samples or bound <= 0:
        return 1.0
    if bound >= 1:
        return 0.0
    count = np.arange(losses + 1)
    return min(1.0, float(binomial_pmf(count, samples, np.array([bound])).sum()) * ROUNDING)


def betting_p_value(losses: npt.ArrayLike, bound: float) -> float:
    """A betting test of "E[loss] >= bound" for N losses of at most 1 (Waudby-Smith and Ramdas, 2010.09686).

    A gambler who stakes b on a sample multiplies the wealth by 1 + b * (bound - loss), which no stake between
    0 and 1 / (1 - bound) can make grow on average under the null. The stake follows the samples before it:
    sqrt(2 log(1 / 0.05) / (N * their variance)), as in that paper. By Ville's inequality the wealth ever
    reaches 1 / a with probability a at most, so the p-value is 1 over the largest wealth. Samples are taken
    in one fixed random order, so that the order of a data set does not matter.

    Args:
        losses: (N,) values of at most 1; without samples the p-value is 1.
        bound: at most 1.
    """
    values = np.asarray(losses, np.float64)
    if not values.size:
        return 1.0
    if bound >= 1:
        return 0.0 if values.min() < 1 else 1.0
    values = values[np.random.default_rng(0).permutation(values.size)]
    seen = np.arange(2, values.size + 2)
    mean = np.cumsum(values) / seen
    variance = (_FIRST_VARIANCE + np.cumsum((values - mean) ** 2)) / seen
    before = np.concatenate([[_FIRST_VARIANCE], variance[:-1]])
    stake = np.minimum(np.sqrt(_AIM / (values.size * before)), _LARGEST_STAKE / (1 - bound))
    wealth = np.cumsum(np.log1p(stake * (bound - values)))
    return min(1.0, math.exp(-min(float(wealth.max()), 700.0)) * ROUNDING)
