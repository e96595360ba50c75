"""After a run: it on other rows, its answers scored otherwise, several seeds together; and a model that stands alone.

Lives here: who is asked which rows, and where the answers and the report lie. Does not live here: a run's own test
(`assessment.py`), asking and scoring (`evaluation/`).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from luthier import assessment, presets, spec, workbench
from luthier.assessment import Exam, Heard
from luthier.data.encode import Rules
from luthier.data.examples import content_id
from luthier.data.prepare import Dataset, prepare
from luthier.errors import ModelError, SpecError
from luthier.evaluation import ask, differences, endpoint, metrics, predictions, seeds, served
from luthier.evaluation import judge as judging
from luthier.evaluation.report import Report, read_json, write_json
from luthier.evaluation.seeds import Seeds
from luthier.models import facts
from luthier.runs import Run
from luthier.spec.parameters import RepairStep


def of_test(run: Run, wishes: Sequence[str], heard: Heard = lambda count: None) -> Report:
    """The run's answers to its own test once more, scored as `wishes` say; no model is loaded."""
    experiment, before = _wished(run, wishes), read_json(run.path / "report.json")
    rows = predictions.read(run.path / "predictions.jsonl")
    names = experiment.evaluation.metrics or [name for name in before.scores if name != judging.NAME]
    how, rules = ask.How(generate=any(row.sides["tuned"].answer for row in rows)), Rules("", run.facts["task"])
    notes = tuple(note for note in before.notes if not note.startswith("judge "))
    size = before.subject.rows_in_split or len(rows)
    asked = Exam((), tuple(metrics.by_name(names)), how, rules, before.subject.split, size, notes)
    folder = run.path / "evaluations" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.path / "predictions.jsonl", folder / "predictions.jsonl")  # a report has its rows beside it
    asked, rows = assessment.judged(experiment.evaluation.judge, asked, rows, folder, heard)
    return assessment.conclude(run, asked, rows, before.subject.against, folder)


def _wished(run: Run, wishes: Sequence[str]) -> spec.Experiment:
    """What the run was described as, with other wishes for its evaluation. Raises SpecError."""
    for wish in wishes:
        if not wish.startswith("evaluation."):
            hint = "what was learned is learned; `evaluation.…` may change"
            raise SpecError("a run can only be scored otherwise", f"--set {wish}", hint)
    experiment = spec.load(run.path / "resolved.yaml", wishes)
    if experiment.evaluation.judge is not None:
        judging.require(experiment.evaluation.judge, experiment.evaluation.compare_base)
    return experiment


def of_run(run: Run, data: str | Path, wishes: Sequence[str] = (), heard: Heard = lambda count: None) -> Report:
    """The run's tuned model, and its base beside it, on the rows of `data`; answers stand in the run's folder."""
    experiment, own = _wished(run, wishes), workbench.dataset_of(run)
    dataset = _rows(data, experiment.data, own, run.path.parents[1])
    tuned = workbench.open_run(run)
    rules = workbench.rules_of(experiment, own, tuned.base)
    slices, lacking = differences.answerable(experiment.evaluation.slices, dataset.examples("train"))
    every = experiment.evaluation.model_copy(update={"limit": None, "slices": slices})  # a wish for the run's own test
    experiment = experiment.model_copy(update={"evaluation": every})
    examples, longest = dataset.examples("train"), run.facts["longest_answer"]
    drawn = (examples, str(data), lacking, experiment.seed)
    asked = assessment.exam_on(experiment, drawn, own, tuned.base.tokenizer, rules, longest)
    asked = assessment.passed(asked, experiment, tuned.base)
    asked = dataclasses.replace(asked, notes=(*asked.notes, *_learned_from(asked, own)))
    if again := _of_split(asked, own, "test"):
        asked = assessment.opened(asked, own, f"{run.id} evaluate", again)
    sides, against = {"tuned": ask.by_model(tuned, 0, rules, asked.how)}, "base"
    if experiment.evaluation.compare_base:
        bare = tuned if not tuned.full else workbench.base_of(run)
        sides["base"], against = assessment.base_answerer(asked, bare, own.stream("train"))
    folder = run.path / "evaluations" / dataset.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    rows = assessment.answers(asked, sides, folder / "predictions.jsonl", run.fingerprint, heard)
    asked, rows = assessment.judged(experiment.evaluation.judge, asked, rows, folder, heard)
    return assessment.conclude(run, asked, rows, against, folder)


def _learned_from(exam: Exam, own: Dataset) -> tuple[str, ...]:
    """A note on the asked rows that the run was trained on, if there are any."""
    if not (count := _of_split(exam, own, "train")):
        return ()
    return (f"{count:,} of these {len(exam.questions):,} rows were trained on: on them a score is memory, not skill",)


def _of_split(exam: Exam, own: Dataset, split: str) -> int:
    """How many of the asked rows stand in a split of the run's own data."""
    asked = {question.example.id for question in exam.questions}
    return len({example.id for example in own.stream(split) if example.id in asked})


def of_seeds(subjects: Sequence[Run]) -> tuple[Seeds, ...]:
    """Runs of one experiment with several seeds, judged together and told in the first one's report."""
    first = subjects[0]
    told, answered = read_json(first.path / "report.json"), [_answered(run) for run in subjects]
    shared = [row for row in answered[0] if all(row in rows for rows in answered)]
    if len(shared) < 2:
        raise SpecError("these runs share no test rows", hint="compare runs of one data set")
    rows = [[rows[row] for row in shared] for rows in answered]
    tuned = [predictions.side(each, "tuned") for each in rows]
    base = [predictions.side(each, "base") for each in rows] if told.base_scores else None
    known = metrics.by_name(told.scores)
    found = [
        seeds.compare(metric, [run.id for run in subjects], tuned, base, told.subject.against, told.grouped_by)
        for metric in known
    ]
    before, now = {each.sentence for each in told.seeds}, tuple(each for each in found if each is not None)
    notes = (*(note for note in told.notes if note not in before), *(each.sentence for each in now[:1]))
    told = dataclasses.replace(told, seeds=now, notes=notes)
    assessment.write(first, told, list(answered[0].values()), first.path, known)
    return told.seeds


def _answered(run: Run) -> dict[str, predictions.Row]:
    rows = predictions.read(run.path / "predictions.jsonl")
    return {next(iter(row.sides.values())).id: row for row in rows}


def of_base(
    subject: str | spec.Experiment,
    data: str | Path,
    home: Path,
    wishes: Sequence[str] = (),
    heard: Heard = lambda count: None,
) -> Report:
    """A base as it is, by name or of an experiment, on the rows of `data`; answers stand under `home`/evaluations."""
    if isinstance(subject, str):
        subject = spec.from_mapping({"model": subject, "data": str(data)})
    given = spec.changed(subject, wishes)
    name, dataset = given.model.name, _rows(data, given.data, None, home)
    _may_be_judged(given)
    if served.model_of(name):
        return _of_endpoint(given, data, dataset, home, heard)
    known = facts.inspect(name)
    if known.family == "encoder":
        raise ModelError(f"`{name}` is an encoder: it has no trained head before tuning", hint="evaluate a run of it")
    experiment = presets.resolve(given, known, dataset.task).experiment
    tuned = workbench.bare(experiment.model, ())
    rules = workbench.rules_of(experiment, dataset, tuned.base)
    examples = dataset.examples("train")
    longest = max(len(tuned.base.tokenizer(ask.encode.reference(each)).input_ids) for each in examples) + 1
    drawn = (examples, str(data), (), experiment.seed)
    asked = assessment.exam_on(experiment, drawn, dataset, tuned.base.tokenizer, rules, longest)
    asked = assessment.passed(asked, experiment, tuned.base)
    folder = home / "evaluations" / content_id([name, dataset.fingerprint])
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"tuned": ask.by_model(tuned, None, rules, asked.how)}
    rows = assessment.answers(
        asked, sides, folder / "predictions.jsonl", content_id([tuned.base.weights, experiment.seed]), heard
    )
    return _told_alone(experiment, asked, rows, dataset, folder, heard)


def _may_be_judged(given: spec.Experiment) -> None:
    wishes = given.evaluation.judge
    if wishes is not None:
        judging.require(wishes)
        if wishes.mode == "pairwise":
            raise SpecError("a base alone has nobody to be compared with", hint="`evaluation.judge.mode: reference`")


def _told_alone(
    experiment: spec.Experiment,
    asked: Exam,
    rows: Sequence[predictions.Row],
    dataset: Dataset,
    folder: Path,
    heard: Heard,
) -> Report:
    """The report of a model that stands alone, on disk and given."""
    asked, judged_rows = assessment.judged(experiment.evaluation.judge, asked, rows, folder, heard)
    subject = assessment.subject_of("", experiment, asked, dataset.fingerprint, dataset.task)
    subject = dataclasses.replace(subject, name=experiment.model.name, method="none")
    told = assessment.made(subject, asked, judged_rows, None)
    told = dataclasses.replace(told, verdict=told.verdict.replace(": tuned ", ": ", 1))
    write_json(told, folder / "report.json")
    return told


def _of_endpoint(given: spec.Experiment, data: str | Path, dataset: Dataset, home: Path, heard: Heard) -> Report:
    """A model behind an endpoint; a row that it did not answer is left out and said, and asked again next time."""
    model, wishes = given.model, given.evaluation
    endpoint.require(model.base_url, f"`{model.name}`")
    examples = dataset.examples("train")
    drawn = {example.id: example for example in assessment.drawn_from(examples, wishes.limit, given.seed)}.values()
    every = [served.question(example) for example in drawn]
    chats = [(one, served.messages(one.example, given.data.template, dataset.labels)) for one in every]
    body: dict[str, Any] = {"temperature": wishes.temperature}
    body |= {"max_tokens": wishes.max_new_tokens} if wishes.max_new_tokens else {}
    folder = home / "evaluations" / content_id([model.name, model.base_url, dataset.fingerprint])
    folder.mkdir(parents=True, exist_ok=True)
    asking = endpoint.Endpoint(served.model_of(model.name) or "", model.base_url)
    said, notes = served.answer(asking, chats, body, folder / "replies.jsonl", heard)
    if not said:
        raise ModelError("no row was answered", model.base_url, notes[-1])
    answered = tuple(one for one in every if one.example.id in said)
    names = wishes.metrics or served.metrics_for(dataset.task, every, dataset.labels)
    how = ask.How(wishes.max_new_tokens or 0, wishes.temperature, given.seed)
    rules = Rules("causal", dataset.task, labels=dataset.labels)
    asked = Exam(answered, tuple(metrics.by_name(names)), how, rules, str(data), len(examples), notes)
    key = content_id([model.name, model.base_url, body, [said[one.example.id].text for one in answered]])
    sides = {"tuned": served.as_given(said)}
    rows = predictions.collect(answered, sides, asked.metrics, folder / "predictions.jsonl", key)
    return _told_alone(given, asked, rows, dataset, folder, heard)


def _rows(data: str | Path, like: spec.Data, own: Dataset | None, home: Path) -> Dataset:
    """All rows of `data` as one data set, read and repaired as the run's own were; none is dropped."""
    repairs = tuple(step for step in like.clean if step in get_args(RepairStep) and step != "empty")
    changes = {"train": str(data), "validation": 0.0, "test": 0.0, "clean": repairs, "limit": None, "group_by": None}
    # a mapping stays: the new rows write their classes as the run's own did
    known = own.labels if own is not None and not isinstance(like.labels, dict) else ()
    labels = {"labels": known} if known else {}
    return prepare(like.model_copy(update=changes | labels), home, task=own.task if own is not None else None)
