"""How sure one can be: intervals for one system, tests for two on the same rows, rows needed to see a difference.

Pure maths: numpy and nothing of ours. Does not live here: what is measured (`metrics.py`), said (`report.py`).

Letters: N rows, G groups, B resamples, S seeds. Every statistic is a function of row weights: `weights_BN` says how
often each row counts in each resample, the answer is one value per resample. A mean, a macro-F1 and an AUC are
resampled by the same lines. Rows that share a context are no independent witnesses: where `groups_N` names each row's
group (`number_groups`), whole groups are drawn and exchanged, never single rows. docs/concepts/verdict.md has it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Weighted = Callable[[np.ndarray], np.ndarray]  # weights_BN -> values_B

Z95 = 1.959963984540054  # the normal quantile of 0.975: two-sided 95 %
Z80 = 0.8416212335729143  # the normal quantile of 0.80: a difference is "visible" if found four times in five
RESAMPLES = 2000
JACKKNIFE = 400  # parts of the rows that are left out in turn, at most
_NORMAL = NormalDist()
_T975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)  # Student's t for 1 to 5 degrees of freedom
_CELLS = 2_000_000  # weights held at once: 16 MB


# ---------------------------------------------------------------------------------------------------------- one system


def wilson(right: float, n: float) -> tuple[float, float]:
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


def number_groups(names: Sequence[Hashable]) -> np.ndarray | None:
    """groups_N: each row's group as a number from 0; None where no two rows, or all of them, are of one group.

    >>> number_groups(["b", "a", "b"]), number_groups(["a", "b"]), number_groups(["a", "a"])
    (array([0, 1, 0]), None, None)
    """
    place: dict[Hashable, int] = {}
    numbers = [place.setdefault(name, len(place)) for name in names]
    return np.array(numbers) if 1 < len(place) < len(numbers) else None


def bootstrap(
    of: Weighted, n: int, seed: int = 0, resamples: int = RESAMPLES, groups_N: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % interval from `resamples` draws of n rows (or of all groups) with replacement.

    Bias-corrected and accelerated (BCa; Efron 1987, JASA 82:171), at the quantiles that make the percentile interval of
    a normal sample Student's t (Hesterberg 2015, American Statistician 69:371): right for skewed and small samples.

    >>> low, high = bootstrap(mean_of(np.arange(100.0)), 100)
    >>> bool(43 < low < 45 and 54 < high < 56)
    True
    """
    low, high, _ = _bootstrapped(of, n, seed, resamples, groups_N)
    return low, high


def _bootstrapped(
    of: Weighted, n: int, seed: int, resamples: int, groups_N: np.ndarray | None
) -> tuple[float, float, float]:
    """(low, high, standard error)."""
    draws_B = np.concatenate([of(w) for w in _resampled(n, seed, resamples, groups_N)])
    units = n if groups_N is None else int(groups_N.max()) + 1
    error, whole = float(draws_B.std(ddof=1)), value(of, n)
    if units < 2 or error < 1e-12:
        return min(whole, float(draws_B.min())), max(whole, float(draws_B.max())), 0.0
    below = float((draws_B < whole).mean() + (draws_B == whole).mean() / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    pulls_U = of(_left_out(n, groups_N))
    pulls_U = pulls_U.mean() - pulls_U
    spread = float((pulls_U**2).sum())
    skew = float((pulls_U**3).sum()) / (6 * spread**1.5) if spread else 0.0
    z = math.sqrt(units / (units - 1)) * student(units - 1)
    ends = [bias + (bias + side) / max(1 - skew * (bias + side), 0.01) for side in (-z, z)]
    low, high = np.quantile(draws_B, [_NORMAL.cdf(end) for end in ends])
    return float(low), float(high), error


def _left_out(n: int, groups_N: np.ndarray | None) -> np.ndarray:
    """Weights that leave out one row, or one group, in turn; of many rows or groups one of `JACKKNIFE` parts."""
    parts_N = (np.arange(n) if groups_N is None else groups_N) % JACKKNIFE
    return (parts_N[None, :] != np.arange(parts_N.max() + 1)[:, None]).astype(np.float64)


def pseudo_values(of: Weighted, n: int, groups_N: np.ndarray | None = None) -> np.ndarray:
    """values_U whose mean stands for the statistic and whose spread for its noise (Tukey 1958): one for each row, group
    or part left out. Of a mean over rows they are the rows' own values."""
    without_U = of(_left_out(n, groups_N))
    return len(without_U) * value(of, n) - (len(without_U) - 1) * without_U


def student(freedom: int) -> float:
    """The 0.975 quantile of Student's t with `freedom` >= 1 degrees of freedom.

    Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5), a table up to 5.

    >>> [round(student(df), 3) for df in (2, 9, 39)]
    [4.303, 2.262, 2.023]
    """
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z, v = Z95, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, 1))


def effective_rows(values_N: np.ndarray, groups_N: np.ndarray) -> float:
    """How many independent rows would tell as much about the mean of `values_N` as these rows in groups do.

    n divided by the design effect, the variance of the mean between groups over that of independent rows (Kish 1965),
    and by (t / z) squared for the few groups it is estimated from (Korn and Graubard 1998, Survey Methodology 24:193).
    At most n; rows that do not differ show nothing of how alike a group is, so that each group counts as one row.
    """
    n, groups = len(values_N), int(groups_N.max()) + 1
    off_N = values_N - values_N.mean()
    alone = float((off_N**2).sum())
    together = float((np.bincount(groups_N, off_N) ** 2).sum()) * groups / (groups - 1)
    rows = n * alone / together if together > 1e-12 * n else float(groups)
    return min(float(n), rows) * (Z95 / student(groups - 1)) ** 2


def share_interval(right_N: np.ndarray, groups_N: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of a share of rows: Wilson's, of rows in groups Wilson's over the effective rows."""
    n = len(right_N)
    rows = n if groups_N is None else effective_rows(right_N, groups_N)
    return wilson(float(right_N.sum()) * rows / n, rows)


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


def share_difference(both: float, fixed: float, broken: float, neither: float) -> tuple[float, float]:
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


def _correlation(both: float, fixed: float, broken: float, neither: float) -> float:
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
    return value(differences_of(of), n)


def differences_of(of: Weighted) -> Weighted:
    """First system less second as a function of the weights of the n pairs."""

    def difference(weights_BN: np.ndarray) -> np.ndarray:
        none_BN = np.zeros_like(weights_BN)
        return of(np.hstack([weights_BN, none_BN])) - of(np.hstack([none_BN, weights_BN]))

    return difference


def paired_bootstrap(
    of: Weighted, n: int, seed: int = 0, resamples: int = RESAMPLES, groups_N: np.ndarray | None = None
) -> tuple[float, float, float]:
    """(low, high, standard error) of `paired_difference`, rows or groups drawn in pairs, by `bootstrap`'s method."""
    return _bootstrapped(differences_of(of), n, seed, resamples, groups_N)


def permutation(
    of: Weighted, n: int, seed: int = 0, rounds: int = RESAMPLES, groups_N: np.ndarray | None = None
) -> float:
    """Two-sided p value of "the two systems are the same": the two answers of a row may change places (Fisher 1935).

    `of` as for `paired_difference`. The answers of a group change places together: under the null hypothesis the two
    systems are exchangeable within each group, however alike its rows are, so that the test is exact for any number of
    groups. The observed arrangement counts as one of the rounds, so p is never 0.
    """
    seen = abs(paired_difference(of, n))
    draw, as_large = np.random.default_rng(seed), 0
    units = n if groups_N is None else int(groups_N.max()) + 1
    for size in _chunks(rounds, n):
        stays = draw.integers(0, 2, (size, units)).astype(np.float64)
        stays = stays if groups_N is None else stays[:, groups_N]
        differences = of(np.hstack([stays, 1 - stays])) - of(np.hstack([1 - stays, stays]))
        as_large += int((np.abs(differences) >= seen - 1e-12).sum())
    return (1 + as_large) / (1 + rounds)


def holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted so that below 5 % at most one family in twenty has a false alarm (Holm 1979, Scandinavian
    Journal of Statistics 6:65).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = worst
    return adjusted


def gatekept(ps: Sequence[float]) -> list[float]:
    """Adjusted p values where the first hypothesis is the one that was declared to lead.

    The first is tested alone; the others by Holm's rule, and only if the first is rejected: an adjusted p value is
    never below the first's (serial gatekeeping; Westfall and Krishen 2001, J Stat Plan Inference 99:25; Dmitrienko and
    Tamhane 2007, Pharm Stat 6:171). Over all of them at most one family in twenty has a false alarm.

    >>> gatekept([0.04, 0.01, 0.03]), gatekept([0.2, 0.001])
    ([0.04, 0.04, 0.04], [0.2, 0.2])
    """
    return [ps[0], *(max(ps[0], p) for p in holm(ps[1:]))] if ps else []


# ----------------------------------------------------------------------------------------------------- how many rows


def smallest_visible(standard_error: float, step: float = 0.0) -> float:
    """The smallest true difference found four times in five at the 5 % level, given the difference's standard error.

    `step`: 1 / n for McNemar's exact test (the inverse of `pairs_needed`), 0 for a test without steps.

    >>> round(smallest_visible(0.02), 3)
    0.056
    """
    return step + math.hypot(step, (Z95 + Z80) * standard_error)


def rows_needed(difference: float, standard_error: float, n: int) -> int:
    """Rows at which a true `difference` would be found four times in five, from its standard error over n rows.

    >>> rows_needed(0.02, 0.02, 300)
    2355
    """
    return math.ceil(n * (smallest_visible(standard_error) / difference) ** 2)


def pairs_needed(difference: float, standard_error: float, n: int) -> int:
    """`rows_needed` for McNemar's exact test, which takes its p values in steps: with the continuity correction of
    Fleiss, Levin and Paik (2003, Statistical Methods for Rates and Proportions, 3.2) for the rows that differ.

    >>> pairs_needed(0.02, 0.02, 300)
    2454
    """
    rows = max(1, rows_needed(difference, standard_error, n))
    return math.ceil(rows / 4 * (1 + math.sqrt(1 + 4 / (rows * abs(difference)))) ** 2)


def share_standard_error(fixed: int, broken: int, n: int) -> float:
    """Standard error of (fixed - broken) / n. With no differing row one is assumed: certainty is not to be had.

    >>> round(share_standard_error(30, 10, 300), 4)
    0.0207
    """
    differing = max(1, fixed + broken) / n
    return math.sqrt((differing - ((fixed - broken) / n) ** 2) / n)


# --------------------------------------------------------------------------------------------------------- many seeds


@dataclass(frozen=True, slots=True)
class Noise:
    """A mean over seeds and rows with its 95 % interval, `low`–`high`, and where its noise comes from.

    `spread`: standard deviation of the seeds' own values, as seen; `seed_sd`: what of it is the seeds' and not the
    rows' doing; `row_error`: standard error that the rows leave in the mean of these seeds.
    """

    mean: float
    low: float
    high: float
    spread: float
    seed_sd: float
    row_error: float


def seed_noise(values_SN: np.ndarray) -> Noise:
    """Noise of S >= 2 trainings tried on the same N >= 2 rows (or on units of rows: `pseudo_values`).

    Both are drawn: another seed and another row would give another mean. Two-way random effects, value = mean + seed +
    row + rest, by the mean squares of the analysis of variance (Searle, Casella and McCulloch 1992, Variance
    Components, ch. 4). Each source widens the interval by its own Student's t, the two added as squares: few seeds that
    differ make it wide, seeds that differ by no more than the rows' noise do not.
    """
    S, N = values_SN.shape
    mean, seeds_S, rows_N = values_SN.mean(), values_SN.mean(axis=1), values_SN.mean(axis=0)
    of_seeds = N * float(((seeds_S - mean) ** 2).sum()) / (S - 1)
    of_rows = S * float(((rows_N - mean) ** 2).sum()) / (N - 1)
    rest_SN = values_SN - seeds_S[:, None] - rows_N[None, :] + mean
    of_rest = float((rest_SN**2).sum()) / ((S - 1) * (N - 1))
    beyond = max(0.0, of_seeds - of_rest)
    half = math.sqrt((student(S - 1) ** 2 * beyond + student(N - 1) ** 2 * of_rows) / (S * N))
    return Noise(
        mean=float(mean),
        low=float(mean) - half,
        high=float(mean) + half,
        spread=math.sqrt(of_seeds / N),
        seed_sd=math.sqrt(beyond / N),
        row_error=math.sqrt(of_rows / (S * N)),
    )


# ------------------------------------------------------------------------------------------------------------ drawing


def _chunks(total: int, n: int) -> Iterator[int]:
    """`total` resamples in portions whose weights fit in memory."""
    most = max(1, _CELLS // n)
    while total > 0:
        yield min(most, total)
        total -= most


def _resampled(n: int, seed: int, resamples: int, groups_N: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Weights of n rows, or of their groups, drawn as often as there are with replacement; the same for the same
    (n, seed)."""
    draw = np.random.default_rng(seed)
    units = n if groups_N is None else int(groups_N.max()) + 1
    for size in _chunks(resamples, n):
        drawn = draw.integers(0, units, (size, units)) + np.arange(size)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
        yield counts if groups_N is None else counts[:, groups_N]
