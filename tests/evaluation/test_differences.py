"""Where tuning helped and where it hurt: groups against a count by hand, slices, and what they refuse."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.errors import SpecError
from luthier.evaluation import differences, statistics
from luthier.evaluation.differences import Slice
from luthier.evaluation.metrics import METRICS
from luthier.evaluation.predictions import Answer, Answerer, Question, Row
from tests.evaluation import sample

MATCH = METRICS["exact_match"]


def asked(n: int = 60) -> list[Question]:
    """Questions of growing length; `lang` is ko for every third, `author` one of three, the class one of two."""
    found = []
    for i in range(n):
        question = sample.question(i, "q" * (i + 1), ("yes", "no")[i % 2])
        columns = {"lang": "ko" if i % 3 == 0 else "en", "author": f"author {i % 3}", "input": question.prompt}
        found.append(replace(question, example=replace(question.example, columns=columns)))
    return found


def right_where(right: Sequence[bool], nll: Sequence[float] = ()) -> Answerer:
    """An answerer that is right for the questions whose number says so."""

    def ask(questions: Sequence[Question]) -> list[Answer]:
        numbers = [int(question.example.id, 16) for question in questions]
        given = [q.references[0] if right[i] else "wrong" for i, q in zip(numbers, questions, strict=True)]
        return [Answer(text, nll=nll[i] if nll else 1.0, tokens=2) for i, text in zip(numbers, given, strict=True)]

    return ask


def rows(path: Path, questions: list[Question], tuned: Sequence[bool], base: Sequence[bool] | None) -> list[Row]:
    sides = {"tuned": right_where(tuned)} | ({"base": right_where(base)} if base is not None else {})
    return sample.answered(path / "p.jsonl", questions, sides, ["exact_match", "rougeL", "perplexity"])


def test_every_group_is_counted_as_by_hand(tmp_path: Path) -> None:
    questions, draw = asked(), random.Random(3)
    tuned, base = ([draw.random() < share for _ in questions] for share in (0.7, 0.4))
    slices = {"korean": 'lang == "ko"', "long": "len(input) > 40", "none": "len(prompt) > 1000"}
    groups = differences.grouped(questions, "classification", "author", slices)
    found = differences.slices(rows(tmp_path, questions, tuned, base), MATCH, groups)
    every = range(len(questions))
    members = {
        ("slice", "korean"): [i for i in every if i % 3 == 0],
        ("slice", "long"): [i for i in every if i >= 40],
        ("class", "yes"): [i for i in every if i % 2 == 0],
        ("class", "no"): [i for i in every if i % 2 == 1],
        ("length", "up to 15 characters"): list(every[:15]),
        ("length", "16 to 30 characters"): list(every[15:30]),
        ("length", "31 to 45 characters"): list(every[30:45]),
        ("length", "over 45 characters"): list(every[45:]),
    } | {("author", f"author {k}"): [i for i in every if i % 3 == k] for k in range(3)}
    assert {(each.by, each.name) for each in found} == members.keys()
    for each in found:
        mine = members[each.by, each.name]
        fixed, broken = (sum(a[i] > b[i] for i in mine) for a, b in ((tuned, base), (base, tuned)))
        both = sum(tuned[i] and base[i] for i in mine)
        assert (each.n, each.fixed, each.broken) == (len(mine), fixed, broken)
        assert each.tuned == pytest.approx(sum(tuned[i] for i in mine) / each.n)
        assert each.base == pytest.approx(sum(base[i] for i in mine) / each.n)
        assert each.difference == pytest.approx(each.tuned - each.base)
        expected = statistics.share_difference(both, fixed, broken, each.n - both - fixed - broken)
        assert (each.low, each.high) == pytest.approx(expected)
    for by in ("author", "class"):
        worst_first = [each.difference for each in found if each.by == by]
        assert worst_first == sorted(worst_first)
    rising = [each.name for each in found if each.by == "length"]
    assert rising == [name for by, name in members if by == "length"]


def test_a_metric_with_degrees_counts_rows_that_moved_by_more_than_it_says(tmp_path: Path) -> None:
    questions = asked(20)
    nll = {"tuned": [2.0 * (1.2 if i < 4 else 0.99 if i < 12 else 0.8) for i in range(20)], "base": [2.0] * 20}
    sides = {name: right_where([True] * 20, told) for name, told in nll.items()}
    found = sample.answered(tmp_path / "p.jsonl", questions, sides, ["perplexity", "rougeL"])
    groups = {"slice": {"all": frozenset(q.example.id for q in questions)}}
    (perplexity,) = differences.slices(found, METRICS["perplexity"], groups)
    assert (perplexity.broken, perplexity.fixed) == (4, 8)  # 1 % fewer nats are no change
    assert perplexity.difference < 0 and perplexity.low < perplexity.difference < perplexity.high
    (rouge,) = differences.slices(found, METRICS["rougeL"], groups)
    assert (rouge.broken, rouge.fixed, rouge.difference) == (0, 0, 0.0)


def test_lower_is_better_puts_the_highest_first(tmp_path: Path) -> None:
    questions = asked(30)
    sides = {
        "tuned": right_where([True] * 30, [3.0 if i % 3 == 0 else 1.0 for i in range(30)]),
        "base": right_where([True] * 30, [2.0] * 30),
    }
    found = sample.answered(tmp_path / "p.jsonl", questions, sides, ["perplexity"])
    told = differences.slices(found, METRICS["perplexity"], differences.grouped(questions, "generation", "author"))
    assert next(each.name for each in told if each.by == "author") == "author 0"
    assert told[0].difference > 0 and told[0].broken == 10


def test_small_classes_are_joined_and_one_group_alone_is_not_said(tmp_path: Path) -> None:
    questions = asked(30)
    names = ["a"] * 12 + ["b"] * 12 + ["c"] * 4 + ["d"] * 2
    questions = [replace(q, references=(name,), prompt="same") for q, name in zip(questions, names, strict=True)]
    found = rows(tmp_path, questions, [True] * 30, [False] * 30)
    told = differences.slices(found, MATCH, differences.grouped(questions, "classification", "nowhere"))
    assert [(each.by, each.name, each.n) for each in told] == [
        ("class", "a", 12),
        ("class", "b", 12),
        ("class", "other", 6),
    ]
    alone = [replace(q, references=("a",)) for q in questions]
    assert differences.slices(found, MATCH, differences.grouped(alone, "classification")) == ()


def test_without_a_base_a_group_has_its_score_alone(tmp_path: Path) -> None:
    questions = asked(20)
    found = rows(tmp_path, questions, [i >= 10 for i in range(20)], None)
    told = differences.slices(found, MATCH, differences.grouped(questions, "generation"))
    assert told == (
        Slice("length", "up to 10 characters", 10, 0.0),
        Slice("length", "over 10 characters", 10, 1.0),
    )


def test_a_class_is_scored_by_the_mean_of_its_rows_whatever_the_metric(tmp_path: Path) -> None:
    questions = asked(40)
    sides = {"tuned": sample.classified(["yes", "no"], 0.8, 1), "base": sample.classified(["yes", "no"], 0.3, 2)}
    found = sample.answered(tmp_path / "p.jsonl", questions, sides, ["macro_f1", "accuracy", "auc"])
    groups = differences.grouped(questions, "classification")
    by_f1, by_accuracy = (
        [each for each in differences.slices(found, METRICS[name], groups) if each.by == "class"]
        for name in ("macro_f1", "accuracy")
    )
    assert [(each.tuned, each.base) for each in by_f1] == [(each.tuned, each.base) for each in by_accuracy]
    assert all(each.by == "length" for each in differences.slices(found, METRICS["auc"], {"length": groups["length"]}))


def test_a_slice_that_cannot_be_asked_names_itself_and_the_row() -> None:
    with pytest.raises(SpecError, match="the slice `s` asks for `langg`, which no row has") as caught:
        differences.grouped(asked(6), "generation", slices={"s": "langg == 'ko'"})
    assert (caught.value.where, caught.value.hint) == ("evaluation.slices.s", "did you mean `lang`?")
    with pytest.raises(
        SpecError, match="the slice `s` cannot be asked of this row: `lang > 3` cannot compare 'ko'"
    ) as e:
        differences.grouped(asked(6), "generation", slices={"s": "lang > 3"})
    assert e.value.where == "evaluation.slices.s, rows.jsonl:1"


def test_rows_without_a_slice_s_column_give_a_note_where_they_are_not_the_run_s_own() -> None:
    kept, notes = differences.answerable({"a": "lang == 'ko'", "b": "year > 3"}, [q.example for q in asked(3)])
    assert kept == {"a": "lang == 'ko'"}
    assert notes == ("slice `b`: these rows have no column year",)
