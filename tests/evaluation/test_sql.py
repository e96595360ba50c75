"""The sandbox answers run in: what counts as the same result, and what an answer may not do."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from luthier.evaluation import sql
from luthier.evaluation.sql import same_result

SETUP = "CREATE TABLE singer (name TEXT, age INT, pay REAL); INSERT INTO singer VALUES ('Ann', 30, 1.5), ('Bo', 40, 2);"
ALL = "SELECT name FROM singer"
COUNT = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n {}) SELECT {} FROM n"


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
        ("SELECT value FROM json_each('[1, 2]')", "SELECT 1 UNION SELECT 2", True),
        ("WITH old AS (SELECT * FROM singer WHERE age > 35) SELECT name FROM old", "SELECT 'Bo'", True),
        ("SELECT rank() OVER (ORDER BY age) FROM singer", "SELECT 1 UNION SELECT 2", True),
        (COUNT.format("LIMIT 5000", "max(x)"), "SELECT 5000", True),
    ],
)
def test_results_decide(answer: str, reference: str, expected: bool | None) -> None:
    assert same_result(answer, reference, SETUP) is expected


ATTACKS = {
    "delete": "DELETE FROM singer",
    "insert": "INSERT INTO singer VALUES ('Eve', 1, 1)",
    "a second statement": "SELECT name FROM singer; DROP TABLE singer",
    "a write in a common table expression": "WITH a AS (SELECT 1) UPDATE singer SET age = 1",
    "an update of the schema": "UPDATE sqlite_master SET sql = ''",
    "a table": "CREATE TABLE other AS SELECT * FROM singer",
    "a temporary view": "CREATE TEMP VIEW v AS SELECT 1",
    "a transaction": "BEGIN",
    "a pragma": "PRAGMA table_info(singer)",
    "a pragma that lifts a limit": "PRAGMA hard_heap_limit = 0",
    "a pragma as a table": "SELECT name FROM pragma_table_info('singer')",
    "a pragma as a table that lists files": "SELECT file FROM pragma_database_list",
    "attach": "ATTACH '/tmp/other.db' AS other",
    "detach": "DETACH main",
    "an extension": "SELECT load_extension('/tmp/x')",
    "a virtual table": "CREATE VIRTUAL TABLE v USING fts5(x)",
    "a tokenizer's address": "SELECT fts3_tokenizer('simple')",
    "chance": "SELECT name FROM singer ORDER BY random()",
    "chance in bytes": "SELECT randomblob(8)",
    "which sqlite": "SELECT sqlite_version()",
    "a large blob": "SELECT zeroblob(1000000000)",
    "a large text": "SELECT replace(printf('%.900000c', 'x'), 'x', 'yy')",
    "a text that doubles": "WITH RECURSIVE n(x) AS (SELECT 'x' UNION ALL SELECT x || x FROM n) SELECT max(x) FROM n",
    "large rows": COUNT.format("LIMIT 9000", "printf('%.900000c', 'x')"),
    "wide rows": f"SELECT {', '.join(['printf(%.900000c, x)'] * 200)}",
    "a large sort": COUNT.format("LIMIT 5000", "printf('%.900000c%d', 'x', x) AS a") + " ORDER BY a",
    "a large group": COUNT.format("LIMIT 200000", "group_concat(printf('%.1000c', 'x'))"),
    "many rows": COUNT.format("LIMIT 20000", "x"),
    "endless recursion": COUNT.format("", "max(x)"),
    "endless rows": COUNT.format("", "x"),
    "a cross join": "SELECT count(*) FROM " + ", ".join(f"singer t{i}" for i in range(30)),
    "deep parentheses": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "a long statement": "SELECT 1 " + "--" + "x" * 2_000_000,
    "a long pattern": f"SELECT 'a' LIKE '{'%a' * 5000}'",
    "null byte": "SELECT \x00",
    "half a character": "SELECT '\ud800'",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_answer_may_only_read_and_only_so_much(attack: str) -> None:
    assert same_result(ATTACKS[attack], ALL, SETUP) is False
    assert same_result(ALL, "SELECT NAME FROM singer", SETUP) is True  # the next row is judged as if nothing had been
    assert same_result(ALL, ATTACKS[attack], SETUP) is None  # the data file's own queries have the same limits


@pytest.mark.slow  # seconds of processor time are what it is about
def test_one_instruction_may_not_work_for_ever() -> None:
    endless = "SELECT sum(instr(printf('%.900000c', 'a'), printf('%.450000c', 'a') || 'b')) FROM singer"
    assert same_result(endless, ALL, SETUP) is False
    assert same_result(ALL, "SELECT NAME FROM singer", SETUP) is True


@pytest.mark.parametrize("statement", ["ATTACH '{}' AS other; CREATE TABLE other.t (a);", "VACUUM INTO '{}';"])
def test_neither_answer_nor_setup_writes_a_file(statement: str, tmp_path: Path) -> None:
    target = tmp_path / "written.db"
    assert same_result(statement.format(target), ALL, SETUP) is False
    assert same_result(ALL, ALL, SETUP + statement.format(target)) is None
    assert not target.exists()


@pytest.mark.parametrize(
    "setup",
    [
        "PRAGMA temp_store = FILE;",
        "CREATE VIRTUAL TABLE v USING fts5(x);",
        "SELECT load_extension('/tmp/x');",
        "CREATE TABLE n AS " + COUNT.format("", "x") + ";",
        "CREATE TABLE n AS " + COUNT.format("LIMIT 500", "printf('%.900000c', 'x')") + ";",
    ],
)
def test_a_set_up_may_only_fill_tables(setup: str) -> None:
    assert same_result(ALL, ALL, SETUP + setup) is None


def test_a_view_of_the_set_up_may_not_do_what_a_query_may_not() -> None:
    assert same_result("SELECT * FROM v", ALL, SETUP + "CREATE VIEW v AS SELECT random();") is False


def test_a_process_that_is_gone_is_replaced() -> None:
    assert same_result(ALL, "SELECT name FROM singer WHERE 1", SETUP) is True
    [child] = sql._current
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    assert same_result(ALL, "SELECT name FROM singer WHERE 2", SETUP) is True
    assert sql._current[0] is not child


def test_threads_take_turns() -> None:
    start = threading.Barrier(4)

    def ask(thread: int) -> list[bool | None]:
        start.wait()
        return [same_result(f"SELECT {i}", f"SELECT {i % 2 * i}", f"-- {thread}") for i in range(1, 21)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [[True, False] * 10] * 4


def test_the_process_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    child = sql._Child()
    assert child.ask(b'["SELECT 1", "SELECT 1", ""]\n') is True
    assert b"hf_planted" not in Path(f"/proc/{child.process.pid}/environ").read_bytes()
    child.end()
