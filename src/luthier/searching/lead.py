"""The process of a search: its trials, the best of them, the best once more with other seeds, and the best on the test.
`python -m luthier.searching.lead [RUN]`; without one it is told which.

Lives here: the order of a search's work. Does not live here: who trains the trials (`handing.py`), their folders
(`roster.py`), what is made of them (`trials/`). It computes nothing, and imports nothing heavy.

A search may be ended at any moment and carried again: all that it knows stands in its trials' folders.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from luthier import engines, errors, hardware, runs, spec, worker
from luthier.engines import Helper
from luthier.errors import LuthierError, TrainingError
from luthier.evaluation import report
from luthier.logbook import Stopped
from luthier.runs import Finished, Run, Started, State
from luthier.searching import handing
from luthier.searching.handing import Hands, cluster_of
from luthier.searching.roster import Roster, in_words
from luthier.trials import board, conclude, page, record, rows, study
from luthier.trials.board import Board
from luthier.worker import Stop

LOOK_SECONDS = 0.1  # between two looks at the winner's worker


def main() -> int:
    """The process: SIGTERM and SIGINT ask it to save and end. Exit code 0 if the search is done or was stopped."""
    spares = [] if sys.argv[1:] else [handing.local_wave(runs.home())]  # it imports while somebody describes the search
    path = Path(sys.argv[1]) if sys.argv[1:] else worker.the_run()
    if path is None:
        return 0
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return worker.work(path.resolve(), asked.is_set, lambda run, stop: carry(run, stop, spares))


def carry(run: Run, stop: Stop, spares: Sequence[Helper] = ()) -> Finished:
    """All of a search's work, and its page at every end; `spares`: processes for it that wait. Raises LuthierError
    where it cannot go on, Stopped where it was asked to end."""
    try:
        ended = _to_the_test(run, stop, spares)
    except Exception as end:
        with contextlib.suppress(Exception):  # a page that cannot be made does not hide why the search ended
            tell(run, "stopped" if isinstance(end, Stopped) else "failed")
        raise
    found = tell(run, "done")
    return Finished(run.id, ended, time.time(), "done", found.headline)


def _to_the_test(run: Run, stop: Stop, spares: Sequence[Helper]) -> int:
    """Its trials, its winner, the winner's seeds and test; gives how many trials have come to an end."""
    roster = Roster(run)
    if spares and hardware.cores() > 1 and roster.wishes.at_once != 1:
        with contextlib.suppress(OSError):  # no room for another process: then for fewer
            spares = [*spares, handing.local_wave(roster.home)]  # it imports while the first one measures
    planned, examples = roster.wishes.trials, roster.basis.dataset.counts["train"]
    runs.append(run.path, Started(run.id, roster.ended(), time.time(), planned, examples, 0))
    with cluster_of(run) as cluster:
        hands = Hands(roster, stop, cluster, spares=list(spares))
        if (best := roster.facts.get("best")) is None:
            hands.train(asks=True)
            best = choose(roster)
        reseed(roster, best)
        hands.train(asks=False)
    judge(roster, best, stop)
    return roster.ended()


def tell(run: Run, state: State) -> Board:
    """The board of a search that ends so, left in its folder, and as a page."""
    found = board_of(runs.load(run.path), state)
    board.write_json(found, run.path / board.FILE)
    page.write_html(found, run.path / board.PAGE)
    return found


def choose(roster: Roster) -> str:
    """The winner: best on validation, in the first of the objectives among the trials that none beats in all."""
    trials = [trial for trial in roster.trials() if trial.state == "done" and trial.by != "seed"]
    front = study.front(roster.wishes.objective, trials)
    if not front:
        raise _no_winner(roster)
    roster.keep(best=front[0].run_id)
    roster.note("winner", f"trial {front[0].number:03d} is the best on validation: {in_words(front[0].values)}")
    return front[0].run_id


def _no_winner(roster: Roster) -> LuthierError:
    for run in roster.runs():
        if run.error is not None:
            return errors.as_it_was(run.error)
    hint = "`luthier search add` adds one; `search.trials` and the search's limits bound how many are made"
    return TrainingError("no trial came to its end: there is none to choose", str(roster.path), hint)


def reseed(roster: Roster, best: str) -> None:
    """The winner's experiment with further seeds, as trials that nobody can win by: to tell merit from luck."""
    values = roster.run(best).facts["values"]
    first = values.get("seed", roster.basis.described.seed)  # its own is no further one
    made = {run.facts["values"]["seed"] for run in roster.runs() if run.facts["by"] == "seed"}
    for seed in range(first + 1, first + roster.wishes.seeds):
        if seed not in made:
            roster.make(values | {"seed": seed}, "seed")


def judge(roster: Roster, best: str, stop: Stop) -> None:
    """The winner's worker opens the test. Nothing of the others has been asked there."""
    run = roster.run(best)
    for _ in range(2):  # it may be ended from outside once
        if run.state == "done" and (run.path / "report.json").is_file():
            roster.keep(verdict=run.facts.get("verdict"))
            return
        roster.note("progress", f"trial {run.facts['number']:03d} answers the test")
        run = engines.start(run)
        while run.state == "running":
            if stop():
                engines.stop(run)
                raise Stopped
            time.sleep(LOOK_SECONDS)
            run = runs.load(run.path)
        if run.error is not None:
            raise errors.as_it_was(run.error)
    raise TrainingError("the winner's test was ended from outside", str(run.path / runs.LOG))


def board_of(search: Run, state: State | None = None) -> Board:
    """What a search has found so far, at its end or on its way; `state`: what it will be when this is read."""
    roster = Roster(search)
    wishes, best = roster.wishes, search.facts.get("best")
    done: State = "done"  # so was the winner when it was chosen; it runs again while it answers the test
    trials = [replace(trial, state=done) if trial.run_id == best else trial for trial in roster.trials()]
    names = record.objectives(wishes.objective)
    aims = [conclude.aim(name, higher) for name, higher in zip(names, study.directions(wishes.objective), strict=True)]
    axes = tuple(
        board.Axis(each.path, each.kind, each.low, each.high, each.log, tuple(map(conclude.plain, each.choices)))
        for each in roster.space.dimensions
    )
    resolved = spec.leaves(spec.load(search.path / "resolved.yaml"))
    own = {axis.path: conclude.plain(resolved.get(axis.path)) for axis in axes}
    told = {name: str(search.facts[name]) for name in ("model", "method", "task")}
    rows_asked = roster.basis.dataset.counts["validation"]
    if names[0] != "loss":  # a metric is asked of as many rows as the report's
        rows_asked = min(rows_asked, roster.basis.described.evaluation.limit or rows_asked)
    known = conclude.Search(
        search.id,
        search.name,
        state or search.state,
        tuple(aims),
        axes,
        own,
        rows_asked,
        told,
        tuple(search.facts["notes"]),
        next((trial.number for trial in trials if trial.run_id == best), None),
    )
    kept = {trial.number: found for trial in trials if (found := rows.read(Path(trial.path))) is not None}
    place = roster.run(best).path / "report.json" if best else None
    tested = report.read_json(place) if place is not None and place.is_file() else None
    weights = study.importance(roster.space, wishes, trials)
    return conclude.conclude(known, trials, kept, weights, tested)


if __name__ == "__main__":
    sys.exit(main())
