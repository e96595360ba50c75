"""A stand-in for a wave process: speaks as `searching/wave.py` does, owns its trials' folders, and trains by a formula.

Lives here: `Waves`, to be put in the place of `engines.Helper`, and how its trials fare. Does not live here: what is
promised (the tests).
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier import engines, logbook, ownership, runs
from luthier.errors import LuthierError
from luthier.runs import Evaluated, Finished, Run, Started, Stepped

TOKENS = 50  # of an update
STEPS = 4

Loss = Callable[[dict[str, Any]], float]
"""A trial's values → its validation loss at the end."""


def by_rate(values: dict[str, Any]) -> float:
    """Least at a learning rate of 1e-2."""
    return 1.0 + abs(math.log10(values["training.learning_rate"]) + 2.0)


class Died(Exception):
    """As by signal 9: nothing is written any more."""

    code = -9


class Lost(Died):
    """With the machine it was on, one of several."""

    code = engines.LOST


class Waves:
    """Makes helpers that train as `loss` says, in `slots` at once, and remembers what happened in `told`.

    `before`: called with a trial before each of its updates; what it raises ends that process.
    """

    def __init__(self, loss: Loss = by_rate, slots: int = 1, processes: int = 1) -> None:
        self.loss, self.placed = loss, {"processes": processes, "slots": slots, "threads": 1}
        self.told: list[tuple[Any, ...]] = []
        self.before: Callable[[Run, int], None] = lambda run, step: None
        self.most, self.living, self.made = 0, 0, 0
        self.all: list[Wave] = []

    def __call__(self, command: Sequence[str], home: Path, *models: str) -> Wave:
        assert list(command) == ["luthier.searching.wave"]
        self.made += 1
        self.all.append(Wave(self))
        return self.all[-1]


class Wave:
    def __init__(self, waves: Waves) -> None:
        self._waves, self._said = waves, queue.SimpleQueue[str | None]()
        self.returncode: int | None = None
        self.heard: list[str] = []
        self.killed = False

    def say(self, text: str) -> None:
        self.heard.append(text)
        self._said.put(text)

    def leave(self) -> None:
        self._said.put(None)

    def kill(self) -> None:
        self.killed = True
        self._said.put(None)

    def lines(self) -> Iterator[str]:
        self._waves.living += 1
        self._waves.most = max(self._waves.most, self._waves.living)
        try:
            yield "loading"
            yield from self._ride()
            self.returncode = 0
        except Died as death:
            self.returncode = death.code
        except Exception as problem:
            yield f"{problem}"
            self.returncode = 1
        finally:
            self._waves.living -= 1

    def _ride(self) -> Iterator[str]:
        told = self._read() or {}
        slots, group = told.get("slots"), None
        if slots is None and told:
            yield json.dumps({"placed": self._waves.placed})
            slots = (self._read() or {"slots": 1})["slots"]
        riding: list[_Trial] = []
        drained = not told
        with contextlib.ExitStack() as hold:
            try:
                while True:
                    while not drained and len(riding) < slots:
                        yield json.dumps({"want": group})
                        answer = self._read()
                        drained = answer is None or answer["run"] is None
                        if answer is not None and answer["run"] is not None:
                            riding.append(_Trial(runs.load(Path(answer["run"])), self._waves, hold))
                            group = riding[-1].run.facts["group"]
                    if not riding:
                        return
                    for trial in list(riding):
                        event = trial.step()
                        answer = {}
                        if event is not None:
                            step, scores = event.step, event.scores
                            yield json.dumps(
                                {"heard": trial.run.id, "step": step, "share": step / STEPS, "scores": scores}
                            )
                            answer = self._read()
                        if answer is None:  # the search is gone
                            for left in riding:
                                left.end("stopped", "asked to stop")
                            return
                        if trial.over(answer.get("end")):
                            riding.remove(trial)
                            yield json.dumps({"ended": trial.run.id, "state": trial.state, "scores": trial.scores})
                            self._read()
            except Died:
                for trial in riding:
                    runs.update(trial.run.path, {"owner": None})  # whose process is gone
                raise

    def _read(self) -> dict[str, Any] | None:
        line = self._said.get()
        if line is None:
            self._said.put(None)  # nobody will say more
            return None
        return json.loads(line)


class _Trial:
    """A trial on its way; how far it is stands in its events."""

    def __init__(self, run: Run, waves: Waves, hold: contextlib.ExitStack) -> None:
        self.run, self._waves = run, waves
        self._hold = hold.enter_context(contextlib.ExitStack())
        self._hold.enter_context(runs.owned(run.path))
        told = [event.step for event in runs.read_events(run.path) if isinstance(event, Evaluated)]
        self.at, self.state, self.scores = max(told, default=0), "", dict[str, float]()
        waves.told.append(("began", run.facts["number"], self.at))
        runs.append(run.path, Started(run.id, self.at, 0.0, STEPS, 10, 100))

    def step(self) -> Evaluated | None:
        """One update; None where it fails, was told to stop, or there is none left."""
        if ownership.stop_asked(self.run.path) or self.at == STEPS:
            return None
        try:
            self._waves.before(self.run, self.at + 1)
        except LuthierError as problem:
            self._close(*logbook.ended(self.run, problem))
            return None
        self.at += 1
        loss = self._waves.loss(self.run.facts["values"]) + (STEPS - self.at)
        runs.append(self.run.path, Stepped(self.run.id, self.at, 0.0, 0.0, loss, 0.0, 0.0, TOKENS, 0.0))
        event = Evaluated(self.run.id, self.at, 0.0, {"loss": loss}, True)
        runs.append(self.run.path, event)
        self.scores = event.scores
        return event

    def over(self, verdict: list[str] | None) -> bool:
        """Whether the trial has ended, by that verdict, a person's wish, or all of its updates."""
        if self.state:
            return True
        if ownership.stop_asked(self.run.path):
            self.end("stopped", "asked to stop")
        elif verdict:
            self.end(*verdict)
        elif self.at == STEPS:
            self.end("done", "all updates")
        return bool(self.state)

    def end(self, state: Any, reason: str) -> None:
        self._close(Finished(self.run.id, self.at, 0.0, state, reason), None)

    def _close(self, end: Finished, error: logbook.Problem | None) -> None:
        self.state = end.state
        logbook.close(self.run, end, error, {"scores": self.scores})
        self._hold.close()
        self._waves.told.append((end.state, self.run.facts["number"], self.at))
