"""Verbs of a search: begin one, and add, stop or change trials while it runs.

Lives here: arguments, and what is printed where. Does not live here: the verbs themselves (`studio.py`), how a search
looks on its way (`searched.py`, `wave_table.py`) and at its end (`leaderboard.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from luthier.cli import progress
from luthier.cli import show as screen
from luthier.cli.commands import common
from luthier.cli.commands.common import EXPERIMENT, NOTHING, READING, Json, Set
from luthier.errors import SpecError
from luthier.runs import Run

Search = Annotated[str, typer.Argument(help="A search: its id, the end of it, or its name.", metavar="SEARCH")]
Trial = Annotated[str, typer.Argument(help="A trial: its search and its number.", metavar="SEARCH.007")]


class Engine(StrEnum):
    """Where a search's trials are trained."""

    here = "here"
    ray = "ray"


class OrFile(TyperGroup):
    """`luthier search FILE …` beside `luthier search add …`: a first word that is no sub-command is the file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            return super().parse_args(ctx, [str(EXPERIMENT), *args])
        ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)


def search(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="The experiment file, with or without `search`.", metavar="FILE")
    ] = EXPERIMENT,
    sets: Set = NOTHING,
    new: Annotated[bool, typer.Option("--new", help="Begin another search, whatever stands.")] = False,
    engine: Annotated[Engine, typer.Option(help="Where the trials are trained.")] = Engine.here,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="The same as search.seeds: train the winner so often.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train many trials of the experiment on one base, stop the weak ones, and give the best a verdict on the test.

    The same command again prints it, or continues what was interrupted.
    """
    if context.invoked_subcommand is not None:
        return
    wishes = [*sets, *([] if seeds is None else [f"search.seeds={seeds}"])]
    here, experiment = common.studio(), common.experiment(file, wishes)
    with screen.busy(READING):
        run = here.search(experiment, new, "ray" if engine is Engine.ray else "here")
    common.carry(here, run, as_json)


def add(search: Search, sets: Set = NOTHING) -> None:
    """Another trial for a search that runs: `--set training.learning_rate=0.003`, the rest as the file says."""
    here = common.studio()
    found = _search(here.find(search))
    _tell_wish(found, here.add(found, _values(found, sets)))


def clone(trial: Trial, sets: Set = NOTHING) -> None:
    """Another trial with the values of this one, those of --set changed; without any, one that failed or was stopped is
    tried again."""
    here = common.studio()
    found = _trial(here.find(trial))
    again = not sets and found.state in ("failed", "stopped")
    made = here.clone(found, {} if again else _values(found, sets))
    _tell_wish(here.find(found.facts["search"]), made)


def stop(trial: Trial) -> None:
    """End one trial for good; its place is taken by the next."""
    here = common.studio()
    stopped = here.stop(_trial(here.find(trial)))
    screen.say(f"{stopped.id} is {stopped.state}")


def _values(run: Run, sets: list[str]) -> dict[str, Any]:
    """`path=value` texts as values of a trial: what the experiment of `run` would hold with them. Raises SpecError."""
    if not sets:
        raise SpecError("no value is given", hint="say which: `--set training.learning_rate=0.003`")
    from luthier import drafts, spec

    every = spec.leaves(spec.changed(drafts.one(spec.load(run.path / "experiment.yaml")), sets))
    paths = [each.partition("=")[0].strip() for each in sets]
    for path in paths:
        if path not in every:
            hint = "a trial has values of single parameters, such as `method.rank` or `training.learning_rate`"
            raise SpecError(f"`{path}` is no single parameter", f"--set {path}", hint)
    return {path: list(every[path]) if isinstance(every[path], tuple) else every[path] for path in paths}


def _search(run: Run) -> Run:
    if run.facts.get("kind") != "search":
        hint = "`luthier runs` lists searches; `luthier search FILE` begins one"
        raise SpecError(f"{run.id} is no search", hint=hint)
    return run


def _trial(run: Run) -> Run:
    if run.facts.get("search") is None:
        hint = "a trial is named by its search and its number, SEARCH.007; `luthier stop RUN` stops any other run"
        raise SpecError(f"{run.id} is no trial", hint=hint)
    return run


def _tell_wish(search: Run, values: dict[str, Any]) -> None:
    from luthier.cli.searched import short

    told = ", ".join(f"{path} {short(value)}" for path, value in values.items())
    screen.say(f"{search.id} makes a trial: {told}{progress.how_to_go_on(search) if search.state != 'running' else ''}")


VERBS: tuple[Callable[..., None], ...] = (search, add, clone, stop)


def _group() -> typer.Typer:
    made = typer.Typer(cls=OrFile, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})
    first, *others = VERBS
    made.callback(invoke_without_command=True)(first)
    for each in others:
        made.command()(each)
    return made


GROUP = _group()
"""`search` with its sub-commands."""
