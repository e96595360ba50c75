"""Which rate and which rung are chosen, from hand-made comparisons; the sentence; the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.evaluation import ladder
from luthier.evaluation.ladder import Choice, Ladder, Rung, best_rate, cheapest, conclude, grid
from luthier.evaluation.metrics import Prediction, by_name
from luthier.evaluation.report import Outcome

WHAT = {"name": "n", "model": "m", "dataset": "d", "task": "generation"}
EXACT = by_name(["exact_match"])
NAMES = ["zero-shot", "few-shot", "prompt_tuning", "lora", "full"]


@pytest.mark.parametrize(
    ("outcomes", "best", "answer"),
    [
        (["worse", "worse", "worse", "worse"], "full", "full"),
        (["worse", "worse", "worse", "cannot tell"], "full", "lora"),
        (["worse", "worse", "cannot tell", "worse"], "full", "prompt_tuning"),  # a dearer one may be worse than a cheap
        (["cannot tell", "worse", "worse", "worse"], "full", "zero-shot"),
        (["worse", "worse", "worse", "worse"], "lora", "lora"),
        (["worse", "cannot tell", "worse", "cannot tell"], "lora", "few-shot"),
    ],
)
def test_the_cheapest_that_is_not_worse_is_the_answer(outcomes: list[Outcome], best: str, answer: str) -> None:
    others = dict(zip([name for name in NAMES if name != best], outcomes, strict=True))
    assert cheapest(NAMES, best, others) == answer


def test_the_order_is_by_cost_and_every_rung_has_a_name_for_people() -> None:
    assert [name for name in ladder.TITLES if name != "qlora"] == NAMES
    assert list(ladder.TITLES).index("qlora") == NAMES.index("lora")


def test_the_rate_with_the_lowest_finite_loss_is_chosen() -> None:
    rates = grid(0.013)
    assert rates == (0.0043, 0.013, 0.039)
    assert best_rate(rates, (2.0, 1.5, 1.9)) == (0.013, "")
    assert best_rate(rates, (1.5, 1.5, None)) == (0.0043, "the lowest rate that was tried won: one beyond it may be "
                                                          "better still")  # fmt: skip
    assert best_rate(rates, (2.0, 1.9, 1.8))[0] == 0.039
    assert best_rate(rates, (None, float("nan"), float("inf")))[0] == 0.013


def answers(right: int, n: int = 100) -> list[Prediction]:
    """`n` rows of which the first `right` are right."""
    return [Prediction(f"{i:016x}", f"f:{i}", "q", ("a",), "a" if i < right else "b") for i in range(n)]


def done(*names: str) -> list[Rung]:
    return [Rung(name, "done") for name in names]


def concluded(rights: dict[str, int], rungs: list[Rung] | None = None) -> Ladder:
    return conclude(WHAT, rungs or done(*rights), {name: answers(right) for name, right in rights.items()}, EXACT)


def test_the_answer_comes_from_paired_tests_on_the_same_rows() -> None:
    found = concluded({"zero-shot": 0, "few-shot": 20, "prompt_tuning": 60, "lora": 80, "full": 83})
    assert (found.best, found.answer, found.n, found.metric) == ("full", "lora", 100, "exact_match")
    outcomes = {rung.name: rung.against_best and rung.against_best.outcome for rung in found.rungs}
    assert outcomes == {"zero-shot": "worse", "few-shot": "worse", "prompt_tuning": "worse", "lora": "cannot tell",
                        "full": None}  # fmt: skip
    assert found.sentence.startswith("LoRA is enough: the cheapest rung that is not significantly worse than the best.")
    assert "LoRA 0.80" in found.sentence and "full 0.83" in found.sentence
    assert "100 rows show a difference of 0.0" in found.sentence and "four times in five" in found.sentence


def test_the_dearest_pays_where_all_others_are_worse_and_the_cheapest_where_nothing_is_better() -> None:
    pays = concluded({"zero-shot": 0, "lora": 50, "full": 90})
    assert pays.answer == "full" and pays.sentence.startswith("full pays: every cheaper rung is significantly worse")
    assert "LoRA 0.50" in pays.sentence
    same = concluded({"zero-shot": 30, "lora": 30})
    assert same.answer == same.best == "zero-shot"
    assert same.sentence == "nothing beats zero-shot: no rung is better than the cheapest"
    hidden = concluded({"zero-shot": 0, "lora": 1, "full": 0})
    assert (hidden.answer, hidden.best) == ("zero-shot", "lora")
    assert hidden.sentence.startswith("nothing is shown to beat zero-shot: no other rung is significantly better.")


def test_rows_of_one_group_count_as_one_context() -> None:
    """Sixty rows gained, all of three documents of twenty: sure if rows were independent, not if documents are."""
    told = {
        name: [replace(row, columns={"document": i // 20}) for i, row in enumerate(answers(right))]
        for name, right in {"zero-shot": 0, "lora": 60}.items()
    }
    alone = conclude(WHAT, done(*told), told, EXACT)
    grouped = conclude(WHAT, done(*told), told, EXACT, grouped_by="document")
    assert alone.answer == "lora" and grouped.answer == "zero-shot"
    scores = grouped.rungs[1].scores
    assert scores is not None and scores["exact_match"].groups == 5
    assert "5 groups" in grouped.sentence


def test_a_rung_that_is_alone_beats_nobody() -> None:
    found = conclude(WHAT, done("lora"), {"lora": answers(30)}, EXACT)
    assert (
        found.answer == "lora" and found.sentence == "LoRA alone came to its end: there is nothing to compare it with"
    )


def test_a_failed_rung_is_told_and_takes_no_part() -> None:
    rungs = [*done("zero-shot", "lora"), Rung("full", "failed", "not enough memory")]
    found = concluded({"zero-shot": 0, "lora": 50}, rungs)
    assert found.answer == "lora" and found.rung("full").scores is None and len(found.rungs) == 3
    with pytest.raises(DataError, match="no rung came to its end"):
        conclude(WHAT, rungs[2:], {}, EXACT)


def test_rows_that_one_rung_cannot_answer_are_left_out_for_all() -> None:
    given = {"zero-shot": answers(10), "lora": answers(60)[20:]}
    found = conclude(WHAT, done(*given), given, EXACT, ["a note"])
    zero = found.rung("zero-shot").scores
    assert found.n == 80 and zero is not None and zero["exact_match"].value == 0
    assert found.notes == ("a note", "20 of 100 rows are too long for a rung, and are left out for all")


def test_lower_may_be_better() -> None:
    def told(nll: float) -> list[Prediction]:
        return [Prediction(f"{i:016x}", "f:1", "", ("a",), "", nll=nll + i % 7 / 10, tokens=3) for i in range(40)]

    found = conclude(WHAT, done("zero-shot", "lora"), {"zero-shot": told(9.0), "lora": told(3.0)},
                     by_name(["perplexity"]))  # fmt: skip
    assert found.best == found.answer == "lora"


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    choice = Choice((0.1, 0.3, 0.9), (1.0, None, 2.0), 0.1, 20, 3.5, "")
    rungs = [
        Rung("zero-shot", "done"),
        Rung("lora", "done", run="r", choice=choice, seconds=2.0),
        Rung("full", "failed"),
    ]
    found = concluded({"zero-shot": 3, "lora": 40}, rungs)
    ladder.write_json(found, tmp_path / "ladder.json")
    assert ladder.read_json(tmp_path / "ladder.json") == found
