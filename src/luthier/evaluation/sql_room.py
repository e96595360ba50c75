"""The process that runs SQL of strangers: a set-up from a data file, and queries that a model wrote.

Lives here: sqlite's own limits, and those this process lays on itself before it reads anything. Does not live here: who
starts it and what is made of its end (`sql.py`). It imports the standard library alone, and speaks JSON lines.

In: `[reference, answer, setup]`. Out: first `true` or `false` for whether the reference gave a result; if it did,
`true` or `false` for whether the answer gave the same. A breach of a limit that sqlite cannot name ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sqlite3
import sys
from collections import Counter
from typing import Any

# sqlite instructions a query may use, about a quarter of a second: counted in work, so that all machines agree
WORK = 20_000_000
ROWS = 10_000  # of a result
CELLS = 4 << 20  # characters and bytes of a result
CPU_SECONDS = 3.0  # of this process for one query: one instruction may take long, and `WORK` does not see it
MEMORY_BYTES = 512 << 20  # address space; sqlite itself has an eighth of it
_TICK = 10_000
_SQLITE_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,  # bytes of a text, a blob or a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_LIMITS = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 3, "RLIMIT_CORE": 0}

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_LEAVING = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA, sqlite3.SQLITE_CREATE_VTABLE}
_NEVER = {"load_extension", "random", "randomblob", "zeroblob", "sqlite_version", "fts3_tokenizer"}

Rows = list[tuple[Any, ...]]


def main() -> None:
    """Serve until standard input ends."""
    _confine()
    for line in sys.stdin.buffer:
        reference, answer, setup = json.loads(line)
        wanted = result(reference, setup)
        _say(wanted is not None)
        if wanted is not None:
            found = result(answer, setup)
            ordered = is_ordered(reference)
            _say(found is not None and (found == wanted if ordered else Counter(found) == Counter(wanted)))


def _confine() -> None:
    """Give up what a query does not need: memory, files, further processes. Not every system knows every limit."""
    result("SELECT 'a' || 1", "CREATE TABLE t (a)")  # what is loaded on first use is loaded while files can be opened
    for name in _LIMITS.keys() & vars(resource).keys():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(vars(resource)[name], (_LIMITS[name], _LIMITS[name]))


def _say(told: bool) -> None:
    os.write(sys.stdout.fileno(), json.dumps(told).encode() + b"\n")


def result(query: str, setup: str) -> Rows | None:
    """The rows of one reading statement on the database that `setup` makes; None if it fails or breaks a limit."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # then the system ends this process, whatever it is doing
        for limit, most in _SQLITE_LIMITS.items():
            connection.setlimit(limit, most)
        connection.execute(f"PRAGMA hard_heap_limit = {MEMORY_BYTES // 8}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA trusted_schema = OFF")
        _limit_work(connection)
        connection.set_authorizer(_may_build)
        connection.executescript(setup)
        connection.set_authorizer(None)
        connection.execute("PRAGMA query_only = ON")
        connection.set_authorizer(_may_read)
        _limit_work(connection)
        return _rows(connection.execute(query))
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):  # ValueError: a lone surrogate
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.close()


def _rows(cursor: sqlite3.Cursor) -> Rows | None:
    if cursor.description is None:  # an empty text or a comment: sqlite runs it and has nothing to say
        return None
    found: Rows = []
    room = CELLS
    for row in cursor:
        room -= sum(len(cell) if isinstance(cell, (str, bytes)) else 8 for cell in row)
        if room < 0 or len(found) == ROWS:
            return None
        found.append(tuple(float(f"{cell:.9g}") if isinstance(cell, float) else cell for cell in row))
    return found


def _limit_work(connection: sqlite3.Connection) -> None:
    ticks = iter(range(WORK // _TICK))
    connection.set_progress_handler(lambda: next(ticks, None) is None, _TICK)


def _may_build(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """sqlite's authorizer for the set-up: tables and rows, no other file, no setting."""
    refused = action in _LEAVING or _is_never(action, second)
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def _may_read(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """sqlite's authorizer for a query: reading and calculating, nothing else."""
    if action == sqlite3.SQLITE_UPDATE:  # `json_each` is declared so; a real update of that table sqlite never allows
        return sqlite3.SQLITE_OK if first == "sqlite_master" else sqlite3.SQLITE_DENY
    allowed = action in _READING or (action == sqlite3.SQLITE_FUNCTION and not _is_never(action, second))
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _is_never(action: int, name: str | None) -> bool:
    return action == sqlite3.SQLITE_FUNCTION and (name or "").lower() in _NEVER


def is_ordered(query: str) -> bool:
    """Whether the query sorts its own result: ORDER BY outside quotes and parentheses.

    >>> is_ordered("select a from t order  by a"), is_ordered("select 'order by' from (select a from t order by a)")
    (True, False)
    """
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]", "''", query)
    while (shorter := re.sub(r"\([^()]*\)", "", bare)) != bare:
        bare = shorter
    return re.search(r"\border\s+by\b", bare, re.IGNORECASE) is not None


if __name__ == "__main__":
    main()
