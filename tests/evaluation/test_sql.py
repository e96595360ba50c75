"""The sandbox answers run in: what counts as the same result, and what an answer may not do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from luthier.evaluation.sql import same_result

SETUP = "CREATE TABLE singer (name TEXT, age INT, pay REAL); INSERT INTO singer VALUES ('Ann', 30, 1.5), ('Bo', 40, 2);"
ALL = "SELECT name FROM singer"


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("select NAME from singer;", ALL, True),
        ("select name from singer order by age desc", ALL, True),  # the reference does not sort: any order will do
        (ALL, "SELECT name FROM singer ORDER BY age DESC", False),
        ("SELECT name FROM singer ORDER BY pay DESC", "SELECT name FROM singer ORDER BY age DESC", True),
        ("SELECT pay + 0.5 FROM singer WHERE age = 40", "SELECT 2.5", True),
        ("SELECT 2.0", "SELECT 2", True),
        ("SELECT 0.1 + 0.2", "SELECT 0.3", True),
        ("SELECT name, age FROM singer", ALL, False),
        ("SELECT name FROM singer UNION ALL SELECT name FROM singer", ALL, False),  # rows are counted
        ("SELECT nme FROM singer", ALL, False),
        ("the names of all singers", ALL, False),
        ("", "SELECT name FROM singer WHERE age > 99", False),  # saying nothing is not an empty result
        ("-- nothing", "SELECT name FROM singer WHERE age > 99", False),
        (ALL, "SELECT nme FROM singer", None),  # the reference does not run: nothing can be said
    ],
)
def test_results_decide(answer: str, reference: str, expected: bool | None) -> None:
    assert same_result(answer, reference, SETUP) is expected


@pytest.mark.parametrize(
    "answer",
    [
        "DELETE FROM singer",
        "SELECT name FROM singer; DROP TABLE singer",
        "PRAGMA table_info(singer)",
        "SELECT load_extension('/tmp/x')",
        "SELECT zeroblob(1000000000)",
        "SELECT \x00",
        "SELECT '\ud800'",
    ],
)
def test_an_answer_may_only_read(answer: str) -> None:
    assert same_result(answer, ALL, SETUP) is False
    assert same_result(ALL, ALL, SETUP) is True


@pytest.mark.parametrize("statement", ["ATTACH '{}' AS other; CREATE TABLE other.t (a);", "VACUUM INTO '{}';"])
def test_neither_answer_nor_setup_writes_a_file(statement: str, tmp_path: Path) -> None:
    target = tmp_path / "written.db"
    assert same_result(statement.format(target), ALL, SETUP) is False
    assert same_result(ALL, ALL, SETUP + statement.format(target)) is None
    assert not target.exists()


def test_endless_work_ends() -> None:
    start = time.perf_counter()
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    assert same_result(endless, ALL, SETUP) is False
    assert time.perf_counter() - start < 10
