"""A search on its way, read from the folders of its trials: who is at work, how each fares, how much is left.

Lives here: following a search, its state as rows, how it is said in lines and JSON; `luthier.search`. Does not live
here: the live table (`wave_table.py`), one run on its way (`progress.py`), the search itself (`searching/`).
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from luthier import events, runs
from luthier.cli import progress
from luthier.cli import show as screen
from luthier.cli.progress import SECONDS_BETWEEN_LINES, clock
from luthier.runs import Evaluated, Event, Finished, Noted, Run, Started, State, Stepped

if TYPE_CHECKING:
    from luthier.spec import Experiment
    from luthier.studio import Engine

LOOK_SECONDS = 0.4
ENDED: tuple[State, ...] = ("done", "pruned", "failed")
COUNTED: tuple[State, ...] = ("done", "pruned", "running", "failed", "stopped", "interrupted")
TOLD_BY_ROWS = ("trial", "progress")  # kinds of notes that the live table shows anyway
ENOUGH = 2  # trials that have ended before anything is foretold


@dataclass(frozen=True, slots=True)
class Row:
    """A trial as far as its folder tells. `curve`: (step, score) of each evaluation on validation; `kept`: the score of
    the weights it keeps; `worked`: updates made since the search's present attempt began, as a share of all it plans.
    """

    number: int
    id: str
    by: str
    values: Mapping[str, Any]
    state: State
    step: int = 0
    steps: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    kept: float | None = None
    worked: float = 0.0

    @property
    def share(self) -> float:
        """How much of its planned updates is made."""
        return self.step / self.steps if self.steps else 0.0


def after(row: Row, event: Event, objective: str, begun: float) -> Row:
    """The row once `event` has been heard; `begun`: when the search's present attempt began."""
    if isinstance(event, Started):
        kept = tuple(point for point in row.curve if point[0] <= event.step)  # what comes after is made again
        return replace(row, step=event.step, steps=event.steps, curve=kept)
    if isinstance(event, Stepped):
        new = 1 / row.steps if row.steps and event.time >= begun else 0.0
        return replace(row, step=event.step, worked=row.worked + new)
    if isinstance(event, Evaluated) and objective in event.scores:
        score = event.scores[objective]
        curve = (*(point for point in row.curve if point[0] != event.step), (event.step, score))
        return replace(row, curve=curve, kept=score if event.best or row.kept is None else row.kept)
    return row


@dataclass(frozen=True, slots=True)
class Goal:
    """What a search makes best, how many trials it plans at most, which parameters it varies, whether time or tokens
    end it before."""

    objective: str
    higher: bool
    trials: int
    paths: tuple[str, ...]
    limited: bool = False

    def best(self, rows: Iterator[Row] | list[Row]) -> Row | None:
        """The row of the best kept score; seeds of the winner do not compete."""
        able = [row for row in rows if row.by != "seed" and row.kept is not None and math.isfinite(row.kept)]
        able = [row for row in able if row.state in ("done", "running")]
        return (max if self.higher else min)(able, key=lambda row: row.kept or 0.0, default=None)


def goal(search: Run) -> Goal:
    """What the search's folder says of its aim."""
    from luthier import spec

    wishes = spec.load(search.path / "resolved.yaml").search or spec.Search()
    objective = wishes.objective.partition(",")[0].strip()  # of several the first chooses the winner
    limited = wishes.time_limit is not None or wishes.token_limit is not None
    return Goal(objective, _is_higher_better(objective), wishes.trials, tuple(wishes.space), limited)


def _is_higher_better(objective: str) -> bool:
    if objective in ("loss", "size"):
        return False
    from luthier.evaluation import metrics

    return metrics.by_name((objective,))[0].higher_is_better


class Following:
    """A search that is followed: each look reads what its folder and its trials' folders have gained."""

    def __init__(self, search: Run) -> None:
        self.run, self.goal = search, goal(search)
        self.rows: dict[str, Row] = {}
        self.doing = ""  # what the search says that it does now
        self._offsets: dict[Path, int] = {}
        self._first = True

    @property
    def at_rest(self) -> bool:
        return self.run.state not in ("queued", "running")

    def look(self) -> list[Event]:
        """What has happened since the last look, the search's own events before those of its trials.

        The first look gives the present attempt's events of the search, and none of trials that have ended.
        """
        self.run = runs.load(self.run.path)  # asked first: what was said before it rested is read
        news = self._new_events(self.run.path)
        for event in news:
            if isinstance(event, Noted) and event.kind == "progress":
                self.doing = event.message
        if self._first and self.run.started:
            news = [event for event in news if event.time >= self.run.started]
        for path in sorted(self.run.path.parent.glob(f"{self.run.id}.[0-9]*/{runs.RECORD}")):
            known = self.rows.get(path.parent.name)
            if known is None or known.state not in ENDED:
                told = self._read(path.parent, known)
                news += told if not self._first or self.rows[path.parent.name].state == "running" else []
        self._first = False
        return news

    def _read(self, folder: Path, known: Row | None) -> list[Event]:
        run = runs.load(folder)  # its state first: what it told before is read then
        told = self._new_events(folder)
        facts = run.facts
        row = known or Row(facts["number"], run.id, facts["by"], facts["values"], run.state)
        for event in told:
            row = after(row, event, self.goal.objective, self.run.started or 0.0)
        self.rows[run.id] = replace(row, state=run.state)
        return told

    def _new_events(self, folder: Path) -> list[Event]:
        told, self._offsets[folder] = events.complete_lines(folder, self._offsets.get(folder, 0))
        return told

    # --- in words
    def sorted(self) -> list[Row]:
        """Every trial by number."""
        return sorted(self.rows.values(), key=lambda row: row.number)

    def left(self) -> int:
        """Trials of the plan that have not begun."""
        planned = max(self.goal.trials, sum(row.by == "sampler" for row in self.rows.values()))
        begun = sum(row.by == "sampler" and row.state != "queued" for row in self.rows.values())
        return planned - begun + sum(row.by != "sampler" and row.state == "queued" for row in self.rows.values())

    def seconds_left(self, now: float) -> float | None:
        """About how long the rest takes, by the trials that have ended; None where it cannot be said."""
        rows = [row for row in self.rows.values() if row.by == "sampler"]
        ended = [row.share for row in rows if row.state in ("done", "pruned")]
        worked = sum(row.worked for row in rows)
        settled = self.goal.limited or self.at_rest or self.run.facts.get("best")
        if settled or len(ended) < ENOUGH or not worked or not self.run.started:
            return None
        usual = sum(ended) / len(ended)
        ends = [
            usual if row.share < usual else 1.0 for row in rows if row.state == "running"
        ]  # who outlives most stays
        running = sum(ends) - sum(row.share for row in rows if row.state == "running")
        return (usual * self.left() + running) * (now - self.run.started) / worked


def counts(followed: Following, now: float) -> str:
    """`7 done · 3 pruned · 4 running · 2 left · 0:41 left`"""
    by_state = Counter(row.state for row in followed.rows.values())
    told = [f"{by_state[state]} {state}" for state in COUNTED if by_state[state]]
    if followed.run.state not in ENDED and followed.left() and not followed.goal.limited:
        told.append(f"{followed.left()} to come")
    if followed.run.facts.get("best") and not followed.at_rest and followed.doing:
        told.append(followed.doing)
    if (seconds := followed.seconds_left(now)) is not None:
        told.append(f"about {clock(seconds)} left")
    return " · ".join(told) or followed.doing or "preparing"


def brief(search: Run) -> dict[str, Any]:
    """What a listing says of a search: trials by state, the best of them so far and its score on validation."""
    followed = Following(search)
    followed.look()
    best = followed.goal.best(followed.sorted())
    by_state = Counter(row.state for row in followed.rows.values())
    told: dict[str, Any] = {"trials": {state: by_state[state] for state in (*COUNTED, "queued") if by_state[state]}}
    return told | {
        "planned": followed.goal.trials,
        "objective": followed.goal.objective,
        "best": best and {"run": best.id, "values": dict(best.values), "score": best.kept},
    }


def run_row(search: Run) -> tuple[Any, ...]:
    """A search in the listing of runs: counts and the best so far in place of its trials."""
    told = brief(search)
    counted = ", ".join(f"{count} {state}" for state, count in told["trials"].items())
    best = (
        told["best"]
        and f"best {told['best']['run'].rpartition('.')[2]}: {told['objective']} {told['best']['score']:.4g}"
    )
    words = search.error["message"] if search.error else search.facts.get("verdict")
    *first, method, task, created, _ = screen.run_row(search)
    said = "; ".join(each for each in (counted or "no trial yet", best, words) if each)
    return *first, f"search: {method}", task, created, said


def summary(row: Row, paths: tuple[str, ...]) -> str:
    """`003: learning_rate 0.0032, rank 8`"""
    names = short_names((*paths, *(path for path in row.values if path not in paths)))
    values = ", ".join(f"{names[path]} {short(value)}" for path, value in row.values.items())
    return f"{row.number:03d}: {values}"


def short_names(paths: tuple[str, ...]) -> dict[str, str]:
    """Each path's last part, or the whole path where two end alike.

    >>> short_names(("method.rank", "training.seed", "data.seed"))
    {'method.rank': 'rank', 'training.seed': 'training.seed', 'data.seed': 'data.seed'}
    """
    many = Counter(path.rpartition(".")[2] for path in paths)
    return {path: path if many[path.rpartition(".")[2]] > 1 else path.rpartition(".")[2] for path in paths}


def short(value: Any) -> str:
    """A value as a cell of a table: three digits, a list's parts beside each other.

    >>> short(0.00316228), short(["q_proj", "v_proj"]), short(True), short(None)
    ('0.00316', 'q_proj v_proj', 'true', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return " ".join(short(part) for part in value)
    return " ".join(str(value).split())


# --- following ---------------------------------------------------------------------------------------------------
def follow(search: Run, console: Console, as_json: Callable[[str], None] | None = None) -> None:
    """Follow a search to its rest: a live table on a terminal, else lines, with `as_json` each event as one."""
    followed = Following(search)
    if as_json is not None:
        _json(followed, as_json)
    elif console.is_terminal:
        from luthier.cli import wave_table

        wave_table.draw(followed, console)
    else:
        _lines(followed, console)


def looks(followed: Following) -> Iterator[list[Event]]:
    """Look until the search rests."""
    while True:
        yield followed.look()
        if followed.at_rest:
            return
        time.sleep(LOOK_SECONDS)


def _json(followed: Following, as_json: Callable[[str], None]) -> None:
    for news in looks(followed):
        for event in news:
            as_json(json.dumps(runs.to_json(event), ensure_ascii=False))


def _lines(followed: Following, console: Console) -> None:
    spoken = time.monotonic()
    for news in looks(followed):
        said = [words for event in news if (words := remark(event, followed))]
        if not said and time.monotonic() - spoken > SECONDS_BETWEEN_LINES:
            said = [counts(followed, time.time())]
        for words in said:
            spoken = time.monotonic()
            console.print(Text(words), soft_wrap=True, highlight=False)


def remark(event: Event, followed: Following) -> str | None:
    """What an event of a search or of a trial says in a line."""
    row = followed.rows.get(event.run)
    if row is not None:
        begun = isinstance(event, Started) and f"{summary(row, followed.goal.paths)}: {event.steps:,} steps"
        return begun or None
    if isinstance(event, Noted):
        return event.message
    if isinstance(event, Finished):
        return f"{event.state}: {event.reason}"
    return None


# --- from Python ---------------------------------------------------------------------------------------------------
def search(experiment: Experiment | str | Path, new: bool = False, engine: Engine = "here", **wishes: Any) -> Run:
    """Search, and give the winner's run, whose verdict on the test is printed; progress goes to standard error.

    `wishes` (space, trials, sampler, …: the fields of `Search`) join those that the experiment has. The same search
    again gives the same winner, or goes on (`Studio.search` says when). Raises what ended the search.
    """
    from luthier import spec
    from luthier.studio import Studio, described, done, report

    studio, given = Studio(), described(experiment)
    before = given.search or spec.Search()
    own = {name: value for name, value in before if name in before.model_fields_set}
    fields = dict(given) | {"search": spec.Search(**own | wishes)}
    whole = spec.Experiment.model_construct(given.model_fields_set | {"search"}, **fields)
    for warning in spec.advice(whole):
        screen.say(f"note: {warning}")
    run = studio.search(whole, new, engine)
    run = done(run if run.state == "done" else progress.carry(studio, run, follow=follow))
    winner = studio.find(run.facts["best"])
    print(report(winner).verdict)
    return winner
