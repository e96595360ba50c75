"""Does an SQL answer find what the reference finds: both run on the row's own little sqlite database.

Lives here: the sandbox (in memory, read-only, limited in work and size) and the comparison of results.
Does not live here: where the statements come from (a row's column `setup`, its reference, the model's answer).
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from functools import lru_cache
from typing import Any

# sqlite instructions a query may use, about a quarter of a second: counted in work, so that all machines agree
WORK = 20_000_000
ROWS = 10_000  # result rows that are compared
_TICK = 10_000
_LARGEST = 1_000_000  # bytes of a string, blob or statement

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_LEAVING = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA, sqlite3.SQLITE_CREATE_VTABLE}
_NEVER = {"load_extension", "random", "randomblob", "zeroblob", "sqlite_version", "fts3_tokenizer"}

Table = list[tuple[Any, ...]]


def same_result(answer: str, reference: str, setup: str) -> bool | None:
    """True if both queries give the same rows on the database that `setup` makes; None if the reference itself fails.

    Rows are compared as a multiset, in order if the reference sorts its result. Column names do not count, 1 equals
    1.0, floats are compared to 9 digits. An answer that fails, writes, or works for too long is wrong.
    """
    wanted = _result(reference, setup)
    if wanted is None:
        return None
    found = _result(answer, setup)
    if found is None:
        return False
    return found == wanted if is_ordered(reference) else Counter(found) == Counter(wanted)


def is_ordered(query: str) -> bool:
    """Whether the query sorts its own result: ORDER BY outside quotes and parentheses.

    >>> is_ordered("select a from t order  by a"), is_ordered("select 'order by' from (select a from t order by a)")
    (True, False)
    """
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]", "''", query)
    while (shorter := re.sub(r"\([^()]*\)", "", bare)) != bare:
        bare = shorter
    return re.search(r"\border\s+by\b", bare, re.IGNORECASE) is not None


@lru_cache(maxsize=4096)
def _result(query: str, setup: str) -> tuple[tuple[Any, ...], ...] | None:
    """The rows of one reading statement, None if it fails."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        _limit_work(connection)
        connection.set_authorizer(_may_build)  # the set-up comes from a data file: it may not leave memory either
        connection.executescript(setup)
        connection.set_authorizer(_may_read)
        _limit_work(connection)
        cursor = connection.execute(query)
        if cursor.description is None:  # an empty text or a comment: sqlite runs it and has nothing to say
            return None
        rows = cursor.fetchmany(ROWS)
        return tuple(tuple(_plain(cell) for cell in row) for row in rows)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError):  # ValueError: a NUL or a lone surrogate
        return None
    finally:
        connection.close()


def _limit_work(connection: sqlite3.Connection) -> None:
    ticks = iter(range(WORK // _TICK))
    connection.set_progress_handler(lambda: next(ticks, None) is None, _TICK)


def _may_build(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """sqlite's authorizer for the set-up: tables and rows, no other file, no setting."""
    refused = action in _LEAVING or _is_never(action, second)
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def _may_read(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """sqlite's authorizer for a query: reading and calculating, nothing else."""
    allowed = action in _READING or (action == sqlite3.SQLITE_FUNCTION and not _is_never(action, second))
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _is_never(action: int, name: str | None) -> bool:
    return action == sqlite3.SQLITE_FUNCTION and (name or "").lower() in _NEVER


def _plain(cell: Any) -> Any:
    return float(f"{cell:.9g}") if isinstance(cell, float) else cell
