"""Climb a ladder: choose every rung's learning rate on validation, then ask and train rung by rung, then decide.

Lives here: the order of the work and where it stands in `ladders/<name>/`. Does not live here: the pieces of work
(`rungs.py`), a run's own work (`worker.py`), the verdict (`evaluation/ladder.py`).

Everything may be killed at any moment: a piece that has left its result, and a run that is done, are not done again.
The test rows are first asked when every learning rate has been chosen.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier import assessment, disk, engines, presets, redaction, rungs, runs, spec, workbench
from luthier.data.examples import Encoded, Example, content_id
from luthier.data.prepare import Dataset
from luthier.errors import DataError, LuthierError, ModelError, SpecError, TrainingError, as_it_was
from luthier.evaluation import ladder, ladder_page, metrics, predictions
from luthier.evaluation.ladder import TITLES, Choice, Ladder, Rung
from luthier.evaluation.metrics import Prediction
from luthier.evaluation.predictions import Question, Row
from luthier.runs import Event, Run, Started, Stepped

FOLDER, JSON, PAGE = "ladders", "ladder.json", "ladder.html"

Show = Callable[[str, Iterable[Event], Run | None], None]
"""Told what happens now, its events (to be followed to their end), and the run if it is one."""


def silently(words: str, events: Iterable[Event], run: Run | None) -> None:
    """Follow the events and say nothing."""
    collections.deque(events, maxlen=0)


@dataclass(frozen=True, slots=True)
class Base:
    """What every rung stands on: the described experiment, its base (at a commit) and what is known of it, its data."""

    described: spec.Experiment
    model: spec.Model
    facts: presets.BaseFacts
    revision: str
    dataset: Dataset

    @property
    def experiment(self) -> spec.Experiment:
        return rungs.changed(self.described, model=self.model)


@dataclass(slots=True)
class _Climb:
    """A ladder on its way: what has been found so far, and what ended a rung."""

    home: Path
    base: Base
    meant: Callable[[spec.Experiment], Run]
    show: Show
    shots: int
    found: dict[str, Rung] = field(default_factory=dict)
    answers: dict[str, list[Prediction]] = field(default_factory=dict)
    metric_names: tuple[str, ...] = ()
    problems: list[LuthierError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.home / FOLDER / (self.base.experiment.name or "run")

    @contextlib.contextmanager
    def rung(self, name: str) -> Iterator[None]:
        """What ends a rung is kept with it, and the ladder goes on."""
        try:
            yield
        except rungs.LeftOut as reason:
            self.found[name] = Rung(name, "left out", reason.message)
            self.problems.append(reason)
            self.show(f"{TITLES[name]} is left out: {reason.message}", (), None)
        except (TrainingError, ModelError, DataError) as problem:
            self.found[name] = Rung(name, "failed", problem.message)
            self.problems.append(problem)
            self.show(f"{TITLES[name]} failed: {problem.message}", (), None)

    def resolved(self, experiment: spec.Experiment) -> presets.Resolved:
        return presets.resolve(experiment, self.base.facts, self.base.dataset.task)

    def piece(self, rung: str, experiment: spec.Experiment, task: Mapping[str, Any], words: str) -> dict[str, Any]:
        """The result of a piece of work beside runs, which is done unless it stands there. Raises what ended it."""
        room, resolved = self.folder / rung, self.resolved(experiment)
        room.mkdir(exist_ok=True)
        disk.sweep(room)
        what = spec.fingerprint(resolved.experiment, self.base.dataset.fingerprint, self.base.revision)
        key = content_id([what, task])
        if (kept := _kept(room / rungs.RESULT, key)) is not None:
            return kept
        text = spec.dump(resolved.experiment, dict(resolved.origins))
        redaction.refuse(text, rungs.EXPERIMENT)
        disk.write_whole(room / rungs.EXPERIMENT, text)
        disk.write_json(room / rungs.TASK, {**task, "key": key, "dataset": str(self.base.dataset.path)})
        with contextlib.closing(working(room, self.home, resolved.experiment.model.name)) as events:
            self.show(words, events, None)
        if (done := _kept(room / rungs.RESULT, key)) is None:
            raise TrainingError("a piece of work left no result", str(room))
        return done


def climb(
    home: Path, base: Base, meant: Callable[[spec.Experiment], Run], shots: int | None = None, show: Show | None = None
) -> Ladder:
    """The ladder of an experiment, done or continued, written to `ladders/<name>/` under `home`.

    `meant` gives the run that an experiment means, begun by nobody. A rung that fails is said and left; where no tuned
    rung comes to its end, what ended the first is raised. Raises SpecError, DataError where nothing can be begun.
    """
    _refuse(base, shots)
    up = _Climb(home, base, meant, show or silently, _shots(base.dataset) if shots is None else shots)
    up.folder.mkdir(parents=True, exist_ok=True)
    with _alone(up.folder):
        disk.sweep(up.folder)
        wanted, choices = rungs.experiments(base.experiment), {}
        for name, experiment in wanted.items():  # all choices first: no test row is asked before
            with up.rung(name):
                choices[name] = _choice(up, name, experiment)
        if not choices:
            raise up.problems[0]
        bare = _ask(up)
        for name, choice in choices.items():
            with up.rung(name):
                _tune(up, name, rungs.at_rate(wanted[name], choice.rate), choice, bare)
        if not any(up.found[name].state == "done" for name in wanted):
            raise up.problems[0]
        return _concluded(up)


def _refuse(base: Base, shots: int | None) -> None:
    if shots is not None and shots < 1:
        raise SpecError(f"`--shots {shots}` shows no example", hint="a number from 1 on")
    if not base.dataset.counts["test"]:
        hint = "`data.test`: a file, or a share of the rows (0.1)"
        raise DataError("a ladder compares on test rows, and there are none", str(base.dataset.path), hint)


def _shots(dataset: Dataset) -> int:
    """Examples before a question where nobody says: one a class, or a few."""
    return min(len(dataset.labels), rungs.MOST_SHOTS) or rungs.SHOTS


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the ladder, alone. The lock is the kernel's: it cannot outlive the process that holds it."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LuthierError(f"ladder `{folder.name}` is being climbed by another process", str(folder)) from None
        yield


# --- pieces of work beside runs ------------------------------------------------------------------------------------
def working(room: Path, home: Path, model: str) -> Generator[Event, None, None]:
    """The events of the piece of work in `room`, done by a process that ends with this one. Raises what ended it."""
    helper, said = engines.Helper(["luthier.rungs", str(room)], home, model), collections.deque([""], maxlen=500)
    try:
        for text in helper.lines():
            if (event := _event(text)) is not None:
                yield event
            elif text:
                said.append(redaction.strike(text))
        if helper.returncode:
            disk.write_whole(room / runs.LOG, "\n".join(said) + "\n")
            raise _ended(said[-1], helper.returncode, room / runs.LOG)
    finally:
        helper.kill()


def _event(text: str) -> Event | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return runs.from_json(json.loads(text))
    return None


def _ended(last: str, code: int, log: Path) -> LuthierError:
    """The error that a process ended with, as it was, by its last words."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return as_it_was(json.loads(last)["error"])
    if code < 0:
        return TrainingError(f"ended from outside (signal {-code}): not enough memory?", str(log))
    return TrainingError(last or f"ended with code {code}", str(log))


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    """The result of a piece of work, if it is of this key."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["key"] == key else None
    return None


# --- rungs -----------------------------------------------------------------------------------------------------------
def _choice(up: _Climb, name: str, experiment: spec.Experiment) -> Choice:
    """The learning rate of a tuned rung, by trials on validation rows around the usual one."""

    try:
        usual = up.resolved(experiment).experiment.training.learning_rate
    except SpecError as refusal:
        raise rungs.LeftOut(refusal.message) from None
    assert usual is not None
    rates = ladder.grid(usual)
    words = f"{TITLES[name]}: which learning rate, {', '.join(f'{rate:g}' for rate in rates)}?"
    found = up.piece(name, experiment, {"kind": "choose", "rates": rates}, words)
    if not found["losses"]:
        return Choice((), (), usual, 0, 0.0, "no validation rows to choose by: the rate is the usual one")
    rate, remark = ladder.best_rate(rates, found["losses"])
    return Choice(rates, tuple(found["losses"]), rate, found["steps"], found["seconds"], remark)


def _ask(up: _Climb) -> list[Row]:
    """The bare base, alone and behind examples. Gives its answers alone."""

    encoder, bare = up.base.facts.family == "encoder", list[Row]()
    for name, shots in (("zero-shot", 0), ("few-shot", up.shots)):
        with up.rung(name):
            if encoder and shots:
                raise rungs.LeftOut("an encoder is not asked in words: it has no prompt for examples")
            words = f"{TITLES[name]}: asking the bare base"
            found = up.piece(name, up.base.experiment, {"kind": "ask", "shots": shots}, words)
            up.notes += [note for note in found["notes"] if note not in up.notes]
            rows = predictions.read(up.folder / name / rungs.ANSWERS)
            up.answers[name] = predictions.side(rows, "base")
            plural = "" if found["shots"] == 1 else "s"
            remark = f"{found['shots']} example{plural} of train" if shots else "most frequent class" if encoder else ""
            up.found[name] = Rung(name, "done", remark, tokens=found["tokens"], shots=found["shots"])
            bare = bare or rows
    return bare


def _tune(up: _Climb, name: str, experiment: spec.Experiment, choice: Choice, bare: list[Row]) -> None:
    """The run of a tuned rung, with a worker on it unless it is done. Raises what ended it."""

    with engines.early(up.home) as waiting:
        try:
            run = up.meant(experiment)
        except SpecError as refusal:
            hint = "with the old values the same command continues it; another `name` begins another ladder"
            raise SpecError(refusal.message, refusal.where, hint) from None
        if run.state != "done":
            _hand_over(bare, run)
            run = engines.start(run, waiting)
    if run.state != "done":
        up.show(f"{TITLES[name]}: run {run.id}", runs.follow(run.path), run)
    run = runs.load(run.path)
    if run.error is not None:
        raise TrainingError(run.error["message"] or "it failed", str(run.path))
    if run.state != "done":
        hint = f"the same command goes on; or `luthier resume {run.id}`"
        raise LuthierError(f"run {run.id} is {run.state}", str(run.path), hint)
    rows = predictions.read(run.path / "predictions.jsonl")
    up.answers[name], up.metric_names = predictions.side(rows, "tuned"), tuple(rows[0].values["tuned"])
    up.found[name] = _rung(up, name, run, choice)


def _hand_over(bare: list[Row], run: Run) -> None:
    """The base's answers to a run that has none yet, as its worker would have written them."""

    path = run.path / "base_predictions.jsonl"
    if path.exists() or not bare:
        return
    asked = [_question(row.sides["base"]) for row in bare]
    judged_by = metrics.by_name(bare[0].values["base"])
    predictions.collect(asked, {"base": assessment.as_given(bare, "base")}, judged_by, path, run.fingerprint)


def _question(told: Prediction) -> Question:
    """The question that a kept answer was given to; nobody will ask it again, so it has no tokens."""

    file, _, line = told.where.rpartition(":")
    example = Example(told.id, "pair", columns=dict(told.columns), file=file, line=int(line))
    nothing = Encoded(told.id, np.zeros(0, np.int32), np.zeros(0, bool))
    return Question(example, nothing, told.prompt, told.references)


def _rung(up: _Climb, name: str, run: Run, choice: Choice) -> Rung:
    """What a run has cost and left."""

    events, method = runs.read_events(run.path), workbench.experiment_of(run).method
    seconds = {event.step: event.seconds for event in events if isinstance(event, Stepped)}
    parameters = max((event.trainable_parameters for event in events if isinstance(event, Started)), default=0)
    kept = sum(path.stat().st_size for path in workbench.result_of(run).glob("*.safetensors"))
    bare = up.found.get("zero-shot")
    virtual = method.virtual_tokens or 0 if isinstance(method, spec.PromptTuning) else 0
    return Rung(
        name,
        "done",
        choice.remark,
        run.id,
        choice=choice,
        seconds=sum(seconds.values()),
        parameters=parameters,
        bytes=kept,
        tokens=(bare.tokens if bare else 0.0) + virtual,
    )


def _concluded(up: _Climb) -> Ladder:
    """The verdict over all rungs, and its files."""
    given, dataset = up.base.experiment, up.base.dataset
    what = {"name": up.folder.name, "model": given.model.name, "dataset": dataset.fingerprint, "task": dataset.task}
    told = [up.found[name] for name in TITLES if name in up.found]
    found = ladder.conclude(what, told, up.answers, metrics.by_name(up.metric_names), up.notes, given.data.group_by)
    ladder.write_json(found, up.folder / JSON)
    disk.write_whole(up.folder / PAGE, ladder_page.render(found))
    return found
