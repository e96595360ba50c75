"""Verbs to begin with: demo, init, convert, doctor, schema.

Lives here: arguments, and what is printed where. Does not live here: the verbs themselves (`studio.py`), how a table
looks (`show.py`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import show as screen
from luthier.cli.commands import common
from luthier.cli.commands.common import EXPERIMENT, NOTHING, READING, Json, Set
from luthier.errors import SpecError

if TYPE_CHECKING:
    from luthier.data.prepare import Dataset
    from luthier.studio import Studio


def demo(as_json: Json = False) -> None:
    """Tune the model inside this package on text-to-SQL, offline, and see a verdict (about two minutes)."""
    from luthier.demo import write_demo

    here = common.studio()
    path = write_demo(here.home / "demo")
    screen.say(f"the demo's data and experiment: {path.parent}")
    experiment = common.experiment(path, NOTHING)
    with screen.busy(READING):
        run = here.tune(experiment)
    common.carry(here, run, as_json)


def init(
    model: Annotated[str, typer.Argument(help="A base: Hub id or folder. With DATA alone: which bases fit.")],
    data: Annotated[str | None, typer.Argument(help="The labelled rows.")] = None,
    out: Annotated[Path, typer.Option(help="The experiment file to write.")] = EXPERIMENT,
    sets: Set = NOTHING,
) -> None:
    """Write an experiment file for a base and your data; with data alone, name the bases that fit."""
    from luthier import spec

    here = common.studio()
    if data is None:
        _suggest(here, model, sets)
        return
    if out.exists():
        raise SpecError(f"{out} exists", hint="give another name: `--out FILE`")
    values = {"model": _whole_path(model), "data": _whole_path(data)}
    out.write_text(spec.dump(spec.from_mapping(values)), encoding="utf-8")
    try:
        experiment = spec.load(out, sets)
        dataset = here.prepare(experiment.data, experiment.task, experiment.seed)
        experiment = experiment.model_copy(update={"task": dataset.task})
        out.write_text(spec.dump(experiment.model_copy(update={"name": None})), encoding="utf-8")
        draft = here.draft(experiment)
    except BaseException:
        out.unlink()
        raise
    _tell_data(dataset)
    for note in draft.resolved.notes:
        screen.say(f"note: {note}")
    screen.say(f"wrote {out}; next: luthier plan {out}")
    screen.line(str(out))


def _whole_path(name: str) -> str:
    """A path that exists, from any folder; a Hub id as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _suggest(here: Studio, data: str, sets: list[str]) -> None:
    """Bases that fit the task of `data` and this machine."""
    from luthier import advisor, hardware
    from luthier.cli import prepared

    experiment, _ = prepared.described(data, sets, False)
    dataset = here.prepare(experiment.data, experiment.task, experiment.seed)
    machine = hardware.machine()
    _tell_data(dataset)
    fitting = advisor.suggest(dataset.task, machine.memory_bytes, device=machine.device)
    screen.table(
        ("model", "family", "parameters", "why"),
        [(each.name, each.family, f"{each.parameters / 1e6:,.0f} M", each.why) for each in fitting],
    )
    screen.say(f"next: luthier init MODEL {data}")


def convert(
    file: Annotated[Path, typer.Argument(help="A configuration of Axolotl, LLaMA-Factory, TRL or watsonx.")],
    out: Annotated[Path, typer.Option(help="The experiment file to write.")] = EXPERIMENT,
    as_json: Json = False,
) -> None:
    """Turn another tool's configuration into an experiment file, and tell what could not be carried over."""
    from luthier import conversion

    made = conversion.convert(file, out)
    conversion.write(made, out)
    if as_json:
        told = {kind: [asdict(line) for line in made.of(kind)] for kind in conversion.KINDS}
        screen.as_json({"tool": made.tool, "experiment": str(out), **told})
        return
    screen.conversion(made)
    screen.say(f"wrote {out}; next: luthier plan {out}")
    screen.line(str(out))


def doctor(as_json: Json = False) -> None:
    """What this machine can do, which versions are installed, where things are kept."""
    from luthier.cli import checkup

    found = checkup.examine(common.studio().home)
    if as_json:
        screen.as_json(found)
    else:
        screen.table(("", "", ""), [(each.name, each.found, each.remark) for each in found])
    if any(each.wrong for each in found):
        raise typer.Exit(1)


def schema() -> None:
    """The JSON Schema of an experiment file."""
    from luthier import spec

    screen.as_json(spec.json_schema())


def _tell_data(dataset: Dataset) -> None:
    from luthier.data.dataset import shortly

    short = shortly(dataset)
    counts = ", ".join(f"{count:,} {split}" for split, count in dataset.counts.items())
    screen.say(f"data: {dataset.format} rows for {dataset.task}: {counts}")
    for note in dataset.summary["notes"]:
        screen.say(short(f"note: {note}"))
