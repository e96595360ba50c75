"""Engines as child processes that wait, told to do some steps at a time, so that several can be timed in turns."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import time
from pathlib import Path

from .machine import busy_seconds

CHILD = Path(__file__).resolve().parents[1] / "peers" / "child.py"
FOREIGN = 0.1  # of a core used by others while an engine worked: the turn counts as disturbed


class Died(Exception):
    """The engine ended before it answered; the message is the end of what it wrote."""


class Child:
    """One engine on one job. `log` takes whatever it prints."""

    def __init__(self, python: Path, engine: str, job: Path, log: Path) -> None:
        self.engine, self.log = engine, log
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [python, str(CHILD), engine, str(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    def answer(self, seconds: float) -> dict:
        """The next answer, a dictionary. Raises Died, also after so many seconds of silence."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if waiting.select(seconds) else ""
        if not line:
            self.close()
            said = [text.strip() for text in self.log.read_text(errors="replace").splitlines() if text.strip()]
            errors = [text for text in said if re.match(r"[\w.]*(Error|Exception|Exit)\b", text)]
            raise Died((errors or said or [f"no answer within {seconds:.0f} s"])[-1][:300])
        return json.loads(line)

    def steps(self, count: int, seconds: float) -> dict:
        """Let it do `count` steps. The answer has `seconds`, `losses`, `peak_bytes`, and `foreign`: other people's
        share of a core meanwhile."""
        busy, started = busy_seconds(), time.perf_counter()
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        told = self.answer(seconds)
        wall = time.perf_counter() - started
        told["foreign"] = max(0.0, busy_seconds() - busy - told["cpu_seconds"]) / wall
        # a tick of the system's clock is 10 ms: what is less than three of them says nothing
        told["disturbed"] = told["foreign"] > FOREIGN and told["foreign"] * wall > 0.03
        return told

    def close(self) -> None:
        """Tell it to end, and wait."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
