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


@pytest.mark.parametrize("n", [60, 1000])
def test_bootstrap_of_a_mean_is_scipys_bca_interval(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the quantiles, which at n = 60 are a little further out; of 1,000 rows 400 parts are left out in turn."""
    values = np.random.default_rng(3).gamma(0.5, 1.0, n)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    wider = statistics.bootstrap(statistics.mean_of(values), n, seed=1, resamples=20_000)
    assert (wider[0] < theirs.low and theirs.high < wider[1]) or n == 1000
    monkeypatch.setattr(statistics, "student", lambda freedom: statistics.Z95 * np.sqrt((n - 1) / n))
    ours = statistics.bootstrap(statistics.mean_of(values), n, seed=1, resamples=20_000)
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.02)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 9, 19, 39, 299, 12999])
def test_students_quantile_is_scipys(freedom: int) -> None:
    assert statistics.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_pseudo_values_of_a_mean_are_its_rows_and_of_groups_carry_its_noise() -> None:
    draw = np.random.default_rng(4)
    values, groups = draw.random(50), np.repeat(np.arange(10), 5)
    assert statistics.pseudo_values(statistics.mean_of(values), 50) == pytest.approx(values)
    found = statistics.pseudo_values(statistics.mean_of(values), 50, groups)
    assert found == pytest.approx(values.reshape(10, 5).mean(axis=1))
    many = draw.random(3000)
    parts = statistics.pseudo_values(statistics.mean_of(many), 3000)
    assert len(parts) == statistics.JACKKNIFE and parts.mean() == pytest.approx(many.mean(), abs=1e-3)


def test_rows_of_a_group_that_are_all_alike_count_as_one() -> None:
    draw = np.random.default_rng(6)
    groups = np.repeat(np.arange(40), 5)
    alike, apart = draw.integers(0, 2, 40).astype(float)[groups], draw.integers(0, 2, 200).astype(float)
    few = (statistics.Z95 / statistics.student(39)) ** 2
    assert statistics.effective_rows(alike, groups) == pytest.approx(39 * few)
    assert 100 < statistics.effective_rows(apart, groups) <= 200
    assert statistics.effective_rows(np.ones(200), groups) == pytest.approx(40 * few)  # nothing shows how alike
    narrow, wide = (np.ptp(statistics.share_interval(alike, by)) for by in (None, groups))
    assert 2 < wide / narrow < 2.6  # the root of 5
    assert statistics.share_interval(np.ones(200), groups)[1] == 1.0


def test_drawing_groups_widens_an_interval_as_fewer_rows_would() -> None:
    draw = np.random.default_rng(8)
    of_groups = draw.normal(size=60)
    values, groups = np.repeat(of_groups, 4), np.repeat(np.arange(60), 4)
    grouped = statistics.bootstrap(statistics.mean_of(values), 240, groups_N=groups)
    assert grouped == pytest.approx(statistics.bootstrap(statistics.mean_of(of_groups), 60), abs=1e-9)


def test_answers_of_a_group_change_places_together() -> None:
    """Ten groups of which nine speak for the first system: as ten rows, not as a hundred."""
    first, second = np.repeat([1.0] * 9 + [0.0], 10), np.repeat([0.0] * 9 + [1.0], 10)
    of, groups = statistics.mean_of(np.r_[first, second]), np.repeat(np.arange(10), 10)
    assert statistics.permutation(of, 100) < 0.001
    exact = stats.binomtest(9, 10).pvalue
    assert statistics.permutation(of, 100, rounds=20_000, groups_N=groups) == pytest.approx(exact, abs=0.004)


def test_holm_is_known_and_nothing_passes_a_closed_gate() -> None:
    assert statistics.holm([0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.04, 0.06, 0.06, 0.5])
    assert statistics.holm([]) == [] and statistics.gatekept([]) == []
    assert statistics.gatekept([0.04]) == [0.04]
    assert statistics.gatekept([0.001, 0.01, 0.04, 0.5]) == pytest.approx([0.001, 0.03, 0.08, 0.5])
    assert statistics.gatekept([0.3, 0.001, 0.0001]) == [0.3, 0.3, 0.3]


def test_seed_noise_finds_both_sources_of_noise() -> None:
    draw = np.random.default_rng(9)
    of_seeds, of_rows = draw.normal(0, 0.05, (400, 1)), draw.normal(0, 0.4, (1, 300))
    found = statistics.seed_noise(0.7 + of_seeds + of_rows + draw.normal(0, 0.2, (400, 300)))
    assert found.seed_sd == pytest.approx(0.05, rel=0.1)
    assert found.spread == pytest.approx(np.hypot(0.05, 0.2 / np.sqrt(300)), rel=0.1)  # as seen: the rows' share too
    assert found.row_error == pytest.approx(0.4 / np.sqrt(300), rel=0.1)
    same = statistics.seed_noise(np.tile(np.arange(10.0), (3, 1)))  # three seeds that learned the same
    assert same.spread == 0 and same.seed_sd == 0
    assert (same.low, same.high) == pytest.approx(stats.t.interval(0.95, 9, 4.5, stats.sem(np.arange(10))), rel=1e-4)
    assert statistics.seed_noise(np.ones((2, 5))) == statistics.Noise(1, 1, 1, 0, 0, 0)


def test_seeds_that_differ_cannot_be_made_good_by_rows() -> None:
    """Three seeds, 0.6, 0.7 and 0.8, on very many rows: the interval is that of three numbers."""
    values_SN = np.array([[0.6], [0.7], [0.8]]) + np.tile([-0.3, 0.3], (3, 5000))
    found = statistics.seed_noise(values_SN)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 0.7, 0.1 / np.sqrt(3)), abs=0.01)


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
