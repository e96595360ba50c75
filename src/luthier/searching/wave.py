"""A process that trains trials of a search in the slots of one loop: `python -m luthier.searching.wave`.

It asks the search for trials over its standard output, a line of JSON each question, and reads an answer line to each:

    first line read         {"search": FOLDER, "slots": N or null, "threads": K or null,
                             "environment": {NAME: VALUE}, "card": I or null}
    {"want": GROUP or null} → {"run": FOLDER} or {"run": null}: no more trials of this group, or none at all
    {"placed": {…}}         → {}       where `slots` was null: how many processes and slots measuring has found best
    {"heard": ID, "step": N, "share": S, "scores": {…}} → {"end": null} or {"end": [STATE, REASON]}
    {"ended": ID, "state": STATE, "scores": {…}}        → {}       the trial's folder says so already

Every other line it says is for the log. It saves and ends where it is asked to by a signal, or where its standard input
ends, because the search is gone.

Lives here: the process and its pipe. Does not live here: the work (`riding.py`), the search (`lead.py`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier import hardware
from luthier.errors import LuthierError
from luthier.worker import lasting

GRACE_SECONDS = 10.0  # for the answer to a question that was asked when somebody asked this process to end


class Pipe:
    """The search at the other end: one answer line to each question line. `gone`: it will not answer any more."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop
        self._gone = threading.Event()
        self._told = False
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def gone(self) -> bool:
        return self._gone.is_set()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer; None where nobody is there to give it."""
        if self.gone:
            return None
        try:
            print(json.dumps(question, allow_nan=False), flush=True)
        except BrokenPipeError:
            self._gone.set()
            return None
        return self.read()

    def read(self) -> dict[str, Any] | None:
        """The next line that is said; None where none will be, or where nobody says one and this process is to end."""
        waited_since: float | None = None
        while True:
            try:
                line = self._lines.get(timeout=0.2)
                return json.loads(line) if line else None
            except queue.Empty:
                if self._stop():
                    waited_since = waited_since or time.monotonic()
                    if time.monotonic() - waited_since > GRACE_SECONDS:
                        return None

    def _read(self) -> None:
        with open(0, "rb", buffering=0, closefd=False) as said:  # raw: a buffer's lock would outlive us
            for line in said:
                self._lines.put(line)
                self._told = True
        if not self._told:
            os._exit(0)  # in the midst of an import: nobody has said what to do, so nothing is lost
        self._gone.set()
        self._lines.put(b"")


def main() -> int:
    """The process. Exit code 0 when every trial it was given has ended, or stands saved because it was asked to end."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    pipe = Pipe(asked.is_set)
    with lasting():
        from luthier.searching import riding  # heavy: before anybody says what to do

    if (told := pipe.read()) is None:
        return 0
    os.environ.update(told.get("environment", {}))
    if told.get("card") is not None:
        hardware.take_card(told["card"])
    neighbours = hardware.Neighbours()  # from now on: while we waited, those were at work that wait for us now
    try:
        wave = riding.Wave(Path(told["search"]), pipe.ask, lambda: asked.is_set() or pipe.gone, neighbours)
        wave.ride(told["slots"], told["threads"])
    except (LuthierError, OSError) as refusal:
        print(f"error: {refusal}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
