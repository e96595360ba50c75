"""`Studio(home)`: the verbs and the listings, the one door that CLI, server and Python programs go through.

Lives here: which run an experiment means, and handing it to a worker. Does not live here: the work (`worker.py`), where
it runs (`engines.py`), how it looks (`cli/`). Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier import engines, errors, presets, runs, spec
from luthier.errors import LuthierError, NotFound, SpecError, TrainingError, here, means_a_path, near_path
from luthier.runs import Event, Plan, Run

if TYPE_CHECKING:
    from luthier.climbing import Show
    from luthier.data.lengths import LengthAdvice
    from luthier.data.prepare import Dataset
    from luthier.data.seen import Seen
    from luthier.drafts import Draft
    from luthier.evaluation.compare import Compared
    from luthier.evaluation.ladder import Ladder
    from luthier.evaluation.report import Report
    from luthier.evaluation.seeds import Seeds
    from luthier.publishing import Published
    from luthier.workbench import Reply


Described = spec.Experiment | str | Path
"""An experiment, or the path of its file."""
Engine = Literal["here", "ray"]
"""Where the processes of a search run."""
Subject = Run | spec.Experiment | str
"""What can be evaluated: a run, a base by name, or the model of an experiment."""


@dataclass(frozen=True, slots=True)
class Studio:
    """All verbs on one home folder (`$LUTHIER_HOME`, else `~/.luthier`)."""

    home: Path = field(default_factory=runs.home)

    # --- before a run
    def prepare(self, data: spec.Data, task: str | None = None, seed: int = 0) -> Dataset:
        """Read, recognise, clean and split the rows; the same rows give the same Dataset. Raises DataError."""
        from luthier.data.prepare import prepare

        return prepare(data, self.home, seed, task)

    def draft(self, experiment: Described) -> Draft:
        """Look at the base's configuration, prepare the data, and decide every open value. Raises any LuthierError."""
        from luthier import drafts

        return drafts.draft(described(experiment), self.home)

    def plan(self, experiment: Described | Draft, measure: bool = False) -> Plan:
        """What a run would do: rows, tokens, steps, memory, time; what the tokens promise stands in its findings.

        With `measure`, memory and time are those of the longest and some typical steps, run in a process of its own
        for up to 20 seconds.
        """
        from luthier import drafts, workbench

        draft = experiment if isinstance(experiment, drafts.Draft) else self.draft(experiment)
        planned = workbench.plan(draft.resolved, draft.dataset)
        return workbench.measured(draft.resolved, draft.dataset, planned) if measure else planned

    def look(self, experiment: Described | Draft, rows: Sequence[str] = (), worst: bool = False) -> list[Seen]:
        """Rows as the model would see them, token by token: the first of train, or those that `rows` name.

        A name is a number (`17`), a range (`1-10`), a split (`test`, `test:3`), a file and line (`rows.jsonl:17`). With
        `worst` those among them (without names: among all) that are longest, lose most tokens, are trained least.
        """
        from luthier import drafts, looking

        draft = experiment if isinstance(experiment, drafts.Draft) else self.draft(experiment)
        return looking.look(draft.resolved, draft.dataset, rows, worst)

    def lengths(self, experiment: Described, dataset: Dataset) -> tuple[LengthAdvice, spec.Training]:
        """What each `max_seq_length` would cost the training rows, as the experiment's base reads them; its training.

        Raises ModelError where the base cannot be read.
        """
        from luthier import drafts, workbench
        from luthier.models import facts

        chosen = drafts.named(described(experiment))
        _, commit = facts.locate(chosen.model.name, chosen.model.revision, weights=False)
        resolved = presets.resolve(chosen, facts.inspect(chosen.model.name, commit), dataset.task)
        return workbench.lengths(drafts.pinned(resolved, commit), dataset), resolved.experiment.training

    # --- runs
    def tune(self, experiment: Described, new: bool = False, further: int = 0) -> Run:
        """The run that `experiment` means, with a worker on it unless it is done already.

        The newest run of that name decides: the same and done is given back; the same and unfinished continues;
        different, or `new`, begins another. Raises SpecError, naming the fields, if that would leave behind work under
        way: a run that is different and at work, or at rest with a checkpoint to continue from; and DataError, before
        another run is made, if the gate refuses its rows.

        `further` k > 0: the same experiment on the same rows with its seed + k, as a run named NAME-seedK.
        """
        given = described(experiment)
        if given.search is not None:
            hint = "`luthier search FILE`; to train it once with the file's own values: `--set search=null`"
            raise SpecError("the file describes a search, which is not one run", "search", hint)
        from luthier import drafts

        drafts.refuse(given)
        with engines.early(self.home) as worker:
            rows = drafts.rows_of(given, self.home)  # while the worker imports
            wish = {"home": str(self.home), "new": new, "further": further, "rows": rows.folders}
            run = engines.drafted(worker, given, wish) if worker else None
            if run is None:
                run = drafts.wanted(given, self.home, new, further, rows)
            done = run.state == "done" and not run.facts.get("unjudged")  # what a judge did not answer is asked again
            return run if done else engines.start(run, worker)

    def again(self, trial: Run, new: bool = False) -> Run:
        """The experiment of a trial (of a search: its winner), as a run of its own: the same rows, base and values.

        As with `tune`, the newest run of that name decides, and the same is raised.
        """
        from luthier import drafts

        run = drafts.meant(drafts.of_run(winner(trial)), self.home, new)
        return run if run.state == "done" else engines.start(run)

    def ladder(self, experiment: Described, shots: int | None = None, show: Show | None = None) -> Ladder:
        """The cheapest way to use the base that is enough; see `climbing.climb`. Raises what `tune` does."""
        from luthier import climbing, drafts

        draft = self.draft(experiment)
        model, known = draft.resolved.experiment.model, draft.base
        base = climbing.Base(draft.chosen, model, known.facts, known.revision, draft.dataset)
        return climbing.climb(self.home, base, lambda each: drafts.meant(self.draft(each), self.home), shots, show)

    # --- a search: a run whose work is other runs
    def search(self, experiment: Described, new: bool = False, engine: Engine = "here") -> Run:
        """The search that `experiment` means, with a process on it unless it is done: many trials of it on one base.

        Which one follows from the name as with `tune`, among searches. Without a `search` of its own, or a `space`, the
        method's own is taken. Its processes run on this machine, or with `engine` "ray" on a Ray cluster. Raises what
        `tune` does, SpecError for a space that cannot be meant, and what `clusters.require` does.
        """
        from luthier import drafts
        from luthier.searching import clusters, roster

        if engine == "ray":
            clusters.require(self.home)  # now, not in a process of its own
        given = described(experiment)
        drafts.refuse(given)
        with engines.early(self.home, engines.SEARCH) if engine == "here" else contextlib.nullcontext() as waiting:
            draft, known = roster.describe(given, self.home)
            run = drafts.meant(draft, self.home, new, known)
            if run.state != "done" and runs.owner(run.path) is None:
                runs.update(run.path, {"facts": {"engine": engine}})
            return run if run.state == "done" else engines.start(runs.load(run.path), waiting)

    def add(self, search: Run, values: Mapping[str, Any]) -> dict[str, Any]:
        """Another trial for a search that is not done: parameter's path → value, everything else as the file says.

        It is made by the search's process within a second, or when the search goes on. Gives the values. Raises
        SpecError where they cannot be meant, or nobody would train them any more.
        """
        from luthier.searching import roster

        return roster.add(search, values)

    def clone(self, trial: Run, values: Mapping[str, Any]) -> dict[str, Any]:
        """Another trial with the values of this one, some of them changed (none: it is tried again); see `add`."""
        from luthier.searching import roster

        return roster.add(self.find(roster.search_of(trial)), trial.facts.get("values", {}) | dict(values))

    def resume(self, run: Run) -> Run:
        """Continue an unfinished run, or find the worker it has; a run that is done is given back as it is.

        Raises SpecError for a trial, which its search continues.
        """
        if run.state != "done" and (search := run.facts.get("search")):
            hint = f"`luthier resume {search}` goes on with it; `luthier tune --from {run.id}` trains it alone"
            raise SpecError(f"{run.id} is a trial, which its search carries", hint=hint)
        return run if run.state == "done" else engines.start(runs.load(run.path))

    def stop(self, run: Run) -> Run:
        """Ask the run's worker to save and end; gives the run once it is at rest. A trial ends alone, for good."""
        if run.facts.get("search") is None:
            return engines.stop(run)
        from luthier.searching import roster

        return roster.stop(run)

    def watch(self, run: Run) -> Iterator[Event]:
        """The events of the run's present attempt, as they happen, until it is at rest."""
        return runs.follow(run.path)

    def runs(self) -> list[Run]:
        """Every run, the newest first."""
        return runs.all_runs(self.home)

    def find(self, word: str | None = None) -> Run:
        """The run that `word` means (see `runs.find`); without a word the newest. Raises NotFound."""
        if word is not None:
            return runs.find(self.home, word)
        if not (every := [run for run in self.runs() if run.facts.get("search") is None]):
            raise NotFound("there are no runs yet", where=str(self.home), hint="`luthier tune FILE` makes one")
        return every[0]

    def subject(self, word: str) -> Subject:
        """What can be evaluated under that name: a run if there is one, else a base (folder, Hub id, `openai:NAME`), or
        the model and the wishes of an experiment file."""
        if word.startswith("openai:"):
            return word
        if word.endswith((".yaml", ".yml")) and here(word).is_file():
            return spec.load(word)
        try:
            return self.find(word)
        except NotFound as nobody:
            if here(word).is_dir() or ("/" in word and not means_a_path(word)):
                return word
            if "/" in word:
                raise NotFound(f"`{word}` is neither a run nor a model folder", hint=near_path(here(word))) from None
            near = nobody.hint if "did you mean" in (nobody.hint or "") else near_path(here(word))
            hint = near or "`luthier runs` lists the runs; a base is a folder or a Hub id such as `org/name`"
            raise NotFound(f"`{word}` is neither a run nor a model folder", hint=hint) from None

    # --- what a run has learned
    def evaluate(self, subject: Subject, data: str | Path | None = None, wishes: Sequence[str] = ()) -> Report:
        """Score a run, a base by name, or the model of an experiment on the rows of `data`; a run without: on its test.

        `wishes` ("evaluation.judge=gpt-4o-mini") change how a run or a base is scored; without any, and without `data`,
        a run's report is read.
        """
        from luthier import afterwards

        if isinstance(subject, Run):
            subject = winner(subject)
            if data is None:
                return afterwards.of_test(subject, wishes) if wishes else report(subject)
            return afterwards.of_run(subject, data, wishes)
        if data is None:
            raise SpecError("a base model needs rows to be evaluated on", hint="say which: `--data FILE`")
        return afterwards.of_base(subject, data, self.home, wishes)

    def compare(self, subjects: Sequence[Run]) -> Compared:
        """Two to eight runs side by side, each against the first on the test rows that all answered."""
        from luthier.evaluation import compare

        for run in subjects:
            _reported(run)
        return compare.compare([winner(run) for run in subjects])

    def seeds(self, subjects: Sequence[Run]) -> tuple[Seeds, ...]:
        """What runs of one experiment with several seeds say together, metric by metric, the leading one first.

        It is kept in the first run's report. Raises NotFound where a run has none, SpecError where they share no row.
        """
        from luthier import afterwards

        return afterwards.of_seeds([done(run) for run in subjects])

    def generate(self, run: Run, prompts: Sequence[str], base: bool = False) -> Iterator[Reply]:
        """What the tuned model (and with `base` the untuned one) says to each prompt, piece by piece."""
        from luthier import workbench

        return workbench.generate(winner(run), prompts, base)

    def publish(self, run: Run, folder: str | Path, merge: bool = False) -> Published:
        """Pack the run's adapter, or merge it into its base, and prove it in a fresh process. Raises ModelError."""
        from luthier import publishing, workbench

        run = winner(run)
        learned = workbench.learned(run)
        told = report(run) if (run.path / "report.json").is_file() else None
        story = publishing.story_of(workbench.dataset_of(run), told)
        return publishing.publish(learned, workbench.experiment_of(run).model, Path(folder), merge=merge, story=story)


def winner(run: Run) -> Run:
    """The best trial of a search; any other run as it is. Raises NotFound where a search has none yet."""
    if run.facts.get("kind") != "search":
        return run
    if run.facts.get("best") is None:
        raise NotFound(
            f"search {run.id} has no winner yet", str(run.path), f"it is {run.state}: `luthier watch {run.id}`"
        )
    return runs.load(run.path.parent / run.facts["best"])


def report(run: Run) -> Report:
    """The report of a run's test, of a search its winner's. Raises NotFound where it has none yet."""
    from luthier.evaluation.report import read_json

    return read_json(_reported(run) / "report.json")


def failure(run: Run) -> LuthierError | None:
    """What ended a failed run, as the error it was."""
    return None if run.error is None else errors.as_it_was(run.error)


def done(run: Run) -> Run:
    """`run`, if it is done. Raises the error that ended it, or TrainingError if it was stopped or killed."""
    if problem := failure(run):
        raise problem
    if run.state == "interrupted":
        hint = f"`luthier resume {run.id}` continues at its last checkpoint"
        raise TrainingError("the worker was ended from outside before it could save", str(run.path), hint)
    if run.state != "done":
        raise TrainingError(f"run {run.id} is {run.state}", hint=f"`luthier resume {run.id}` continues it")
    return run


def plan(experiment: Described, measure: bool = False) -> Plan:
    """What a run of `experiment` (or of the experiment file of that path) would do.

    With `measure`, memory and time are as some of its steps show them.
    """
    return Studio().plan(experiment, measure)


def prepare(data: spec.Data | Any, task: str | None = None, seed: int = 0) -> Dataset:
    """Read, recognise, clean and split rows: a path, a Hub name, an iterable, or `Data` with its wishes.

    Of an `Experiment`, or the path of its file, the data with its task and seed.
    """
    if isinstance(data, spec.Experiment) or (isinstance(data, str | Path) and str(data).endswith((".yaml", ".yml"))):
        experiment = described(data)
        return Studio().prepare(experiment.data, task or experiment.task, seed or experiment.seed)
    return Studio().prepare(data if isinstance(data, spec.Data) else spec.Data(train=data), task, seed)


def evaluate(subject: Subject, data: str | Path | None = None, wishes: Sequence[str] = ()) -> Report:
    """Score a run, or a base model by name, on rows of yours; a run alone: the report of its test."""
    studio = Studio()
    return studio.evaluate(studio.subject(subject) if isinstance(subject, str) else subject, data, wishes)


def compare(*subjects: Run | str) -> Compared:
    """Two to eight runs (or those that words mean) side by side, each against the first on the same test rows."""
    return Studio().compare([_meant(subject) for subject in subjects])


def generate(run: Run | str, prompt: str) -> str:
    """The tuned model's answer to one prompt."""
    return "".join(piece for reply in Studio().generate(_meant(run), [prompt]) for piece in reply.tuned)


def publish(run: Run | str, folder: str | Path, merge: bool = False) -> Published:
    """Pack a run's adapter, or merge it into its base, and prove it in a fresh process."""
    return Studio().publish(_meant(run), folder, merge)


def _meant(run: Run | str) -> Run:
    return run if isinstance(run, Run) else Studio().find(run)


def described(experiment: Described) -> spec.Experiment:
    """The experiment itself, or what its file says. Raises SpecError for anything else."""
    if isinstance(experiment, str | Path):
        return spec.load(experiment)
    if not isinstance(experiment, spec.Experiment):
        hint = "a mapping becomes one by `Experiment(**values)`" if isinstance(experiment, Mapping) else None
        raise SpecError(
            f"an Experiment or the path of its file is needed, not a {type(experiment).__name__}", hint=hint
        )
    return experiment


def _reported(run: Run) -> Path:
    run = winner(run)
    if not (run.path / "report.json").is_file():
        hint = f"it is {run.state}; `luthier resume {run.id}` continues it" if run.state != "done" else None
        raise NotFound(f"run {run.id} has no report yet", where=str(run.path), hint=hint)
    return run.path
