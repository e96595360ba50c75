"""The verdict's rules and words, and an evaluation that is killed and goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.evaluation import curves, predictions, report
from luthier.evaluation.metrics import METRICS, Prediction, by_name
from luthier.evaluation.predictions import Answer, Answerer, Question, collect
from tests.evaluation import sample

NAMES = ["exact_match", "rougeL", "perplexity"]


def answers(rights: str, **more: object) -> list[Prediction]:
    """One prediction a letter: 1 right, 0 wrong."""
    return [
        Prediction(str(i), "f:1", "p", ("yes",), "yes" if right == "1" else "no", **more)
        for i, right in enumerate(rights)
    ]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tuned", "base", "sentence"),
    [
        (
            "1" * 249 + "0" * 51,
            "1" * 3 + "0" * 297,
            "exact match: tuned 0.83 (0.78–0.87, n = 300), base 0.01 (0.00–0.03): better on the same rows, p < 0.001",
        ),
        (
            "0" * 12 + "1" * 28,
            "1" * 40,
            "exact match: tuned 0.70 (0.55–0.82, n = 40), base 1.00 (0.91–1.00): worse on the same rows, p < 0.001",
        ),
        (
            "1" * 30 + "0" * 20,
            "0" * 2 + "1" * 27 + "0" * 21,
            "exact match: tuned 0.60 (0.46–0.72, n = 50), base 0.54 (0.40–0.67): cannot tell on these rows, p = 0.25; "
            "about 160 rows would be needed",
        ),
        (
            "1" * 30 + "0" * 20,
            "1" * 30 + "0" * 20,
            "exact match: tuned 0.60 (0.46–0.72, n = 50), base 0.60 (0.46–0.72): cannot tell, no difference on these "
            "rows; one below 0.12 would stay hidden",
        ),
    ],
)
def test_the_sentence_follows_from_the_numbers(tuned: str, base: str, sentence: str) -> None:
    found = report.verdict(METRICS["exact_match"], answers(tuned), answers(base))
    assert found.sentence == sentence
    assert found.outcome in sentence
    assert found.low <= found.difference <= found.high
    assert found.fixed == sum(t > b for t, b in zip(tuned, base, strict=True))


def test_lower_is_better_for_perplexity() -> None:
    pairs = [
        [Prediction("i", "f:1", "p", ("x",), "x", nll=nll + i / 50, tokens=2) for i in range(40)] for nll in (1.0, 3.0)
    ]
    low = report.verdict(METRICS["perplexity"], pairs[0], pairs[1])
    assert (low.outcome, low.difference < 0) == ("better", True)
    assert report.verdict(METRICS["perplexity"], pairs[1], pairs[0]).outcome == "worse"


def grouped(rights: str, size: int) -> list[Prediction]:
    """One prediction a letter, `size` following ones of a group."""
    return [
        Prediction(str(i), "f:1", "p", ("yes",), "yes" if right == "1" else "no", columns={"by": f"g{i // size}"})
        for i, right in enumerate(rights)
    ]


def test_rows_that_share_a_context_count_by_their_groups() -> None:
    tuned, base = grouped("1" * 40 + "0" * 20, 5), grouped("0" * 10 + "1" * 10 + "0" * 40, 5)
    alone = report.verdict(METRICS["exact_match"], tuned, base)
    found = report.verdict(METRICS["exact_match"], tuned, base, grouped_by="by")
    assert (alone.groups, found.groups) == (None, 12) and found.difference == alone.difference
    assert (
        found.low < alone.low < alone.high < found.high and found.p > 10 * alone.p and found.smallest > alone.smallest
    )
    assert found.sentence.startswith("exact match: tuned 0.67 (0.35–0.88, n = 60 in 12 groups), base 0.17 (0.04–0.50)")
    assert found.sentence.endswith("better on the same rows, p = 0.033") and alone.p < 0.001
    few = report.verdict(METRICS["exact_match"], grouped("1" * 10 + "0" * 30, 5), grouped("0" * 40, 5), grouped_by="by")
    assert few.outcome == "cannot tell" and few.sentence.endswith(" such groups would be needed")
    assert few.rows_needed is not None and few.rows_needed > 40
    one_each = report.verdict(METRICS["exact_match"], grouped("1" * 20, 1), grouped("0" * 20, 1), grouped_by="by")
    assert one_each == report.verdict(METRICS["exact_match"], grouped("1" * 20, 1), grouped("0" * 20, 1))


def rows_of(tuned: list[Prediction], base: list[Prediction]) -> list[predictions.Row]:
    return [predictions.Row({"tuned": a, "base": b}, {}) for a, b in zip(tuned, base, strict=True)]


@pytest.mark.parametrize(
    ("column", "size", "said"),
    [
        ("by", 5, "the rows are in 12 groups (`by`): intervals from fewer than 20 are rough"),
        ("by", 60, "all rows are of one group (`by`): nothing is said of other groups"),
        ("who", 5, "these rows lack the column `who`: they are counted as independent of each other"),
        ("by", 3, None),
        (None, 5, None),
    ],
)
def test_what_the_groups_are_worth_is_in_the_notes(column: str | None, size: int, said: str | None) -> None:
    rows = rows_of(grouped("1" * 40 + "0" * 20, size), grouped("0" * 60, size))
    made = report.make(sample.subject(), rows, by_name(["exact_match"]), grouped_by=column)
    assert made.notes == ((said,) if said else ())
    assert made.grouped_by == ("by" if column == "by" and size < 60 else None)


def test_the_metric_that_leads_is_tested_alone_and_opens_the_gate_for_the_others() -> None:
    """exact match does not tell; json_valid would, alone: it may not speak in its place. As leader it may."""
    tuned = [Prediction(str(i), "f:1", "p", ("1",), "1" if i < 12 else "2") for i in range(40)]
    base = [Prediction(str(i), "f:1", "p", ("1",), "1" if i < 10 else "no") for i in range(40)]
    rows = rows_of(tuned, base)
    closed = report.make(sample.subject(), rows, by_name(["exact_match", "json_valid"])).comparisons
    assert closed["exact_match"].p_holm == closed["exact_match"].p == closed["json_valid"].p_holm == 0.5
    assert closed["json_valid"].outcome == "cannot tell" and closed["json_valid"].p < 0.001
    assert closed["json_valid"].sentence.endswith("p < 0.001 alone, but p = 0.50 beside the metrics tested with it")
    assert closed["json_valid"].rows_needed is None
    opened = report.make(sample.subject(), rows, by_name(["json_valid", "exact_match"])).comparisons
    assert opened["json_valid"].outcome == "better" and opened["exact_match"].outcome == "cannot tell"
    alone = report.make(sample.subject(), rows, by_name(["json_valid"])).comparisons["json_valid"]
    assert alone.p_holm is None and alone.sentence == opened["json_valid"].sentence


def test_a_report_of_an_older_version_is_read(tmp_path: Path) -> None:
    rows = sample.answered(tmp_path / "p.jsonl", sample.sql_questions(30), sides(), NAMES)
    made = report.make(sample.subject(), rows, by_name(NAMES))
    report.write_json(made, tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    for name in ("grouped_by", "openings", "seeds"):
        del told[name]
    for compared in told["comparisons"].values():
        del compared["p_holm"], compared["groups"]
    for score in (*told["scores"].values(), *told["base_scores"].values()):
        del score["groups"]
    (tmp_path / "old.json").write_text(json.dumps(told))
    old = report.read_json(tmp_path / "old.json")
    assert old.scores == made.scores and old.openings == () and old.comparisons["exact_match"].p_holm is None


def test_two_runs_may_be_compared_by_name_and_need_common_rows() -> None:
    found = report.verdict(METRICS["exact_match"], answers("1" * 20), answers("0" * 20), ("run a", "run b"))
    assert "run a 1.00" in found.sentence and "run b 0.00" in found.sentence
    with pytest.raises(DataError, match="no row has a value of perplexity for both"):
        report.verdict(METRICS["perplexity"], answers("1"), answers("1"))


def test_rows_without_a_value_are_counted_not_scored_as_wrong(tmp_path: Path) -> None:
    asked = sample.sql_questions(10)
    rows = sample.answered(tmp_path / "p.jsonl", asked, {"tuned": sample.right_with(1, 0)}, ["exact_match", "auc"])
    made = report.make(sample.subject(), rows, by_name(["exact_match", "auc"]))
    assert list(made.scores) == ["exact_match"]
    assert made.notes == ("AUC: the rows do not have what it needs",)
    assert made.verdict == "exact match: tuned 1.00 (0.72–1.00, n = 10)"


def test_report_json_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = sample.answered(tmp_path / "p.jsonl", sample.sql_questions(30), sides(), NAMES)
    made = report.make(sample.subject(), rows, by_name(NAMES), fit="turned", notes=["one"])
    report.write_json(made, tmp_path / "report.json")
    assert report.read_json(tmp_path / "report.json") == made
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# ------------------------------------------------------------------------------------------------------- predictions


def sides(counted: list[int] | None = None) -> dict[str, Answerer]:
    """Two models; `counted` hears how many questions the first is asked."""
    tuned = sample.right_with(0.8, 1)

    def ask(questions: Sequence[Question]) -> list[Answer]:
        if counted is not None:
            counted.append(len(questions))
        return tuned(questions)

    return {"tuned": ask, "base": sample.right_with(0.1, 2)}


def test_predictions_hold_one_line_a_row_and_read_back(tmp_path: Path) -> None:
    asked = sample.sql_questions(5)
    rows = sample.answered(tmp_path / "p.jsonl", asked, sides(), NAMES)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [question.example.id for question in asked]
    assert set(lines[0]) == {"id", "where", "prompt", "references", "columns", "key", "sides"}
    assert lines[0]["sides"]["tuned"]["metrics"]["exact_match"] in (0, 1)
    assert predictions.read(tmp_path / "p.jsonl") == rows


def test_killed_at_any_byte_it_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "CHUNK", 4)
    asked = sample.sql_questions(18)
    whole = tmp_path / "whole.jsonl"
    collect(asked, sides(), by_name(NAMES), whole, "k")
    content = whole.read_bytes()
    for place in range(0, len(content), len(content) // 20):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(content[:place])
        done = content[:place].count(b"\n") // 4 * 4  # whole chunks: its rows are asked together again
        counted: list[int] = []

        rows = collect(asked, sides(counted), by_name(NAMES), torn, "k")
        assert torn.read_bytes() == content
        assert sum(counted) == 18 - done
        assert len(rows) == 18


def test_another_model_or_metric_begins_anew(tmp_path: Path) -> None:
    path, asked = tmp_path / "p.jsonl", sample.sql_questions(6)
    first = collect(asked, sides(), by_name(NAMES), path, "adapter one")
    second = collect(
        asked, {"tuned": sample.right_with(0.0, 1), "base": sample.right_with(0.1, 2)}, by_name(NAMES), path, "two"
    )
    assert first != second
    assert len(path.read_text(encoding="utf-8").splitlines()) == 6
    wider = collect(asked, sides(), by_name([*NAMES, "chrf"]), path, "two")
    assert wider[0].values["tuned"]["chrf"] is not None


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    sample.answered(path, sample.sql_questions(3), sides(), NAMES)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[1][:40], lines[2], ""]), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        predictions.read(path)
    assert caught.value.where == f"{path}:2"


# ------------------------------------------------------------------------------------------------------------- curves


def test_overfitting_is_said_when_validation_has_turned() -> None:
    said = curves.overfitting(sample.curve(turn=300))
    assert said is not None
    assert said.startswith("Likely over-fitting since step 300: validation loss rose from 0.347 to 0.390 over 6 eval")
    assert curves.overfitting(sample.curve(turn=None)) is None


@pytest.mark.parametrize(
    ("validation", "turned"),
    [
        ([1.0, 0.8, 0.9], False),  # one evaluation says nothing
        ([1.0, 0.8, 0.804, 0.807], False),  # within one per cent
        ([1.0, 0.8, 0.9, 0.81], True),
        ([1.0, 0.8, 0.9, 0.8], False),  # back at the best
        ([], False),
    ],
)
def test_when_a_curve_has_turned(validation: list[float], turned: bool) -> None:
    assert curves.turned(curves.Curve((), tuple(enumerate(validation, 1)))) is turned


def test_rising_training_loss_is_not_called_overfitting() -> None:
    training = tuple((step, 0.5 + step / 100) for step in range(1, 60))
    said = curves.overfitting(curves.Curve(training, ((10, 0.5), (30, 0.6), (50, 0.7))))
    assert said is not None and said.startswith("Unsteady since step 10")
