"""The processes that train a search's trials: how many there are, which trial goes to which, what they ask.

Lives here: handing out, hearing, trying again what a process left when it died. Does not live here: the trials' folders
(`roster.py`), the order of a search's work (`lead.py`), the process itself (`wave.py`), which values come next and
who is weak (`trials/`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import engines, errors, hardware, ownership, redaction, runs
from luthier.engines import Helper
from luthier.logbook import Stopped
from luthier.runs import Run
from luthier.searching.roster import ENDED, Roster, in_words
from luthier.trials import record, space, study
from luthier.worker import Stop

if TYPE_CHECKING:
    from luthier.searching import clusters
    from luthier.searching.clusters import Cluster

SAVING_SECONDS = 25  # that waves have to save what they train; a search that is stopped has 30 in all
LOOK_SECONDS = 0.5  # between two looks at wishes
ALIKE = 3  # first trials that fail for one reason: the others would, too


@contextlib.contextmanager
def cluster_of(run: Run) -> Iterator[Cluster | None]:
    """The cluster that the search's processes run on; None: they run here."""
    if run.facts.get("engine", "here") != "ray":
        yield None
        return
    from luthier.searching import clusters

    with contextlib.closing(clusters.connect(run.path.parents[1])) as cluster:
        yield cluster


def local_wave(home: Path) -> Helper:
    """A process that can train trials, on this machine; it is told later which."""
    return engines.Helper(["luthier.searching.wave"], home)


@dataclass(slots=True)
class _Wave:
    """A process that trains trials of one group, and the trials it answers for."""

    helper: Helper | clusters.Helper
    group: str
    base: str
    first: Run | None
    held: set[str]
    card: int | None  # the graphics card it computes on, where this machine has several
    last: str = ""  # what it said last, beside its questions


@dataclass(slots=True)
class Hands:
    """What hands out a search's trials; all of it dies with the process and is not missed."""

    roster: Roster
    stop: Stop
    cluster: Cluster | None
    waves: list[_Wave] = field(default_factory=list)
    said: queue.SimpleQueue[tuple[_Wave, str | None]] = field(default_factory=queue.SimpleQueue)
    asks: bool = False  # whether the sampler is asked for more trials
    spares: list[Helper] = field(default_factory=list)  # processes that have begun to import, and wait
    failed: set[str] = field(default_factory=set)  # trials that did so under an attempt before: it may be mended by now

    def train(self, asks: bool) -> None:
        """Hand out trials until nobody is at work and none is left."""
        self.asks = asks
        self.failed |= {run.id for run in self.roster.runs() if run.state == "failed"}
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

    # --- between two answers
    def _look_up(self) -> None:
        """The clock, the wish to stop, what people wish of trials."""
        self.roster.tick()
        if self.stop():
            raise Stopped
        for words in self.roster.hear(self._held()):
            self.roster.note("wish", words)

    def _hear(self, seconds: float) -> None:
        try:
            wave, line = self.said.get(timeout=seconds)
        except queue.Empty:
            return
        if line is None:
            self._gone(wave)
        else:
            self._answer(wave, line)

    def _held(self) -> set[str]:
        """The trials that processes have."""
        return {trial for wave in self.waves for trial in wave.held}

    # --- waves
    def _begin_waves(self) -> None:
        """As many processes as pay; the first of a base measures how many those are, alone."""
        while run := self._to_begin():
            placed = self._placement(_base(run))
            slots = self._slots(placed) if placed else None
            helper, threads = self._helper(run.facts["model"]), self._threads(placed)
            tokens = {} if self.cluster else engines.tokens(run.facts["model"])
            told = {"search": str(self.roster.path), "slots": slots, "threads": threads}
            wave = _Wave(helper, _group(run), _base(run), run, {run.id}, self._card())
            helper.say(json.dumps(told | {"environment": tokens, "card": wave.card}))
            self.waves.append(wave)
            threading.Thread(target=self._listen, args=(wave,), daemon=True).start()

    def _card(self) -> int | None:
        """A graphics card that no other process here has; None where there are not several."""
        cards = 0 if self.cluster else len(hardware.graphics_cards(os.environ))
        taken = {wave.card for wave in self.waves}
        return next((card for card in range(cards) if card not in taken), 0) if cards > 1 else None

    def _threads(self, placed: dict[str, Any] | None) -> int | None:
        """For one process; None: as many as its machine has to spare."""
        if self.cluster is not None:
            return self.cluster.threads
        return placed.get("threads", hardware.cores() // self._processes(placed)) if placed else None

    def _helper(self, model: str) -> Helper | clusters.Helper:
        if self.cluster is not None:
            return self.cluster.helper(["luthier.searching.wave"], model)
        while self.spares:
            if (spare := self.spares.pop(0)).returncode is None:
                return spare
            spare.kill()
        return local_wave(self.roster.home)

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
        room = self.cluster.room() if self.cluster else placed["processes"]
        return max(1, min(room, self.roster.wishes.at_once or room))

    def _slots(self, placed: dict[str, Any]) -> int:
        """The slots of one process: what pays, and no more than its part of what may be trained at once."""
        wishes, processes = self.roster.wishes, self._processes(placed)
        share = space.at_once(wishes) / processes
        return max(1, min(int(placed["slots"]), math.floor(share) if wishes.at_once else math.ceil(share)))

    def _listen(self, wave: _Wave) -> None:
        try:
            for line in wave.helper.lines():
                self.said.put((wave, line))
        except Exception as problem:  # of whatever kind: a process that nobody hears must not be waited for
            self.said.put((wave, f"it is not heard any more: {type(problem).__name__}: {problem}"))
        finally:
            self.said.put((wave, None))

    def _leave_waves(self) -> None:
        """Nobody answers any more: every wave saves what it trains and ends, or is ended."""
        self._leave_spares()
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

    def _leave_spares(self) -> None:
        while self.spares:
            self.spares.pop().kill()

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
            elif run.state != "stopped" and not self._carried_by_another(run):  # stopped: by a signal, and saved
                if code == engines.LOST:  # no fault of the trial's, however often
                    self.roster.note("retry", f"trial {_number(run)} goes on elsewhere: {why}")
                elif self.roster.died(run, why):
                    self._told_end(self.roster.run(run.id))
                else:
                    self.roster.note("retry", f"trial {_number(run)} is tried again: its process ended ({why})")

    def _carried_by_another(self, run: Run) -> bool:
        """Whether a process that we have not begun has it: of an attempt before, on this machine. On a cluster, a node
        that is gone looks alive for a while."""
        return self.cluster is None and runs.owner(run.path) is not None

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
            if self._processes(asked["placed"]) == 1:
                self._leave_spares()
            self._reply(wave, {"slots": self._slots(asked["placed"])})
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
        held = self._held()
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
        return self._processes(placed) * self._slots(placed) if placed else 1

    def _verdict(self, trial: str) -> list[str] | None:
        """Whether the trial ends now, by what it has told."""
        run = self.roster.run(trial)
        if run.facts["by"] == "seed":
            return None
        end = study.weak(self.roster.wishes, self.roster.trials(), run.facts["number"])
        return list(end) if end else None

    # --- ends
    def _told_end(self, run: Run) -> None:
        trial = record.read(run)
        done = run.state == "done" and trial.scores
        said = in_words(trial.scores) if done and trial.scores else trial.reason or ""
        self.roster.note("trial", f"{_number(run)} is {run.state}: {said} ({in_words(trial.values)})")
        if run.state == "failed":
            self._stop_where_all_fail()

    def _stop_where_all_fail(self) -> None:
        """What the first trials fail for, each of them, the others would fail for as well."""
        drawn = [run for run in self.roster.runs() if run.facts["by"] == "sampler"]
        first = [run for run in drawn if run.id not in self.failed][:ALIKE]
        reasons = {re.sub(r"[\d.,]+", "#", run.error["message"] or "") for run in first if run.error}
        many = len(first) == min(ALIKE, self.roster.wishes.trials)
        if many and all(run.state == "failed" for run in first) and len(reasons) == 1:
            assert first[0].error is not None
            raise errors.as_it_was(first[0].error)


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
