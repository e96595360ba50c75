"""The process of a search: hands trials to the processes that train them, hears how they fare and ends the weak; then
the best opens the test. `python -m luthier.searching RUN`.

Lives here: the order of a search's work, and its waves. Does not live here: the trials' folders (`roster.py`), training
them (`wave.py`), which values come next and who is weak (`trials/`). It computes nothing, and imports nothing heavy.

A search may be ended at any moment and carried again: all that it knows stands in its trials' folders.
"""

from __future__ import annotations

import json
import queue
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier import clusters, engines, errors, hardware, logbook, ownership, redaction, runs, worker
from luthier.engines import Helper
from luthier.errors import TrainingError
from luthier.logbook import Stopped
from luthier.roster import ENDED, Roster, in_words
from luthier.runs import Finished, Run, Started
from luthier.trials import board, page, record, study
from luthier.worker import Stop

JSON, PAGE = "search.json", "report.html"
SAVING_SECONDS = 25  # that waves have to save what they train; a search that is stopped has 30 in all
LOOK_SECONDS = 0.5  # between two looks at wishes
ALIKE = 3  # first trials that fail for one reason: the others would, too


def main() -> int:
    """The process: SIGTERM and SIGINT ask it to save and end. Exit code 0 if the search is done or was stopped."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return worker.work(Path(sys.argv[1]).resolve(), asked.is_set, carry)


def carry(run: Run, stop: Stop) -> Finished:
    """All of a search's work: trials, the best of them, its seeds, its test. Raises LuthierError where it cannot go on,
    Stopped where it was asked to end."""
    search = _Search(run, stop)
    search.begin()
    if (best := search.roster.facts.get("best")) is None:
        search.train(asks=True)
        best = search.choose()
    search.reseed(best)
    search.judge(best)
    return search.conclude(best)


@dataclass(slots=True)
class _Wave:
    """A process that trains trials of one group, and the trials it answers for."""

    helper: Helper | clusters.Helper
    group: str
    base: str
    first: Run | None
    held: set[str]
    last: str = ""  # what it said last, beside its questions


@dataclass(slots=True)
class _Search:
    """A search on its way; what is here dies with the process and is not missed."""

    run: Run
    stop: Stop
    roster: Roster = field(init=False)
    cluster: clusters.Cluster | None = field(init=False)  # None: the processes are of this machine
    waves: list[_Wave] = field(default_factory=list)
    said: queue.SimpleQueue[tuple[_Wave, str | None]] = field(default_factory=queue.SimpleQueue)
    asks: bool = False  # whether the sampler is asked for more trials

    def __post_init__(self) -> None:
        self.roster = Roster(self.run)
        self.cluster = clusters.connect(self.roster.home) if self.run.facts.get("engine") == "ray" else None

    # --- the order of the work
    def begin(self) -> None:
        steps, rows = self.roster.wishes.trials, self.roster.basis.dataset.counts["train"]
        runs.append(self.run.path, Started(self.run.id, self._ended(), time.time(), steps, rows, 0))

    def train(self, asks: bool) -> None:
        """Hand out trials until nobody is at work and none is left."""
        self.asks = asks
        try:
            while True:
                self._look_up()
                carried = self.roster.carried()  # asked first: what is left meanwhile is handed out
                self._begin_waves()
                if not self.waves and not carried:
                    return
                self._hear(LOOK_SECONDS)
        finally:
            self._leave_waves()

    def choose(self) -> str:
        """The winner: best on validation, in the first of the objectives among those that none beats in all."""
        trials = [trial for trial in self.roster.trials() if trial.state == "done" and trial.by != "seed"]
        front = study.front(self.roster.wishes.objective, trials)
        if not front:
            raise self._no_winner()
        best = front[0].run_id
        self.roster.keep(best=best)
        self._note("winner", f"trial {front[0].number:03d} is the best on validation: {in_words(front[0].values)}")
        return best

    def reseed(self, best: str) -> None:
        """Train the winner's experiment with further seeds, to tell merit from luck."""
        winner, seeds = self.roster.run(best), self.roster.wishes.seeds
        first = self.roster.basis.described.seed
        made = {run.facts["values"]["seed"] for run in self.roster.runs() if run.facts["by"] == "seed"}
        for seed in range(first + 1, first + seeds):
            if seed not in made:
                self.roster.make(winner.facts["values"] | {"seed": seed}, "seed")
        self.train(asks=False)

    def judge(self, best: str) -> None:
        """The winner's worker opens the test. Nothing of the others has been asked there."""
        run = self.roster.run(best)
        for _ in range(2):  # it may be ended from outside once
            if (run.path / "report.json").is_file() and run.state == "done":
                self.roster.keep(verdict=run.facts.get("verdict"))
                return
            self._note("progress", f"trial {run.facts['number']:03d} answers the test")
            run = engines.start(run)
            while run.state == "running":
                if self.stop():
                    engines.stop(run)
                    raise Stopped
                time.sleep(0.1)
                run = runs.load(run.path)
            if run.error is not None:
                raise errors.as_it_was(run.error)
        if run.state != "done":
            raise TrainingError("the winner's test was ended from outside", str(run.path / runs.LOG))

    def conclude(self, best: str) -> Finished:
        """The report of the search."""
        found = board.of_search(runs.load(self.run.path), self.roster.trials())
        board.write_json(found, self.run.path / JSON)
        page.write(found, self.run.path / PAGE)
        ended = self._ended()
        reason = f"trial {self.roster.run(best).facts['number']:03d} is the best of {ended}"
        return Finished(self.run.id, ended, time.time(), "done", reason)

    # --- between two answers
    def _look_up(self) -> None:
        """The clock, the wish to stop, what people wish of trials."""
        self.roster.tick()
        if self.stop():
            raise Stopped
        for words in self.roster.hear():
            self._note("wish", words)

    def _hear(self, seconds: float) -> None:
        try:
            wave, line = self.said.get(timeout=seconds)
        except queue.Empty:
            return
        if line is None:
            self._gone(wave)
        else:
            self._answer(wave, line)

    # --- waves
    def _begin_waves(self) -> None:
        """As many processes as pay; the first of a base measures how many those are, alone."""
        while run := self._to_begin():
            placed = self._placement(_base(run))
            slots = min(placed["slots"], self._share(placed)) if placed else None
            helper, threads = self._helper(run.facts["model"]), self._threads(placed)
            told = {"home": str(self.roster.home), "search": str(self.run.path), "slots": slots, "threads": threads}
            helper.say(json.dumps(told))
            wave = _Wave(helper, _group(run), _base(run), run, {run.id})
            self.waves.append(wave)
            threading.Thread(target=self._listen, args=(wave,), daemon=True).start()

    def _helper(self, base: str) -> Helper | clusters.Helper:
        command = ["luthier.wave"]
        return self.cluster.helper(command, base) if self.cluster else Helper(command, self.roster.home, base)

    def _threads(self, placed: dict[str, Any] | None) -> int | None:
        """For one process; None: as many as its machine has to spare."""
        if self.cluster is not None:
            return self.cluster.threads
        return placed.get("threads", hardware.cores() // self._processes(placed)) if placed else None

    def _to_begin(self) -> Run | None:
        """The trial that another process begins with; None where there is none, or no room for a process."""
        if self.waves and len(self.waves) >= self._processes(self._placement(self.waves[0].base)):
            return None
        if (run := self._next(None)) is None:
            return None
        known = self._placement(_base(run))
        return run if not self.waves or (known and len(self.waves) < self._processes(known)) else None

    def _placement(self, base: str) -> dict[str, Any] | None:
        """How many processes and slots pay for a base, as one of its waves has measured; None: not yet."""
        if self.roster.wishes.at_once == 1:
            return {"processes": 1, "slots": 1}
        return dict(self.roster.facts.get("placements", {})).get(base)

    def _processes(self, placed: dict[str, Any] | None) -> int:
        if placed is None:
            return 1
        most = self.cluster.room() if self.cluster else int(placed["processes"])
        return max(1, min(most, self.roster.wishes.at_once or most))

    def _share(self, placed: dict[str, Any]) -> int:
        """The slots of one process, so that all together stay within `at_once`."""
        most = self.roster.wishes.at_once
        return max(1, most // self._processes(placed)) if most else int(placed["slots"])

    def _listen(self, wave: _Wave) -> None:
        for line in wave.helper.lines():
            self.said.put((wave, line))
        self.said.put((wave, None))

    def _leave_waves(self) -> None:
        """Nobody answers any more: every wave saves what it trains and ends, or is ended."""
        for wave in self.waves:
            wave.helper.leave()
        until = time.monotonic() + SAVING_SECONDS
        while self.waves and (left := until - time.monotonic()) > 0:
            try:
                wave, line = self.said.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                wave.helper.kill()
                self.waves.remove(wave)
        for wave in self.waves:
            wave.helper.kill()
        self.waves.clear()

    def _gone(self, wave: _Wave) -> None:
        """A wave has ended: what it has not brought to an end is tried again, once."""
        wave.helper.kill()
        self.waves.remove(wave)
        code = wave.helper.returncode or 0
        why = f"signal {-code}: not enough memory?" if code < 0 else wave.last or f"code {code}"
        unwanted = self.roster.facts.get("unwanted", ())
        for run in map(self.roster.run, sorted(wave.held)):
            if run.state in ENDED or (run.state == "stopped" and run.id in unwanted):
                self._told_end(run)
            elif run.id in unwanted:
                self.roster.unwant(run)
                self._told_end(self.roster.run(run.id))
            elif run.state != "stopped":  # it was asked to save by somebody else, and did
                if self.roster.died(run, why):
                    self._told_end(self.roster.run(run.id))
                else:
                    self._note("retry", f"trial {_number(run)} is tried again: its process ended ({why})")

    # --- questions
    def _answer(self, wave: _Wave, line: str) -> None:
        asked = _question(line)
        if "want" in asked:
            run = self._next_of(wave)
            self._reply(wave, {"run": str(run.path) if run else None})
        elif "heard" in asked:
            self._reply(wave, {"end": self._verdict(asked["heard"])})
        elif "ended" in asked:
            wave.held.discard(asked["ended"])
            self._told_end(self.roster.run(asked["ended"]))
            self._reply(wave, {})
        elif "placed" in asked:
            self.roster.keep(placements=dict(self.roster.facts.get("placements", {})) | {wave.base: asked["placed"]})
            self._reply(wave, {"slots": min(asked["placed"]["slots"], self._share(asked["placed"]))})
        elif line:
            wave.last = redaction.strike(line)
            print(wave.last, flush=True)  # into the search's log

    def _reply(self, wave: _Wave, answer: dict[str, Any]) -> None:
        wave.helper.say(json.dumps(answer))

    def _next_of(self, wave: _Wave) -> Run | None:
        """What the wave trains next: that for which it was begun, else another of its group."""
        self._look_up()
        run, wave.first = wave.first, None
        if run is None or run.id in self.roster.facts.get("unwanted", ()):
            run = self._next(wave.group)
        if run is not None:
            wave.held.add(run.id)
            ownership.withdraw_stop(run.path)  # of an attempt before
        return run

    def _next(self, group: str | None) -> Run | None:
        """A trial that nobody has, of this group (None: of any); where there is none the sampler is asked.

        It may name one of another group: a few of those wait for a process of theirs, then nothing more is asked for
        this one.
        """
        held = {trial for wave in self.waves for trial in wave.held}
        while True:
            waiting = [run for run in self.roster.waiting() if run.id not in held]
            for run in waiting:
                if group in (None, _group(run)):
                    return run
            if len(waiting) >= self._ahead() or not self.asks or not self.roster.may_ask() or not self.roster.ask():
                return None
            self._stop_where_all_fail()

    def _ahead(self) -> int:
        """How many trials may wait: as many as are trained at once."""
        placed = self._placement(self.waves[0].base) if self.waves else None
        return self._processes(placed) * min(placed["slots"], self._share(placed)) if placed else 1

    def _verdict(self, trial: str) -> list[str] | None:
        """Whether the trial ends now, by what it has told."""
        run = self.roster.run(trial)
        if run.facts["by"] == "seed":
            return None
        reason = study.weak(self.roster.wishes, self.roster.trials(), run.facts["number"])
        return ["pruned", reason] if reason else None

    # --- ends
    def _told_end(self, run: Run) -> None:
        trial = record.read(run)
        scores = in_words(trial.scores) if trial.scores else trial.reason or ""
        self._note("trial", f"{_number(run)} is {run.state}: {scores} ({in_words(trial.values)})")
        if run.state == "failed":
            self._stop_where_all_fail()

    def _stop_where_all_fail(self) -> None:
        """What the first trials fail for, each of them, the others would fail for as well."""
        first = [run for run in self.roster.runs() if run.facts["by"] == "sampler"][:ALIKE]
        reasons = {re.sub(r"[\d.,]+", "#", run.error["message"] or "") for run in first if run.error}
        many = len(first) == min(ALIKE, self.roster.wishes.trials)
        if many and all(run.state == "failed" for run in first) and len(reasons) == 1:
            assert first[0].error is not None
            raise errors.as_it_was(first[0].error)

    def _no_winner(self) -> errors.LuthierError:
        failed = [run for run in self.roster.runs() if run.error is not None]
        if failed:
            assert failed[0].error is not None
            return errors.as_it_was(failed[0].error)
        hint = "`luthier search add` adds one; `search.time_limit` and `search.trials` bound how many are made"
        return TrainingError("no trial came to its end: there is none to choose", str(self.run.path), hint)

    def _ended(self) -> int:
        return sum(run.state in ENDED for run in self.roster.runs())

    def _note(self, kind: str, message: str) -> None:
        logbook.note(self.run, kind, message, step=self._ended())


def _question(line: str) -> dict[str, Any]:
    """A wave's question; empty where the line is none."""
    try:
        asked = json.loads(line)
    except ValueError:
        return {}
    return asked if isinstance(asked, dict) else {}


def _group(run: Run) -> str:
    """Which trials can share a process with this one. After a process died under it, it is alone: whose fault it was
    shows."""
    return f"{run.facts['group']} {run.id}" if run.facts.get("retries") else str(run.facts["group"])


def _base(run: Run) -> str:
    """What a placement holds for."""
    return f"{run.facts['model']} {run.facts['method']}"


def _number(run: Run) -> str:
    return f"{run.facts['number']:03d}"


if __name__ == "__main__":
    sys.exit(main())
