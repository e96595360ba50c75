"""Trials of a search that share a base: taken one after another, trained in the slots of one loop, each in its folder.

Lives here: taking a trial, training it beside others, writing how it ends. Does not live here: who hands them out
(`wave.py` asks), training (`train/`), rows and metrics (`sharing.py`), what a folder is owed (`logbook.py`).

A trial may be left at any moment and taken again: it goes on from its checkpoints, and what stands is not done again.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier import hardware, logbook, ownership, runs, spec, workbench
from luthier.errors import TrainingError
from luthier.logbook import Diary, Stopped
from luthier.models import adapters, methods
from luthier.models.methods import Tuned
from luthier.runs import Evaluated, Event, Finished, Run, Started
from luthier.searching import sharing
from luthier.searching.sharing import Group, Laid
from luthier.spec import Training
from luthier.train import placing
from luthier.train.loop import Asked, Job, Wishes, Worth, train
from luthier.trials import rows, space

PATIENCE_SECONDS = 30.0  # a trial's last process may still be saving
ENDED = ("done", "pruned")

Ask = Callable[[Mapping[str, Any]], dict[str, Any] | None]
"""Put a question to the search; None where it is gone."""


# --- a trial on its way ----------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Rider:
    """A trial that this process owns until `hold` is closed. `verdict`: what the search says after its evaluation.
    `worth`: what its validation rows were worth at the newest one; `answers`: what it said there."""

    run: Run
    hold: contextlib.ExitStack
    laid: Laid
    training: Training
    diary: Diary
    steps: int = 1
    verdict: tuple[runs.State, str] | None = None
    worth: Worth | None = None
    answers: sharing.Answers | None = None

    @property
    def experiment(self) -> spec.Experiment:
        return self.laid.bench.experiment

    def job(self) -> Job:
        bench = self.laid.bench
        room = self.run.path / "checkpoints"
        given = (bench.train, bench.validation, room, self.experiment.method)
        return Job(self.run.id, self.training, self.experiment.seed, *given)

    def evaluated(self, best: bool) -> Evaluated | None:
        """The newest evaluation, or that of the weights which are kept."""
        told = [event for event in self.diary.told if isinstance(event, Evaluated) and (event.best or not best)]
        return told[-1] if told else None


@dataclass(frozen=True, slots=True)
class Fit:
    """How trials fit into memory together, and what multiplies: as the first of them found it."""

    recompute: bool | None
    budget: int
    product: str


class Wave:
    """The trials of a search that this process trains. `ask` puts a question to the search, `stop` says when to end."""

    def __init__(self, search: Path, ask: Ask, stop: Callable[[], bool], neighbours: hardware.Neighbours) -> None:
        wishes = workbench.experiment_of(runs.load(search)).search
        assert wishes is not None
        self._wishes, self._wanted = wishes, sharing.measured(wishes.objective)
        self._ask, self._stop, self._neighbours = ask, stop, neighbours
        self._slots: int | None = None
        self._threads = 1
        self._group: Group | None = None
        self._key: str | None = None  # of the group
        self._drained = False
        self._fit: Fit | None = None
        self._waiting: list[Rider] = []  # after what ended a loop of several: each is to go on alone
        self._riders: dict[str, Rider] = {}

    def ride(self, slots: int | None, threads: int | None) -> None:
        """Train trials, `slots` at once on so many threads (None: as measuring finds best), until the search has no
        more of this group, or somebody asks to stop."""
        self._slots, self._threads = slots, threads or self._neighbours.threads()
        while (first := self._next()) is not None:
            try:
                self._together(first)
            except Exception as problem:
                self._go_on_alone(problem)
        for rider in self._waiting:
            self._end(rider, *logbook.ended(rider.run, Stopped()))

    # --- taking trials
    def _next(self) -> Rider | None:
        """Another trial, its rows laid ready; None where there is none, or somebody asks to stop."""
        while not self._stop():
            if self._waiting:
                return self._waiting.pop(0)
            told = None if self._drained else self._ask({"want": self._key})
            if told is None or told["run"] is None:
                self._drained = True
                return None
            if (rider := self._taken(Path(told["run"]))) is not None:
                return rider
        return None

    def _taken(self, path: Path) -> Rider | None:
        """The trial in `path`, owned; None where it has ended already, or ends here."""
        run, hold = runs.load(path), contextlib.ExitStack()
        if run.state in ENDED:  # whoever ended it was killed before the search heard of it
            self._ask({"ended": run.id, "state": run.state, "scores": run.facts.get("scores", {})})
            return None
        self._key = self._key or run.facts["group"]
        if not self._owned(run, hold):
            print(f"{run.id} is carried by another process", file=sys.stderr, flush=True)
            return None
        try:
            if ownership.stop_asked(path):
                raise Stopped
            if self._group is None:
                logbook.note(run, "progress", "loading the base")
                self._group = Group(run, self._wanted)
            logbook.choose(run, self._threads)
            laid = self._group.laid(run)
            logbook.heed(run, laid.bench, laid.findings)
        except Exception as problem:
            self._ended(run, hold, *logbook.ended(run, problem))
            return None
        return Rider(runs.load(path), hold, laid, laid.bench.experiment.training, Diary(run))

    def _owned(self, run: Run, hold: contextlib.ExitStack) -> bool:
        """Own a run until `hold` is closed; whether another process let go of it in time."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and not self._stop():
            try:
                hold.enter_context(runs.owned(run.path))
                return True
            except TrainingError:
                time.sleep(0.1)
        return False

    # --- training them
    def _together(self, first: Rider) -> None:
        """One loop: it begins with `first` and as many beside it as there are slots, and refills each that falls
        free."""
        assert self._group is not None
        self._riders[first.run.id] = first  # whatever ends the loop from here on ends this trial
        method, seed = first.experiment.method, first.experiment.seed
        full = isinstance(method, spec.Full)
        tuned = methods.attach(self._group.lend(), *(([method], [seed]) if full else ([], [])))
        self._board(tuned, first)
        if self._slots is None:
            self._place(tuned, first)
        while not full and len(self._riders) < (self._slots or 1) and (rider := self._next()) is not None:
            self._board(tuned, rider)
        assert self._fit is not None
        wishes = Wishes(
            self._stop,
            self._ends,
            (lambda: None) if full else lambda: self._another(tuned),
            (lambda slots: self._measured(tuned, slots)) if self._wanted else None,
            lambda slot, worth: self._weighed(tuned, slot, worth),
        )
        jobs = [rider.job() for rider in self._riders.values()]
        with contextlib.closing(train(tuned, jobs, wishes, self._fit.budget, self._halved)) as events:
            for event in events:
                self._hear(tuned, event)

    def _another(self, tuned: Tuned) -> Job | None:
        """A trial for a slot that is free, which the loop hangs there."""
        if (rider := self._next()) is None:
            return None
        self._board(tuned, rider)
        return rider.job()

    def _board(self, tuned: Tuned, rider: Rider) -> None:
        """A trial joins the loop; the first decides how all fit into memory, and each writes it down."""
        self._riders[rider.run.id] = rider
        run, asked = rider.run, rider.experiment.training.gradient_checkpointing
        if self._fit is None:
            training, budget, product = logbook.fitted(run, rider.laid.bench, tuned)
            self._fit = Fit(training.gradient_checkpointing, budget, product)
        logbook.keep_choices(run, budget=self._fit.budget, product=self._fit.product)
        recompute = self._fit.recompute if asked is None else asked
        rider.training = rider.experiment.training.model_copy(update={"gradient_checkpointing": recompute})
        tuned.turn.product = self._fit.product
        if tuned.note:
            logbook.note(run, "layout", tuned.note)

    def _place(self, tuned: Tuned, rider: Rider) -> None:
        """How many trials at once are best, measured with the first of them; the search hears of it."""
        assert self._fit is not None
        if not tuned.full:
            tuned.hang(0, rider.experiment.method, rider.experiment.seed)
        places = min(hardware.machine(tuned.base.device.type).processors, self._wishes.trials)
        at_once = self._wishes.at_once or max(space.at_once(self._wishes), places)
        found = placing.measure(tuned, rider.job(), at_once, self._fit.budget)
        placed = {"processes": found.processes, "slots": found.slots_each, "threads": found.threads}
        told = self._ask({"placed": placed | {"figures": dict(found.figures)}}) or {}
        self._slots, self._threads = told.get("slots", found.slots_each), found.threads
        logbook.choose(rider.run, self._threads)

    def _halved(self, tokens: int) -> None:
        assert self._fit is not None
        self._fit = replace(self._fit, budget=tokens)
        for rider in self._riders.values():
            logbook.keep_choices(rider.run, budget=tokens)

    # --- what the loop says and asks
    def _hear(self, tuned: Tuned, event: Event) -> None:
        rider = self._riders[event.run]
        if isinstance(event, Finished):
            self._finish(tuned, rider, event)
            return
        rider.diary.hear(event)
        if isinstance(event, Evaluated) and event.best and rider.worth:
            with contextlib.suppress(OSError):  # a search without intervals is better than none
                parts = {} if rider.answers is None else rider.answers.parts()
                rows.write(rider.run.path, rows.of(rider.worth, parts))
        if isinstance(event, Started):
            rider.steps = event.steps
        if isinstance(event, Started | Evaluated):  # whoever carried it before may not have heard what to do with it
            self._tell(rider)

    def _tell(self, rider: Rider) -> None:
        """Tell the search of the newest evaluation; what it says ends the trial, or not."""
        if (event := rider.evaluated(best=False)) is None:
            return
        share, scores = event.step / rider.steps, runs.to_json(event)["scores"]
        answer = self._ask({"heard": rider.run.id, "step": event.step, "share": share, "scores": scores})
        if answer is not None and answer["end"] is not None:
            state, reason = answer["end"]
            rider.verdict = state, reason

    def _ends(self, run: str) -> tuple[runs.State, str] | None:
        """Whether a trial is to end before its time."""
        rider = self._riders[run]
        if ownership.stop_asked(rider.run.path):
            return "stopped", "ended by a person"
        return rider.verdict

    def _measured(self, tuned: Tuned, slots: Sequence[int]) -> list[dict[str, float]]:
        """The wanted metrics of slots, those together that are asked the same rows in the same way."""
        riders = [self._in(tuned, slot) for slot in slots]
        exams = [rider.laid.exam for rider in riders]
        found: list[dict[str, float]] = [{} for _ in slots]
        for exam in {id(exam): exam for exam in exams if exam is not None}.values():
            places = [place for place, other in enumerate(exams) if other is exam]
            told = sharing.answered(tuned, exam, [slots[place] for place in places], self._unless_asked)
            for place, answers in zip(places, told, strict=True):
                riders[place].answers, found[place] = answers, answers.scores()
        return found

    def _weighed(self, tuned: Tuned, slot: int, worth: Worth) -> None:
        self._in(tuned, slot).worth = worth

    def _unless_asked(self) -> None:
        if self._stop():
            raise Asked

    def _in(self, tuned: Tuned, slot: int) -> Rider:
        """The trial in a slot: its method is the very object that hangs there."""
        method = tuned.slots[slot].method
        return next(rider for rider in self._riders.values() if rider.experiment.method is method)

    # --- how they end
    def _finish(self, tuned: Tuned, rider: Rider, event: Finished) -> None:
        """A trial's training has ended: what it learned is saved, and its folder says how it ended."""
        error = logbook.failure(rider.run, event)
        try:
            folder = workbench.result_of(rider.run)
            if event.state == "done" and not folder.exists():
                method = rider.experiment.method
                slot = next(slot for slot in tuned.slots if slot.method is method)
                adapters.save(tuned, slot, folder)
        except Exception as problem:
            event, error = logbook.ended(rider.run, problem)
        self._end(rider, event, error)

    def _end(self, rider: Rider, end: Finished, error: logbook.Problem | None) -> None:
        self._riders.pop(rider.run.id, None)
        kept = rider.evaluated(best=True)
        scores = {} if kept is None else {name: score for name, score in kept.scores.items() if math.isfinite(score)}
        self._ended(rider.run, rider.hold, end, error, scores)

    def _ended(
        self,
        run: Run,
        hold: contextlib.ExitStack,
        end: Finished,
        error: logbook.Problem | None,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        with hold:
            logbook.close(run, end, error, {"scores": dict(scores or {})})
        self._ask({"ended": run.id, "state": end.state, "scores": dict(scores or {})})

    def _go_on_alone(self, problem: Exception) -> None:
        """What ended a loop: of one trial, its failure; of several, nobody knows whose, so each goes on alone."""
        left = list(self._riders.values())
        if len(left) == 1:
            self._end(left[0], *logbook.ended(left[0].run, problem))
            return
        print(f"{len(left)} trials go on one by one: {problem}", file=sys.stderr, flush=True)
        problem.__traceback__ = None  # its frames hold the base
        self._riders.clear()
        self._waiting, self._slots = left, 1
