"""Verbs that tune: tune, ladder, and stop, resume, watch of what is under way.

Lives here: arguments, and what is printed where. Does not live here: the verbs themselves (`studio.py`), how a run and
a ladder look on their way (`progress.py`, `climbed.py`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import runs
from luthier.cli import progress, searched
from luthier.cli import show as screen
from luthier.cli.commands import common
from luthier.cli.commands.common import EXPERIMENT, NOTHING, READING, File, Json, Set, SomeRun, Word
from luthier.errors import SpecError
from luthier.runs import Run

if TYPE_CHECKING:
    from luthier.spec import Experiment
    from luthier.studio import Studio


def tune(
    file: File = EXPERIMENT,
    sets: Set = NOTHING,
    accept: Annotated[list[str], typer.Option("--accept", help="A finding you accept.", metavar="CODE")] = NOTHING,
    new: Annotated[bool, typer.Option("--new", help="Begin another run, whatever stands.")] = False,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Train so many times, each with another seed.")] = 1,
    trial: Annotated[
        str | None, typer.Option("--from", help="Train a trial of a search alone, not a file.", metavar="SEARCH.007")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tune, evaluate, and give a verdict. The same command again prints it, or continues what was interrupted."""
    if trial is not None:
        _tune_trial(trial, (*sets, *accept), new, seeds, as_json)
        return
    here, experiment = common.studio(), _accepting(common.experiment(file, sets), accept)
    trained = []
    for further in range(seeds):
        with screen.busy(READING):
            run = here.tune(experiment, new, further)
        trained.append(common.carry(here, run, as_json))
    if seeds > 1:
        _tell_seeds(here, trained, as_json)


def _tune_trial(word: str, changes: tuple[str, ...], new: bool, seeds: int, as_json: bool) -> None:
    """A trial once more, as it is: what it scored is what comes out."""
    if changes or seeds > 1:
        hint = "`luthier search clone TRIAL --set …` tries other values; a file of them: experiment.yaml in its folder"
        raise SpecError("--from trains a trial as it is: --set, --accept and --seeds do not go with it", hint=hint)
    here = common.studio()
    with screen.busy(READING):
        run = here.again(here.find(word), new)
    common.carry(here, run, as_json)


def _accepting(experiment: Experiment, codes: list[str]) -> Experiment:
    """The experiment with more codes in its `data.accept`: so the run records that a person accepted them."""
    if not codes:
        return experiment
    every = tuple(dict.fromkeys((*experiment.data.accept, *codes)))
    data = experiment.data.model_copy(update={"accept": every})
    return experiment.model_copy(update={"data": data})


def _tell_seeds(here: Studio, trained: list[Run], as_json: bool) -> None:
    """What the runs say together, the metric that leads last on standard output."""
    found = here.seeds(trained)
    if as_json:
        screen.json_line({"seeds": [asdict(each) for each in found]})
        return
    for each in found[1:]:
        screen.say(each.sentence)
    screen.say(f"report: {trained[0].path / 'report.html'}")
    if found:
        screen.line(found[0].sentence)


def ladder(
    file: File = EXPERIMENT,
    sets: Set = NOTHING,
    shots: Annotated[int | None, typer.Option(help="Examples before a few-shot question.", metavar="K")] = None,
    as_json: Json = False,
) -> None:
    """From the bare base to full tuning: the cheapest way that is enough. The same command again goes on."""
    from luthier.cli import climbed

    here, experiment = common.studio(), common.experiment(file, sets)
    try:
        found = climbed.climb(here, experiment, shots)
    except KeyboardInterrupt:
        raise typer.Exit(1) from None
    if as_json:
        screen.as_json(found)
        return
    screen.table([name.format(found.metric.replace("_", " ")) for name in climbed.COLUMNS], climbed.rows(found))
    for note in found.notes:
        screen.say(f"note: {note}")
    screen.say(f"page: {here.home / 'ladders' / found.name / 'ladder.html'}")
    screen.line(found.sentence)


def stop(run: Word) -> None:
    """Ask a run to save and end; `luthier resume` continues it."""
    here = common.studio()
    stopped = here.stop(here.find(run))
    screen.say(f"{stopped.id} is {stopped.state}" + progress.how_to_go_on(stopped))


def resume(run: Word, as_json: Json = False) -> None:
    """Continue a run that was stopped, interrupted or failed."""
    here = common.studio()
    common.carry(here, here.resume(here.find(run)), as_json)


def watch(run: SomeRun = None, as_json: Json = False) -> None:
    """Follow a run or a search that is under way. Ctrl-C ends the watching, not the run."""
    here = common.studio()
    found = here.find(run)
    if found.facts.get("kind") == "search":
        searched.follow(found, screen.err(), screen.line if as_json else None)
        screen.say(f"search {found.id} is {runs.load(found.path).state}; its trials: luthier show {found.id}")
    else:
        progress.draw(here.watch(found), screen.err(), screen.line if as_json else None)
