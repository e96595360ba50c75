"""The verbs of the command line, one short function each: ask the studio, show the answer.

Lives here: arguments, and what is printed where. Does not live here: the verbs themselves (`studio.py`), how a table or
a bar looks (`show.py`, `progress.py`). Heavy modules are imported by the verbs that need them.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import progress
from luthier.cli import show as screen
from luthier.errors import NotFound, SpecError
from luthier.runs import Run

if TYPE_CHECKING:
    from luthier.data.prepare import Dataset
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


# --- Begin
def demo(as_json: Json = False) -> None:
    """Tune the model inside this package on text-to-SQL, offline, and see a verdict (about two minutes)."""
    from luthier.demo import write_demo

    here = _studio()
    path = write_demo(here.home / "demo")
    screen.say(f"the demo's data and experiment: {path.parent}")
    experiment = _experiment(path, NOTHING)
    with screen.busy(READING):
        run = here.tune(experiment)
    _carry(here, run, as_json)


def init(
    model: Annotated[str, typer.Argument(help="A base: Hub id or folder. With DATA alone: which bases fit.")],
    data: Annotated[str | None, typer.Argument(help="The labelled rows.")] = None,
    out: Annotated[Path, typer.Option(help="The experiment file to write.")] = EXPERIMENT,
    sets: Set = NOTHING,
) -> None:
    """Write an experiment file for a base and your data; with data alone, name the bases that fit."""
    from luthier import spec

    here = _studio()
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

    found = checkup.examine(_studio().home)
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


# --- Look before you tune
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
    here, experiment = _studio(), _experiment(file, sets)
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

    here, experiment = _studio(), _experiment(file, sets)
    with screen.busy(READING):
        draft = here.draft(experiment)
        planned = here.plan(draft, measure)
    values = spec.leaves(draft.resolved.experiment) | planned.found
    origins = {**draft.resolved.origins, **dict.fromkeys(planned.found, "found")}
    accepted = draft.resolved.experiment.data.accept
    if as_json:
        told = {path: {"value": value, "origin": origins[path]} for path, value in values.items()}
        shares = {"trained_share": planned.trained_share, "shared_share": planned.shared_share}
        rest = {"values": told, "counts": draft.dataset.counts, "notes": draft.resolved.notes}
        screen.as_json({"plan": asdict(planned) | shares} | rest)
    else:
        rows = [(path, screen.value(values[path]), origins[path]) for path in values]
        screen.table(("parameter", "value", "from"), rows)
        screen.plan(planned, accepted)
        for note in (*draft.resolved.notes, *planned.warnings):
            screen.say(f"note: {note}")
        if planned.findings:
            screen.say(f"to see such a row: luthier look {file} --row FILE:LINE")
    if planned_words.refused(planned.findings, accepted):
        raise typer.Exit(2)  # as `luthier tune` would end: your input


# --- Tune
def tune(
    file: File = EXPERIMENT,
    sets: Set = NOTHING,
    accept: Annotated[list[str], typer.Option("--accept", help="A finding you accept.", metavar="CODE")] = NOTHING,
    new: Annotated[bool, typer.Option("--new", help="Begin another run, whatever stands.")] = False,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Train so many times, each with another seed.")] = 1,
    as_json: Json = False,
) -> None:
    """Tune, evaluate, and give a verdict. The same command again prints it, or continues what was interrupted."""
    here, experiment = _studio(), _accepting(_experiment(file, sets), accept)
    trained = []
    for further in range(seeds):
        with screen.busy(READING):
            run = here.tune(experiment, new, further)
        trained.append(_carry(here, run, as_json))
    if seeds > 1:
        _tell_seeds(here, trained, as_json)


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

    here, experiment = _studio(), _experiment(file, sets)
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
    here = _studio()
    stopped = here.stop(here.find(run))
    screen.say(f"{stopped.id} is {stopped.state}" + progress.how_to_go_on(stopped))


def resume(run: Word, as_json: Json = False) -> None:
    """Continue a run that was stopped, interrupted or failed."""
    here = _studio()
    _carry(here, here.resume(here.find(run)), as_json)


def watch(run: SomeRun = None, as_json: Json = False) -> None:
    """Follow a run that is under way. Ctrl-C ends the watching, not the run."""
    here = _studio()
    progress.draw(here.watch(here.find(run)), screen.err(), screen.line if as_json else None)


def _carry(here: Studio, run: Run, as_json: bool) -> Run:
    """Follow a run to its end and say its verdict; a run that is done already says it at once."""
    from luthier import studio

    screen.say(f"run {run.id} is done already" if run.state == "done" else f"run {run.id}: {run.path}")
    if run.state != "done":
        try:
            run = progress.carry(here, run, screen.line if as_json else None)
        except KeyboardInterrupt:
            raise typer.Exit(1) from None
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


# --- What came of it
def runs(as_json: Json = False) -> None:
    """Every run, the newest first."""
    every = _studio().runs()
    if as_json:
        screen.as_json([asdict(run) for run in every])
        return
    columns = ("run", "state", "model", "method", "task", "created", "verdict")
    screen.table(columns, [screen.run_row(run) for run in every])


def show(run: SomeRun = None, as_json: Json = False) -> None:
    """One run: what it is, how far it came, what it scored."""
    from luthier import studio

    found = _studio().find(run)
    told = studio.report(found) if (found.path / "report.json").is_file() else None
    if as_json:
        screen.as_json(asdict(found) | {"report": told and asdict(told)})
        return
    screen.pairs(screen.run_facts(found))
    if told is not None:
        screen.line("")
        screen.scores(told)
        screen.differences(told)
        screen.where_not(told)
    if problem := studio.failure(found):
        screen.error(problem)


def evaluate(
    subject: Annotated[str, typer.Argument(help="A run, or a base model.", metavar="RUN|MODEL")],
    data: Annotated[str | None, typer.Option(help="Rows to score it on; else the run's own test.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Where openai:NAME is asked.", metavar="URL")] = None,
    sets: Set = NOTHING,
    as_json: Json = False,
) -> None:
    """Score a run, a base model, or one behind an OpenAI-style API (openai:NAME), on rows of yours."""
    here = _studio()
    address = [f"model.base_url={base_url}"] if base_url else []
    with screen.busy("asking the model"):
        told = here.evaluate(here.subject(subject), data, [*sets, *address])
    if as_json:
        screen.as_json(told)
        return
    screen.scores(told)
    screen.differences(told)
    for note in told.notes:
        screen.say(f"note: {note}")
    screen.where_not(told)
    screen.line(told.verdict)


def compare(
    words: Annotated[
        list[str], typer.Argument(help="Two to eight runs; the first is compared with.", metavar="RUN RUN…")
    ],
    html: Annotated[Path | None, typer.Option(help="Write the comparison as a page.")] = None,
    as_json: Json = False,
) -> None:
    """Runs against the first one: settings that differ, paired tests on the same test rows, rows where they differ."""
    from luthier.cli import compared

    if html is not None:
        screen.check_page(html)
    if len(words) < 2:
        raise SpecError("one run alone cannot be compared", hint="name two runs or more")
    here = _studio()
    with screen.busy("comparing the answers"):
        found = here.compare([here.find(word) for word in words])
        if html is not None:
            compared.page(found, html)
    if as_json:
        screen.as_json(found)
    elif html is not None:
        screen.line(str(html))
    else:
        compared.tell(found)


def generate(
    run: Word,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; else --file, or standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="One prompt a line, text or JSON.")] = None,
    base: Annotated[bool, typer.Option("--base", help="The untuned base beside it.")] = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt, a file or standard input with the tuned model. A prompt may be a JSON object of columns."""
    here = _studio()
    found = here.find(run)
    prompts = [prompt] if prompt is not None else _prompts(file)
    for answer in here.generate(found, prompts, base):
        if as_json:
            screen.json_line(
                {"prompt": answer.prompt, "tuned": "".join(answer.tuned), "base": "".join(answer.base or ())}
            )
            continue
        screen.stream("tuned: " if base else "", answer.tuned)
        if answer.base is not None:
            screen.stream("base: ", answer.base)


def _prompts(file: Path | None) -> list[str]:
    if file is None and sys.stdin.isatty():
        screen.say("type a prompt and end with Ctrl-D")
    if file is not None and not file.is_file():
        raise NotFound(f"there is no file {file}")
    text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    prompts = [text.strip()] if file is None else [each.strip() for each in text.splitlines()]
    if not any(prompts):
        raise SpecError("there is no prompt", where=str(file or "standard input"))
    return [each for each in prompts if each]


# --- Pass it on
def publish(
    run: Word,
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT")],
    merge: Annotated[bool, typer.Option("--merge", help="The base with the adapter in its weights.")] = False,
    as_json: Json = False,
) -> None:
    """Pack a run's adapter, or merge it into its base; proved in a fresh process before success is said."""
    here = _studio()
    with screen.busy("packing, and proving it in a fresh process"):
        packed = here.publish(here.find(run), out, merge)
    if as_json:
        screen.as_json(packed)
        return
    for note in packed.notes:
        screen.say(f"note: {note}")
    proof = f"its logits differ by {packed.difference:.1g} from the run's; tuning changed them by {packed.effect:.1g}"
    screen.say(f"proved in a fresh process: {proof}")
    screen.line(str(out))


def _studio() -> Studio:
    from luthier.studio import Studio

    return Studio()


def _experiment(file: Path, sets: list[str]) -> Experiment:
    """The experiment in a file, with a word for each value outside its document's range."""
    from luthier import spec

    experiment = spec.load(file, sets)
    for warning in spec.advice(experiment):
        screen.say(f"note: {warning}")
    return experiment


def _accepting(experiment: Experiment, codes: list[str]) -> Experiment:
    """The experiment with more codes in its `data.accept`: so the run records that a person accepted them."""
    if not codes:
        return experiment
    every = tuple(dict.fromkeys((*experiment.data.accept, *codes)))
    data = experiment.data.model_copy(update={"accept": every})
    return experiment.model_copy(update={"data": data})


def _tell_data(dataset: Dataset) -> None:
    from luthier.data.dataset import shortly

    short = shortly(dataset)
    counts = ", ".join(f"{count:,} {split}" for split, count in dataset.counts.items())
    screen.say(f"data: {dataset.format} rows for {dataset.task}: {counts}")
    for note in dataset.summary["notes"]:
        screen.say(short(f"note: {note}"))
