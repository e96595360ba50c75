"""How sure one can be: intervals for one system, tests for two on the same rows, rows needed to see a difference.

Pure maths: numpy and nothing of ours. Does not live here: what is measured (`metrics.py`), said (`report.py`).

Letters: N rows, B resamples. Every statistic is a function of row weights: `weights_BN` says how often each row counts
in each resample, the answer is one value per resample. A mean, a macro-F1 and an AUC are resampled by the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Weighted = Callable[[np.ndarray], np.ndarray]  # weights_BN -> values_B

Z95 = 1.959963984540054  # the normal quantile of 0.975: two-sided 95 %
Z80 = 0.8416212335729143  # the normal quantile of 0.80: a difference is "visible" if found four times in five
RESAMPLES = 2000
_CELLS = 2_000_000  # weights held at once: 16 MB


# ---------------------------------------------------------------------------------------------------------- one system


def wilson(right: float, n: int) -> tuple[float, float]:
    """95 % interval of a share, `right` of `n` (Wilson 1927). It never leaves [0, 1] and works at 0 and n.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    >>> wilson(0, 300)[0], round(wilson(0, 300)[1], 4)
    (0.0, 0.0126)
    """
    p, z2 = right / n, Z95**2
    centre = p + z2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return (0.0 if right == 0 else low), (1.0 if right == n else high)


def mean_of(values_N: Sequence[float] | np.ndarray) -> Weighted:
    """The mean as a function of row weights.

    >>> mean_of([1.0, 2.0, 6.0])(np.array([[1, 1, 1], [2, 0, 1]]))
    array([3.        , 2.66666667])
    """
    values = np.asarray(values_N, np.float64)
    return lambda weights_BN: weights_BN @ values / weights_BN.sum(axis=1)


def value(of: Weighted, n: int) -> float:
    """The statistic itself: every row counts once."""
    return float(of(np.ones((1, n)))[0])


def bootstrap(of: Weighted, n: int, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile interval over `resamples` draws of n rows with replacement (Efron 1979).

    >>> low, high = bootstrap(mean_of(np.arange(100.0)), 100)
    >>> bool(43 < low < 45 and 54 < high < 56)
    True
    """
    draws = np.concatenate([of(w) for w in _resampled(n, seed, resamples)])
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


# --------------------------------------------------------------------------------------- two systems on the same rows


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p value of McNemar's test: `fixed` rows only the first has right, `broken` only the second.

    Under the null hypothesis each differing row is a fair coin (binomial, p = 1/2).

    >>> mcnemar(6, 0), mcnemar(5, 5), round(mcnemar(715, 52), 6)
    (0.03125, 1.0, 0.0)
    """
    n, fewer = fixed + broken, min(fixed, broken)
    term, total = 1, 0
    for k in range(fewer + 1):
        total += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * total / 2**n)


def share_difference(both: int, fixed: int, broken: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired shares, (fixed - broken) / n.

    Square-and-add of Wilson intervals with the correlation of the pairs (Newcombe 1998, Statistics in Medicine 17:2635,
    method 10; the first line is its worked example).

    >>> [round(x, 4) for x in share_difference(36, 12, 2, 0)]
    [0.0569, 0.3404]
    """
    n = both + fixed + broken + neither
    p1, p2 = (both + fixed) / n, (both + broken) / n
    (low1, high1), (low2, high2) = wilson(both + fixed, n), wilson(both + broken, n)
    phi = _correlation(both, fixed, broken, neither)
    below = (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2
    above = (high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2
    return p1 - p2 - math.sqrt(max(0.0, below)), p1 - p2 + math.sqrt(max(0.0, above))


def _correlation(both: int, fixed: int, broken: int, neither: int) -> float:
    """Newcombe's phi of the 2 x 2 table, corrected towards 0 by half a row."""
    margins = (both + fixed) * (broken + neither) * (both + broken) * (fixed + neither)
    if margins == 0:
        return 0.0
    n = both + fixed + broken + neither
    cross = both * neither - fixed * broken
    corrected = cross if cross < 0 else max(0.0, cross - n / 2)
    return corrected / math.sqrt(margins)


def paired_difference(of: Weighted, n: int) -> float:
    """First system less second. `of` is defined on 2n rows: the first's n answers, then the second's, row by row."""
    ones, none = np.ones((1, n)), np.zeros((1, n))
    return float((of(np.hstack([ones, none])) - of(np.hstack([none, ones])))[0])


def paired_bootstrap(of: Weighted, n: int, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """(low, high, standard error) of `paired_difference`, rows drawn in pairs."""
    draws = []
    for weights in _resampled(n, seed, resamples):
        none = np.zeros_like(weights)
        draws.append(of(np.hstack([weights, none])) - of(np.hstack([none, weights])))
    differences = np.concatenate(draws)
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high), float(differences.std(ddof=1))


def permutation(of: Weighted, n: int, seed: int = 0, rounds: int = RESAMPLES) -> float:
    """Two-sided p value of "the two systems are the same": the two answers of a row may change places (Fisher 1935).

    `of` as for `paired_difference`. The observed arrangement counts as one of the rounds, so p is never 0.
    """
    seen = abs(paired_difference(of, n))
    draw, as_large = np.random.default_rng(seed), 0
    for size in _chunks(rounds, n):
        stays = draw.integers(0, 2, (size, n)).astype(np.float64)
        differences = of(np.hstack([stays, 1 - stays])) - of(np.hstack([1 - stays, stays]))
        as_large += int((np.abs(differences) >= seen - 1e-12).sum())
    return (1 + as_large) / (1 + rounds)


# ----------------------------------------------------------------------------------------------------- how many rows


def smallest_visible(standard_error: float) -> float:
    """The smallest true difference found four times in five at the 5 % level, given the difference's standard error.

    >>> round(smallest_visible(0.02), 3)
    0.056
    """
    return (Z95 + Z80) * standard_error


def rows_needed(difference: float, standard_error: float, n: int) -> int:
    """Rows at which a true `difference` would be found four times in five, from its standard error over n rows.

    >>> rows_needed(0.02, 0.02, 300)
    2355
    """
    return math.ceil(n * (smallest_visible(standard_error) / difference) ** 2)


def share_standard_error(fixed: int, broken: int, n: int) -> float:
    """Standard error of (fixed - broken) / n. With no differing row one is assumed: certainty is not to be had.

    >>> round(share_standard_error(30, 10, 300), 4)
    0.0207
    """
    differing = max(1, fixed + broken) / n
    return math.sqrt((differing - ((fixed - broken) / n) ** 2) / n)


# ------------------------------------------------------------------------------------------------------------ drawing


def _chunks(total: int, n: int) -> Iterator[int]:
    """`total` resamples in portions whose weights fit in memory."""
    most = max(1, _CELLS // n)
    while total > 0:
        yield min(most, total)
        total -= most


def _resampled(n: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Weights of n rows drawn n times with replacement, the same for the same (n, seed)."""
    draw = np.random.default_rng(seed)
    for size in _chunks(resamples, n):
        rows = draw.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(rows.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
