"""A search of tiny trials without a search process: its folders, and the other side of a wave's pipe, by a script.

Lives here: `Trials`, which makes queued trials and answers the questions of forked waves. Does not live here: what a
wave promises (`searching/test_wave.py`, `faults/test_wave_kills.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier import drafts, runs, spec
from luthier.searching import wave
from luthier.studio import Studio
from tests import rows, tiny
from tests.faults.victims import Trap, fork, wait

LORA = {"type": "lora", "rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
TRAINING = {"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "evaluate_every": 4, "save_every": 3}
QUIET = {"compare_base": False, "limit": 4, "max_new_tokens": 2}
SPREAD: tuple[dict[str, Any], ...] = (
    {},
    {"method.rank": 4, "method.alpha": 8, "training.learning_rate": 3e-2},
    {"method.target_modules": ["all-linear"], "training.batch_size": 3, "training.num_epochs": 1},
    {"method.dropout": 0.0, "seed": 7, "training.schedule": "cosine", "training.accumulate_steps": 2},
)
"""Trials that differ in all that slots of one loop may differ in."""

ENDED = ("done", "pruned", "failed")
Said = dict[str, Any]


class Trials:
    """Trials of one experiment, each with other values, in the home `folder`/home."""

    def __init__(self, folder: Path, kind: str = "tiny_llama", **parts: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.studio = folder, Studio(folder / "home")
        objective = parts.pop("objective", "loss")
        values = {"name": "tiny", "model": str(tiny.build(kind)), "task": "generation"}
        self.values = values | {"method": LORA, "training": TRAINING, "evaluation": QUIET} | parts
        self.values.setdefault("data", str(rows.pairs(folder)))
        searching = spec.from_mapping(self.values | {"search": {"trials": 4, "objective": objective}})
        files = {"resolved.yaml": spec.dump(searching)}
        self.search = runs.create(self.studio.home, "tiny", "f00d", files, {"kind": "search"})
        self.made: list[Path] = []
        self.said: list[Said] = []

    def draft(self, changes: dict[str, Any]) -> drafts.Draft:
        values: dict[str, Any] = json.loads(json.dumps(self.values))
        for path, value in changes.items():
            *inner, last = path.split(".")
            place = values
            for part in inner:
                place = place[part]
            place[last] = value
        return self.studio.draft(spec.from_mapping(values))

    def add(self, *changes: dict[str, Any]) -> list[Path]:
        """Queued trials with these values."""
        begun = len(self.made)
        for number, values in enumerate(changes, begun):
            known = {"search": self.search.id, "number": number, "values": values, "by": "sampler", "group": "g"}
            run_id = f"{self.search.id}.{number:03d}"
            self.made.append(drafts.create(self.draft(values), self.studio.home, run_id, known).path)
        return self.made[begun:]

    def alone(self, changes: dict[str, Any]) -> Path:
        """The same experiment as a run of its own, begun by nobody."""
        return drafts.create(self.draft(changes), self.studio.home).path

    def wave(
        self,
        *traps: Trap,
        slots: int | None = 2,
        verdict: Callable[[Said], Any] = lambda heard: None,
        leave_after: int | None = None,
        terminate_after: int | None = None,
    ) -> int:
        """A wave process rides all trials that have not ended; gives its exit code, or minus the signal that ended it.

        What it said is kept in `said`. After so many evaluations nobody answers any more (`leave_after`), or the
        process is asked to end (`terminate_after`).
        """
        told, answer = os.pipe()
        question, said = os.pipe()
        pid = fork(lambda: _work(told, said, (answer, question)), traps, self.folder / "log")
        os.close(told)
        os.close(said)
        heard = 0

        def reply(asked: Said) -> Said | None:
            nonlocal heard
            if "heard" not in asked:
                return {}
            heard += 1
            if heard == terminate_after:
                os.kill(pid, signal.SIGTERM)
            return None if heard == leave_after else {"end": verdict(asked)}

        try:
            self.converse(question, answer, slots, reply)
        finally:
            code = wait(pid)
        return code

    def converse(
        self, question: int, answer: int, slots: int | None, reply: Callable[[Said], Said | None] = lambda _: {}
    ) -> None:
        """The search's side: trials are handed out in turn, all else is answered by `reply` (None: by nobody, ever)."""
        waiting = [path for path in self.made if runs.load(path).state not in ENDED]
        first = {"search": str(self.search.path), "slots": slots, "threads": 1}
        self.said = []
        with open(question, "rb", buffering=0) as lines, open(answer, "wb", buffering=0) as to:
            _tell(to, first)
            for line in lines:
                if (asked := _question(line)) is None:
                    continue
                self.said.append(asked)
                if "want" in asked:
                    _tell(to, {"run": str(waiting.pop(0)) if waiting else None})
                elif (told := reply(asked)) is not None:
                    _tell(to, told)
                else:
                    to.close()

    def told(self, kind: str) -> list[Said]:
        """The questions of one kind that the last wave put."""
        return [said for said in self.said if kind in said]


def _work(told: int, said: int, others: Sequence[int]) -> int:
    """The process: what it reads and says goes through the pipe, as `engines` would have laid it."""
    for handle in others:
        os.close(handle)
    os.dup2(told, 0)
    os.dup2(said, 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
    return wave.main()


def _tell(to: io.FileIO, answer: Said) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended, or nobody answers any more
        to.write(json.dumps(answer).encode() + b"\n")


def _question(line: bytes) -> Said | None:
    try:
        asked = json.loads(line)
    except ValueError:
        return None
    return asked if isinstance(asked, dict) else None
