"""Intervals and tests against scipy, and against simulated experiments whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.evaluation import statistics

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("right", "n"), [(0, 1), (0, 300), (1, 7), (150, 300), (299, 300), (300, 300), (2741, 3080)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert statistics.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (6, 0), (0, 6), (10, 3), (40, 41), (715, 52)])
def test_mcnemar_is_the_exact_binomial_test(fixed: int, broken: int) -> None:
    expected = stats.binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert statistics.mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_bootstrap_of_a_mean_is_scipys_percentile_interval() -> None:
    values = np.random.default_rng(3).gamma(2.0, 1.0, 200)
    ours = statistics.bootstrap(statistics.mean_of(values), 200, seed=1, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_same_seed_same_interval_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    of = statistics.mean_of(np.arange(50.0))
    whole = statistics.bootstrap(of, 50), statistics.bootstrap(of, 50, seed=1)
    assert whole[0] == statistics.bootstrap(of, 50)
    assert whole[0] != whole[1]
    monkeypatch.setattr(statistics, "_CELLS", 50 * 7)
    assert statistics.bootstrap(of, 50) == whole[0]


def test_permutation_of_means_is_scipys() -> None:
    draw = np.random.default_rng(5)
    first, second = draw.normal(0.25, 1, 60), draw.normal(0, 1, 60)
    ours = statistics.permutation(statistics.mean_of(np.r_[first, second]), 60, rounds=20_000)
    theirs = stats.permutation_test(
        (first, second), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.012)


def test_equal_systems_differ_in_nothing() -> None:
    of = statistics.mean_of(np.r_[np.arange(20.0), np.arange(20.0)])
    assert statistics.permutation(of, 20) == 1.0
    assert statistics.paired_bootstrap(of, 20) == (0.0, 0.0, 0.0)


def test_intervals_cover_the_truth_and_tests_keep_their_size() -> None:
    """500 simulated experiments of 150 rows: 95 % ± 2.5 covered, at most 5 % + 2.5 false alarms."""
    draw, covered, covered_difference, alarms = np.random.default_rng(11), 0, 0, 0
    for _ in range(500):
        hard = draw.random(150)
        a, b = draw.random(150) < 0.3 + 0.5 * hard, draw.random(150) < 0.1 + 0.5 * hard  # correlated; 0.55 and 0.35
        low, high = statistics.wilson(int(a.sum()), 150)
        covered += low <= 0.55 <= high
        table = [int(((a == x) & (b == y)).sum()) for x in (True, False) for y in (True, False)]
        low, high = statistics.share_difference(table[0], table[1], table[2], table[3])
        covered_difference += low <= 0.20 <= high
        c = draw.random(150) < 0.1 + 0.5 * hard
        alarms += statistics.mcnemar(int((b & ~c).sum()), int((c & ~b).sum())) < 0.05
    assert abs(covered / 500 - 0.95) < 0.025
    assert abs(covered_difference / 500 - 0.95) < 0.025
    assert alarms / 500 < 0.075


def test_rows_needed_are_enough_four_times_in_five() -> None:
    """A true difference of 0.10 seen in 60 rows with 30 % differing rows: simulate the size that is recommended."""
    needed = statistics.rows_needed(0.10, statistics.share_standard_error(12, 6, 60), 60)
    draw = np.random.default_rng(2)
    found = 0
    for _ in range(400):
        fixed, broken, _same = draw.multinomial(needed, [0.2, 0.1, 0.7])
        found += statistics.mcnemar(int(fixed), int(broken)) < 0.05
    assert 0.72 < found / 400 < 0.88
