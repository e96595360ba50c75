"""What several seeds say together."""

from __future__ import annotations

import random

import pytest

from luthier.evaluation import seeds
from luthier.evaluation.metrics import METRICS, Prediction


def answered(chance: float, seed: int, n: int = 200) -> list[Prediction]:
    """Right with this chance by the row's own difficulty and the seed; two classes."""
    found = []
    for i in range(n):
        hard, luck = random.Random(i).random(), random.Random(f"{seed} {i}").random()
        right = 0.5 * hard + 0.5 * luck < chance
        gold = "a" if i % 3 else "b"
        found.append(Prediction(str(i), "f:1", "p", (gold,), gold if right else "c", columns={"by": i // 4}))
    return found


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_a_difference_that_survives_seeds_and_rows_is_said_so(name: str) -> None:
    tuned, base = [answered(0.7, k) for k in range(3)], [answered(0.4, 9)] * 3
    found = seeds.compare(METRICS[name], ["a", "b", "c"], tuned, base)
    assert found is not None and found.outcome == "better" and len(set(found.scores)) == 3
    assert found.low is not None and found.high is not None and found.difference is not None
    assert 0 < found.low < found.difference < found.high
    assert found.mean.value == pytest.approx(sum(found.scores) / 3) and found.mean.low < found.mean.value
    assert (
        found.sentence.startswith(f"{METRICS[name].title} over 3 seeds: 0.") and "whatever the seed" in found.sentence
    )
    assert found.spread > 0 and found.row_error > 0


def test_seeds_that_disagree_leave_it_open_though_each_alone_would_not() -> None:
    tuned, base = [answered(chance, k) for k, chance in enumerate((0.25, 0.7, 0.75))], [answered(0.4, 9)] * 3
    found = seeds.compare(METRICS["accuracy"], ["a", "b", "c"], tuned, base)
    assert found is not None and found.outcome == "cannot tell" and found.seed_sd > 0.1 > 3 * found.row_error
    assert found.sentence.endswith("over base: cannot tell")


def test_groups_count_and_a_run_without_base_has_a_mean_alone() -> None:
    tuned = [answered(0.7, k) for k in range(3)]
    found = seeds.compare(METRICS["accuracy"], ["a", "b", "c"], tuned, None, grouped_by="by")
    assert found is not None and found.difference is None and found.mean.groups == 50
    assert "n = 200 in 50 groups" in found.sentence and "over base" not in found.sentence


def test_lower_is_better_and_rows_without_a_value_are_left_out() -> None:
    def spoken(nll: float, seed: int) -> list[Prediction]:
        draw = random.Random(seed)
        made = [Prediction(str(i), "", "", ("x",), "", nll=nll + draw.random(), tokens=3) for i in range(50)]
        return [*made, Prediction("last", "", "", ("x",), "", nll=None if seed == 1 else 1.0, tokens=3)]

    tuned, base = [spoken(1.0, k) for k in range(2)], [spoken(3.0, 7)] * 2
    found = seeds.compare(METRICS["perplexity"], ["a", "b"], tuned, base)
    assert found is not None and found.n == 50 and found.outcome == "better" and found.difference is not None
    assert found.difference < 0
    assert seeds.compare(METRICS["sql_execution"], ["a", "b"], tuned, base) is None


def test_scores_of_nothing_are_no_certainty_of_nothing() -> None:
    wrong = [Prediction(str(i), "", "", ("x",), "y") for i in range(40)]
    found = seeds.compare(METRICS["exact_match"], ["a", "b"], [wrong, wrong], [wrong, wrong])
    assert found is not None and found.outcome == "cannot tell" and (found.low, found.high) == (None, None)
    assert found.mean.low == 0 and found.mean.high == pytest.approx(0.0876, abs=1e-4)  # Wilson's, 0 of 40
    assert found.sentence.endswith("no row differs from base: cannot tell")
    right = [Prediction(str(i), "", "", ("x",), "x") for i in range(40)]
    found = seeds.compare(METRICS["exact_match"], ["a", "b"], [right, right], [wrong, wrong])
    assert found is not None and found.outcome == "better" and "better, whatever" in found.sentence
