"""What verbs share: their arguments, the studio, the experiment of a file, a run followed to its end.

Lives here: what two groups of verbs need. Does not live here: any verb (the other modules of this folder).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import leaderboard, progress, searched
from luthier.cli import show as screen
from luthier.runs import Run

if TYPE_CHECKING:
    from luthier.spec import Experiment
    from luthier.studio import Studio

File = Annotated[Path, typer.Argument(help="The experiment file.", metavar="FILE")]
Word = Annotated[str, typer.Argument(help="A run: its id, the end of it, or its name.", metavar="RUN")]
SomeRun = Annotated[str | None, typer.Argument(help="A run; without one the newest.", metavar="RUN")]
Set = Annotated[list[str], typer.Option("--set", help="Change a parameter: path=value.", metavar="PATH=VALUE")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EXPERIMENT = Path("experiment.yaml")
NOTHING: list[str] = []
READING = "reading the data and the base's configuration"


def studio() -> Studio:
    from luthier.studio import Studio

    return Studio()


def experiment(file: Path, sets: list[str]) -> Experiment:
    """The experiment in a file, with a word for each value outside its document's range."""
    from luthier import spec

    experiment = spec.load(file, sets)
    for warning in spec.advice(experiment):
        screen.say(f"note: {warning}")
    return experiment


def carry(here: Studio, run: Run, as_json: bool) -> Run:
    """Follow a run, or a search, to its end and say its verdict; one that is done already says it at once."""
    from luthier import studio

    is_search = run.facts.get("kind") == "search"
    called = f"{'search' if is_search else 'run'} {run.id}"
    screen.say(f"{called} is done already" if run.state == "done" else f"{called}: {run.path}")
    if run.state != "done":
        try:
            run = progress.carry(here, run, screen.line if as_json else None, searched.follow if is_search else None)
        except KeyboardInterrupt:
            raise typer.Exit(1) from None
    if is_search:
        leaderboard.tell_end(studio.done(run), as_json)
        return run
    told = studio.report(studio.done(run))
    if as_json:
        screen.json_line({"run": run.id, "verdict": told.verdict, "report": asdict(told)})
        return run
    for note in told.notes:
        screen.say(f"note: {note}")
    screen.where_not(told)
    screen.say(f"report: {run.path / 'report.html'}")
    screen.line(told.verdict)
    return run
