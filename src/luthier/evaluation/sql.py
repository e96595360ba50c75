"""Does an SQL answer find what the reference finds: both run on the row's own little sqlite database.

Lives here: the life of the process that runs them. Does not live here: what runs in it and its limits (`sql_room.py`),
where the statements come from (a row's column `setup`, its reference, the model's answer).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from luthier import redaction


@lru_cache(maxsize=1 << 14)  # intervals and tests ask for a row again
def same_result(answer: str, reference: str, setup: str) -> bool | None:
    """True if both queries give the same rows on the database that `setup` makes; None if the reference itself fails.

    Rows are compared as a multiset, in order if the reference sorts its result. Column names do not count, 1 equals
    1.0, floats are compared to 9 digits. An answer that fails, writes, or takes too much work or memory is wrong.
    """
    line = json.dumps([reference, answer, setup]).encode() + b"\n"
    with _lock:
        if not (_current and _current[0].usable):
            _current[:] = [_Child()]
        return _current[0].ask(line)


class _Child:
    """The process. It ends with this one, or by breaking a limit."""

    def __init__(self) -> None:
        room = Path(__file__).with_name("sql_room.py")
        self.owner, self.ended = os.getpid(), False
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(room)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=redaction.inherited(),
            process_group=0,  # Ctrl-C is for who started it; it ends when its input does
        )
        atexit.register(self.end)

    @property
    def usable(self) -> bool:
        """Whether it is alive and this process's own: after a fork the pipe belongs to the other one."""
        return self.owner == os.getpid() and not self.ended and self.process.poll() is None

    def ask(self, line: bytes) -> bool | None:
        """What `same_result` gives. A process that ends over the reference has no verdict, over the answer: wrong."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: the missing reply says so
            self.process.stdin.write(line)  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        if not self._reply():
            return None
        return bool(self._reply())

    def _reply(self) -> bool | None:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line.endswith(b"\n"):
            self.end()
            return None
        return bool(json.loads(line))

    def end(self) -> None:
        """Make sure that it is gone, if it is this process's own."""
        atexit.unregister(self.end)
        self.ended = True
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]


_lock = threading.Lock()
_current: list[_Child] = []
