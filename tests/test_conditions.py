"""Conditions on rows: what they say, what they refuse, and that nothing of them is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier import spec
from luthier.errors import SpecError
from luthier.spec import conditions

ROW = {"input": "어디예요?", "lang": "ko", "age": "31", "score": 0.5, "tags": ["a", "b"], "gone": None}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('lang == "ko"', True),
        ('lang != "ko"', False),
        ("len(input) > 4 and lang in ('ko', 'ja')", True),
        ("len(input) > 200 or not lang == 'en'", True),
        ("lower('ABC') == 'abc' and '예' in input", True),
        ("age > 30", True),  # a table's cells are text
        ("age == 31 and 30 < age <= 31", True),
        ("score < 1 and score > -1", True),
        ("'a' in tags and 'c' not in tags", True),
        ("len(tags) == 2", True),
        ("missing == None and gone == None", True),
        ("missing > 3 or missing < 3", False),
        ("len(missing) == 0 and lower(missing) == ''", True),
        ("'x' in missing", False),
        ("'x' not in missing", True),
        ("lang", True),
        (" True ", True),
    ],
)
def test_what_a_condition_says_of_a_row(text: str, told: bool) -> None:
    assert conditions.holds(conditions.read(text), ROW) is told


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "(lambda: 1)()",
        "input.__class__",
        "input[0]",
        "[x for x in input]",
        "1 + 1",
        "2 ** 99999",
        "-input",
        "len(input, lang)",
        "len(x=1)",
        "len(*tags)",
        "lang is 'ko'",
        "f'{input}'",
        "(y := 3)",
        "lang if age else 1",
        "b'x' == lang",
        "... == lang",
        "{'a': 1}",
        "[input]",
        "yield lang",
        "lang ==",
        "lang = 'ko'",
        "import os",
        "",
        "a\0b",
        "(" * 300 + "1" + ")" * 300,
        "x" * 1001,
    ],
)
def test_anything_else_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"condition|called|longer"):
        conditions.read(text)


@pytest.mark.parametrize("text", ["len(score) > 3", "lower(tags) == 'a'", "lang > 3", "tags < 3", "3 in score"])
def test_columns_that_cannot_be_compared_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot compare|has no"):
        conditions.holds(conditions.read(text), ROW)


def test_a_wrong_condition_is_refused_with_its_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("model: m\ndata: d.jsonl\nevaluation:\n  slices:\n    long: len(input > 3\n", encoding="utf-8")
    with pytest.raises(
        SpecError, match=r"`evaluation.slices` cannot use the condition of `long`: `len\(input > 3`"
    ) as e:
        spec.load(path)
    assert e.value.where == f"{path}:4"
    assert "names of columns, constants" in e.value.message


@pytest.mark.parametrize("given", [{"a": 3}, {"a": ""}, {"": "x"}, ["x"], "x"])
def test_slices_are_names_with_conditions(given: Any) -> None:
    with pytest.raises(SpecError, match=r"evaluation\.slices"):
        spec.from_mapping({"model": "m", "data": "d", "evaluation": {"slices": given}})


def test_a_slice_may_be_given_in_the_shell_and_a_regression_file_lies_beside_the_experiment(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("model: m\ndata: d.jsonl\nevaluation: {regression: old.jsonl}\n", encoding="utf-8")
    (tmp_path / "old.jsonl").write_text("{}", encoding="utf-8")
    found = spec.load(path, ['evaluation.slices.ko.kr="ko" in lang']).evaluation
    assert found.slices == {"ko.kr": '"ko" in lang'}
    assert found.regression == str(tmp_path / "old.jsonl")
