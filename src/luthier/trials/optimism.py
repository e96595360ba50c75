"""How much the best of many scores flatters itself: it was chosen because its noise was kind.

Pure maths: numpy only. Does not live here: where the scores come from (`rows.py`), what is said of them (`board.py`).

Letters: T trials, N validation rows, B resamples. A score is `values.sum() / sizes.sum()` over rows: of a loss the
rows' negative log-likelihoods and their trained tokens, of a metric the rows' values and ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 1000
FEWEST_ROWS = 20  # with fewer, what is left out of a resample is too little to score anybody on
_CELLS = 2_000_000  # weights held at once: 16 MB
_NORMAL = NormalDist()
_Z95 = _NORMAL.inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Optimism:
    """`seen`: the best score of all trials. `expected`: what such a winner scores on rows that did not choose it.

    `amount` is by how much `seen` flatters, never below 0, in the score's own unit.
    """

    seen: float
    expected: float
    amount: float


def optimism(
    values_TN: np.ndarray, sizes_N: np.ndarray, lower_is_better: bool = True, seed: int = 0, resamples: int = RESAMPLES
) -> Optimism | None:
    """What choosing the best of T trials on N rows adds to its score; None with fewer than `FEWEST_ROWS` rows.

    Bootstrap bias-corrected selection (Tsamardinos, Greasidou and Borboudakis 2018, Machine Learning 107:1895): rows
    are drawn again with replacement, the best trial on the drawn rows is scored on the rows that were not drawn, and
    the mean of that is compared with the best score seen. No row both chooses and judges, which is what makes the
    score seen too good (Cawley and Talbot 2010, JMLR 11:2079). The correction by folds of Tibshirani and Tibshirani
    (2009, Annals of Applied Statistics 3:822) answers the same question for whole cross-validations; on one validation
    split its folds are too small and it overstates. All trials' mean over the same rows is taken off each resample (a
    control variate), so that rows that are hard for everybody add no noise.

    In simulations it is right where trials do not differ, and up to a third too much where they differ by about their
    noise: fewer rows choose in a resample than chose the winner. Rows are taken as independent; a choice among several
    evaluations of one trial is not part of it.
    """
    count, n = values_TN.shape
    sign = 1.0 if lower_is_better else -1.0
    whole_T = values_TN.sum(axis=1) / sizes_N.sum()
    seen = float(sign * (sign * whole_T).min())
    if n < FEWEST_ROWS:
        return None
    if count == 1:
        return Optimism(seen, seen, 0.0)
    draw, gaps = np.random.default_rng(seed), []
    size = max(1, min(resamples, _CELLS // n))
    for start in range(0, resamples, size):
        weights_BN = _drawn(draw, min(size, resamples - start), n)
        drawn_BT = weights_BN @ values_TN.T / (weights_BN @ sizes_N)[:, None]
        left_BN = (weights_BN == 0).astype(np.float64)
        weight_B = left_BN @ sizes_N
        some_B = weight_B > 0
        left_BT = (left_BN[some_B] @ values_TN.T) / weight_B[some_B, None]
        chosen_B = (sign * drawn_BT[some_B]).argmin(axis=1)
        fair_B = left_BT[np.arange(len(chosen_B)), chosen_B] - left_BT.mean(axis=1)
        gaps.append(sign * (fair_B + whole_T.mean() - seen))
    amount = max(0.0, float(np.concatenate(gaps).mean()))
    return Optimism(seen, seen + sign * amount, amount)


def at_most(count: int, noise: float) -> float:
    """The optimism of `count` trials where only the standard error `noise` of a score is known: its upper end.

    The expected best of so many independent normal draws (Tippett 1925): trials that do not differ at all, scored on
    rows of their own. Trials that differ, or share their rows, flatter the best by less.

    >>> round(at_most(1, 0.02), 4), round(at_most(2, 1.0), 4), round(at_most(16, 1.0), 3)
    (0.0, 0.5642, 1.766)
    """
    places = np.linspace(-9.0, 9.0, 3601)
    below = np.array([_NORMAL.cdf(x) for x in places])
    density = np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi)
    return abs(noise * float((places * count * density * below ** (count - 1)).sum() * (places[1] - places[0])))


def interval(values_N: np.ndarray, sizes_N: np.ndarray) -> tuple[float, float]:
    """95 % interval of values.sum() / sizes.sum() over N >= 2 independent rows.

    A ratio of two sums, by its linear part (Cochran 1977, Sampling Techniques, 6.3). For shares of rows that are right
    or wrong use Wilson's interval instead.

    >>> low, high = interval(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4))
    >>> round(low, 2), round(high, 2)
    (1.23, 3.77)
    """
    ratio, half = float(values_N.sum() / sizes_N.sum()), _Z95 * standard_error(values_N, sizes_N)
    return ratio - half, ratio + half


def standard_error(values_N: np.ndarray, sizes_N: np.ndarray) -> float:
    """Of values.sum() / sizes.sum() over N >= 2 independent rows; see `interval`."""
    n, off_N = len(values_N), values_N - values_N.sum() / sizes_N.sum() * sizes_N
    return math.sqrt(float((off_N**2).sum()) * n / (n - 1)) / float(sizes_N.sum())


def _drawn(draw: np.random.Generator, count: int, n: int) -> np.ndarray:
    """weights_BN: how often each of n rows stands in each of `count` draws with replacement."""
    places = draw.integers(0, n, (count, n)) + np.arange(count)[:, None] * n
    return np.bincount(places.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
