"""How much the best of many flatters itself: against simulated searches whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.evaluation import classes, statistics
from luthier.searching import sharing
from luthier.trials import optimism, rows
from luthier.trials.rows import Rows

N, NOISE = 200, 0.5


def _searched(means_T: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """values_TN: rows are easy or hard for everybody, and a trial has its luck with each."""
    own_TN = NOISE * draw.standard_normal((len(means_T), N))
    return 2.0 + means_T[:, None] + draw.standard_normal(N)[None] + own_TN


def _truth(means_T: np.ndarray) -> float:
    """By how much the best of the trials' observed means lies below its own true mean, on the average."""
    draw = np.random.default_rng(1)
    noise_RT = NOISE / np.sqrt(N) * draw.standard_normal((20_000, len(means_T)))
    best_R = (means_T + noise_RT).argmin(axis=1)
    return float(-noise_RT[np.arange(len(best_R)), best_R].mean())


@pytest.mark.parametrize(
    "means_T",
    [np.zeros(4), np.zeros(16), np.linspace(0, 0.3, 16), np.r_[np.zeros(6), np.full(26, 1.0)]],
    ids=["four alike", "sixteen alike", "sixteen spread", "six alike of 32"],
)
def test_it_is_about_right_and_rather_too_much_than_too_little(means_T: np.ndarray) -> None:
    """Fewer rows choose in a resample than chose the winner: where trials differ, it errs towards caution."""
    draw = np.random.default_rng(0)
    found = [optimism.optimism(_searched(means_T, draw), np.ones(N), seed=k, resamples=200) for k in range(60)]
    mean = float(np.mean([each.amount for each in found if each]))
    assert 0.85 <= mean / _truth(means_T) <= 1.4


def test_one_that_is_far_ahead_is_not_flattered() -> None:
    values_TN = _searched(np.arange(8.0), np.random.default_rng(2))
    found = optimism.optimism(values_TN, np.ones(N))
    assert found is not None and found.amount < 0.002
    assert found.seen == pytest.approx(values_TN[0].mean()) and found.expected == found.seen + found.amount


def test_where_higher_is_better_it_is_the_mirror() -> None:
    values_TN = _searched(np.zeros(8), np.random.default_rng(3))
    low, high = (optimism.optimism(sign * values_TN, np.ones(N), sign > 0) for sign in (1.0, -1.0))
    assert low is not None and high is not None
    assert high.amount == pytest.approx(low.amount) and high.expected == pytest.approx(-low.expected)
    assert high.expected < high.seen and low.expected > low.seen


def test_rows_count_by_their_size() -> None:
    sizes_N = np.tile([1.0, 3.0], 50)
    values_TN = sizes_N * np.random.default_rng(4).normal(1.0, 0.1, (3, 100))
    found = optimism.optimism(values_TN, sizes_N)
    assert found is not None and found.seen == pytest.approx((values_TN.sum(1) / sizes_N.sum()).min())


def test_few_rows_and_one_trial() -> None:
    values_TN = np.random.default_rng(5).random((4, optimism.FEWEST_ROWS))
    assert optimism.optimism(values_TN[:, 1:], np.ones(optimism.FEWEST_ROWS - 1)) is None
    alone = optimism.optimism(values_TN[:1], np.ones(optimism.FEWEST_ROWS))
    assert alone is not None and alone.amount == 0.0 and alone.expected == alone.seen


def test_without_rows_the_bound_is_that_of_trials_that_do_not_differ() -> None:
    assert optimism.at_most(16, NOISE / np.sqrt(N)) == pytest.approx(_truth(np.zeros(16)), rel=0.02)
    assert optimism.at_most(1, 1.0) < 1e-9


def test_the_interval_covers_as_often_as_it_says() -> None:
    """A ratio of sums over rows of unequal size: 95 of 100."""
    draw, covered = np.random.default_rng(6), 0
    for _ in range(400):
        sizes_N = draw.integers(1, 12, 120).astype(float)
        low, high = optimism.interval(sizes_N * (1.5 + draw.gamma(1.0, 1.0, 120)), sizes_N)
        covered += low <= 2.5 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_parts_of_a_metric_of_all_rows_have_its_value_and_its_noise() -> None:
    """Macro F1 of 200 answers: the interval over parts is near the bootstrap's."""
    draw = np.random.default_rng(7)
    gold = draw.choice(["a", "b", "c"], 200)
    said = np.where(draw.random(200) < 0.7, gold, draw.choice(["a", "b", "c"], 200))
    of = classes.f1(list(map(str, gold)), list(map(str, said)), "macro")
    parts_N = sharing.parts_of(of, 200)
    assert parts_N.mean() == pytest.approx(statistics.value(of, 200))
    assert optimism.interval(parts_N, np.ones(200)) == pytest.approx(statistics.bootstrap(of, 200), abs=0.01)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert rows.read(tmp_path) is None
    told = Rows(("a", "b"), {"loss": (1.5, 2.0)}, {"loss": (3.0, 4.0)})
    rows.write(tmp_path, told)
    assert rows.read(tmp_path) == told
    with pytest.raises(ValueError, match="not finite"):
        rows.write(tmp_path, Rows(("a",), {"loss": (float("nan"),)}, {"loss": (1.0,)}))
    assert rows.read(tmp_path) == told


def test_trials_share_the_rows_that_all_of_them_size_alike() -> None:
    """Another template counts other tokens in `b`; `d` is in one alone."""
    one = Rows(("a", "b", "c"), {"loss": (1.0, 2.0, 3.0)}, {"loss": (1.0, 2.0, 3.0)})
    other = Rows(("c", "d", "b", "a"), {"loss": (30.0, 0.0, 20.0, 10.0)}, {"loss": (3.0, 1.0, 5.0, 1.0)})
    found = rows.table({4: one, 7: other}, "loss")
    assert found is not None and found.numbers == (4, 7) and not found.is_share
    assert found.values_TN.tolist() == [[1.0, 3.0], [10.0, 30.0]] and found.sizes_N.tolist() == [1.0, 3.0]
    assert found.of(7).tolist() == [10.0, 30.0]
    assert rows.table({4: one}, "exact_match") is None
