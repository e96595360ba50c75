"""Verbs to look with before anything is tuned: prepare, look, plan.

Lives here: arguments, and what is printed where. Does not live here: the verbs themselves (`studio.py`), how data, rows
and plans look (`prepared.py`, `tokens.py`, `planned.py`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import leaderboard
from luthier.cli import show as screen
from luthier.cli.commands import common
from luthier.cli.commands.common import EXPERIMENT, NOTHING, READING, File, Json, Set

if TYPE_CHECKING:
    from luthier.spec import Experiment, Search
    from luthier.studio import Studio


def prepare(
    data: Annotated[str, typer.Argument(help="Labelled rows, or an experiment file.", metavar="DATA")],
    remove_leaks: Annotated[bool, typer.Option("--remove-leaks", help="The same as data.remove_leaks: true.")] = False,
    sets: Set = NOTHING,
    as_json: Json = False,
) -> None:
    """Read, recognise, clean and split the rows; tell what was found, and write a page of it."""
    from luthier import studio
    from luthier.cli import prepared
    from luthier.data import page

    with screen.busy("reading the rows"):
        experiment, has_base = prepared.described(data, sets, remove_leaks)
        dataset = studio.prepare(experiment)
        lengths = prepared.foresee(experiment, dataset) if has_base else None
        path = page.write(dataset)
    if as_json:
        screen.as_json({**asdict(dataset), "page": path, "lengths": lengths})
        return
    screen.say(f"data: {dataset.format} rows for {dataset.task}")
    prepared.tell(dataset, lengths, path)
    screen.line(str(dataset.path))


def look(
    file: File = EXPERIMENT,
    row: Annotated[
        list[str], typer.Option(help="Which: 17, 1-10, test, test:3, rows.jsonl:17; may be repeated.", metavar="WHICH")
    ] = NOTHING,
    worst: Annotated[bool, typer.Option("--worst", help="The longest, the most cut, the least trained.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write them as a page.")] = None,
    sets: Set = NOTHING,
    as_json: Json = False,
) -> None:
    """Rows as the model sees them: every token, those that are trained in colour."""
    if html is not None:
        screen.check_page(html)
    here, experiment = common.studio(), common.experiment(file, sets)
    with screen.busy(READING):
        draft = here.draft(experiment)
        shown = here.look(draft, row, worst)
    if html is not None:
        screen.page(draft, shown, html)
    if as_json:
        for seen in shown:
            screen.json_line(asdict(seen))
    elif html is not None:
        screen.line(str(html))
    else:
        screen.rows(shown)


def plan(
    file: File = EXPERIMENT,
    sets: Set = NOTHING,
    measure: Annotated[bool, typer.Option("--measure", help="Run some steps, 20 s at most: memory and time.")] = False,
    as_json: Json = False,
) -> None:
    """What a run would do: rows, tokens, steps, memory, time; and where every value comes from. Nothing is kept.

    It ends with 2 where the gate refuses the rows, as `luthier tune` would.
    """
    from luthier import spec
    from luthier.cli import planned as planned_words

    here, experiment = common.studio(), common.experiment(file, sets)
    with screen.busy(READING):
        wishes = _search(here, experiment)
        draft = here.draft(experiment.model_copy(update={"search": None}))
        planned = here.plan(draft, measure)
    values = spec.leaves(draft.resolved.experiment) | planned.found
    origins = {**draft.resolved.origins, **dict.fromkeys(planned.found, "found")}
    if wishes is not None:
        del values["search"]
        values |= {f"search.{field}": value for field, value in wishes}
        origins |= {f"search.{field}": "you" if field in wishes.model_fields_set else "default" for field, _ in wishes}
    accepted = draft.resolved.experiment.data.accept
    if as_json:
        told = {path: {"value": value, "origin": origins[path]} for path, value in values.items()}
        shares = {"trained_share": planned.trained_share, "shared_share": planned.shared_share}
        rest = {"values": told, "counts": draft.dataset.counts, "notes": draft.resolved.notes}
        if wishes is not None:
            rest["search"] = leaderboard.planned(wishes, planned)
        screen.as_json({"plan": asdict(planned) | shares} | rest)
    else:
        rows = [(path, screen.value(values[path]), origins[path]) for path in values]
        screen.table(("parameter", "value", "from"), rows)
        screen.plan(planned, accepted)
        if wishes is not None:
            leaderboard.tell_plan(leaderboard.planned(wishes, planned))
        for note in (*draft.resolved.notes, *planned.warnings):
            screen.say(f"note: {note}")
        if planned.findings:
            screen.say(f"to see such a row: luthier look {file} --row FILE:LINE")
    if planned_words.refused(planned.findings, accepted):
        raise typer.Exit(2)  # as `luthier tune` would end: your input


def _search(here: Studio, experiment: Experiment) -> Search | None:
    """The search that the experiment describes, with the method's own space and budget where it names none. Raises what
    `luthier search` would."""
    if experiment.search is None:
        return None
    from luthier.searching import roster

    draft, _ = roster.describe(experiment, here.home)
    return draft.resolved.experiment.search
