"""From rows to a report: of a run's tuned model and its base, of a run on other rows, of a base alone.

Lives here: who is asked which rows, where the answers and the report lie. Does not live here: asking, scoring and the
page (`evaluation/`), bringing models into memory (`workbench.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from luthier import presets, runs, spec, workbench
from luthier.data import gate
from luthier.data.encode import Rules
from luthier.data.examples import Example, content_id
from luthier.data.prepare import Dataset, prepare
from luthier.errors import ModelError
from luthier.evaluation import ask, curves, metrics, predictions, report_page
from luthier.evaluation.predictions import Answer, Answerer, Question
from luthier.evaluation.report import Report, Subject, make, write_json
from luthier.models import facts
from luthier.models.base import Base
from luthier.models.methods import Tuned
from luthier.runs import Finding, Run
from luthier.spec.parameters import RepairStep

TOGETHER = 64  # rows asked between two looks at the clock and at whether to stop

Heard = Callable[[int], None]  # told how many rows were answered; may raise to end the work


@dataclasses.dataclass(frozen=True, slots=True)
class Exam:
    """Test rows as questions, the metrics that judge the answers, how answers are made, and notes for the report."""

    questions: tuple[Question, ...]
    metrics: tuple[metrics.Metric, ...]
    how: ask.How
    rules: Rules
    split: str
    rows_in_split: int
    notes: tuple[str, ...]


def exam(experiment: spec.Experiment, dataset: Dataset, tokenizer: object, rules: Rules, longest_answer: int) -> Exam:
    """The test rows of `dataset`; where it has none, its validation rows, which the notes say."""
    split = "test" if dataset.counts["test"] else "validation"
    examples = dataset.examples(split)
    notes = () if split == "test" else ("there are no test rows: measured on validation rows, which chose the weights",)
    notes = notes if examples else ("there are neither test nor validation rows: nothing can be measured",)
    return _exam(experiment, (examples, split, notes), dataset, tokenizer, rules, longest_answer)


def _exam(
    experiment: spec.Experiment,
    rows: tuple[list[Example], str, tuple[str, ...]],
    dataset: Dataset,
    tokenizer: object,
    rules: Rules,
    longest_answer: int,
) -> Exam:
    examples, split, notes = rows
    wishes = experiment.evaluation
    drawn = _drawn(examples, wishes.limit, experiment.seed)
    if len(drawn) < len(examples):
        notes = (*notes, f"{len(drawn):,} of {len(examples):,} rows, drawn by seed {experiment.seed}")
    questions, left_out = ask.questions(drawn, tokenizer, rules)
    names = wishes.metrics or ask.metrics_for(dataset.task, questions, dataset.labels)
    text = bool(questions) and all(question.example.kind == "text" for question in questions)
    longest = wishes.max_new_tokens or longest_answer
    how = ask.How(longest, wishes.temperature, experiment.seed, generate=not text)
    judged_by = tuple(metrics.by_name(names))
    return Exam(tuple(questions), judged_by, how, rules, split, len(examples), (*notes, *left_out))


def findings_of(exam: Exam, experiment: spec.Experiment, base: Base) -> list[Finding]:
    """What the gate says of the rows that are asked."""
    rows = (question.encoded for question in exam.questions)
    examples = (question.example for question in exam.questions)
    known = workbench.gate_facts(experiment.method, base)
    return gate.inspect(rows, examples, known, exam.split, base.tokenizer)


def passed(exam: Exam, experiment: spec.Experiment, base: Base) -> Exam:
    """The exam, if the gate lets its rows pass, with what else it says among the notes. Raises DataError."""
    findings = findings_of(exam, experiment, base)
    gate.refuse(findings, experiment.data.accept)
    said = [gate.words(finding) for finding in findings if finding.severity != "note"]
    return dataclasses.replace(exam, notes=(*exam.notes, *said))


def _drawn(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples, in their order; which ones follows from the seed and their content alone."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = {id(each) for each in sorted(examples, key=lambda each: content_id([seed, "test", each.id]))[:limit]}
    return [each for each in examples if id(each) in chosen]


def base_answerer(exam: Exam, tuned: Tuned, train: Iterable[Example]) -> tuple[Answerer, str]:
    """Who stands for the base, and its name: an encoder has no trained head; its most frequent class stands for it."""
    if tuned.base.family == "encoder":
        return ask.by_majority(example.label or "" for example in train), "most frequent class"
    return ask.by_model(tuned, None, exam.rules, exam.how), "base"


def answers(exam: Exam, sides: Mapping[str, Answerer], path: Path, key: str, heard: Heard) -> list[predictions.Row]:
    """Every side's answers to the exam, kept in `path` as they come: an answer given under `key` is not asked again."""
    watched = {side: _watched(answerer, heard) for side, answerer in sides.items()}
    return predictions.collect(exam.questions, watched, exam.metrics, path, key)


def _watched(answerer: Answerer, heard: Heard) -> Answerer:
    def asked(questions: Sequence[Question]) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(questions), TOGETHER):
            found += answerer(questions[start : start + TOGETHER])
            heard(len(found) - start)
        return found

    return asked


def as_given(rows: Sequence[predictions.Row], side: str) -> Answerer:
    """An answerer that repeats what `side` has said in `rows`."""
    said = {prediction.id: prediction for prediction in predictions.side(rows, side)}
    return lambda questions: [
        Answer(p.answer, p.stopped, p.probabilities, p.nll, p.tokens)
        for p in (said[question.example.id] for question in questions)
    ]


def conclude(run: Run, exam: Exam, rows: Sequence[predictions.Row], against: str, folder: Path) -> Report:
    """Score the answers, write report.json and report.html to `folder`, give the report."""
    experiment = workbench.experiment_of(run)
    curve = curves.from_events(runs.read_events(run.path))
    subject = _subject(run.id, experiment, exam, run.facts["dataset"], run.facts["task"])
    subject = dataclasses.replace(subject, name=run.name, against=against)
    told = make(subject, rows, exam.metrics, curves.overfitting(curve), exam.notes)
    write_json(told, folder / "report.json")
    origins = json.loads((run.path / "origins.json").read_text(encoding="utf-8"))
    settings = [(path, value, origins.get(path, "")) for path, value in spec.leaves(experiment).items()]
    report_page.write_html(told, rows, folder / "report.html", curve, settings, exam.metrics)
    return told


def _subject(run: str, experiment: spec.Experiment, exam: Exam, dataset: str, task: str) -> Subject:
    temperature = experiment.evaluation.temperature
    return Subject(
        run=run,
        name=experiment.name or run,
        model=experiment.model.name,
        method=experiment.method.type,
        dataset=dataset,
        task=task,
        split=exam.split,
        rows_in_split=exam.rows_in_split,
        decoding=f"temperature {temperature:g}" if temperature else "greedy",
    )


def of_run(run: Run, data: str | Path, heard: Heard = lambda count: None) -> Report:
    """The run's tuned model, and its base beside it, on the rows of `data`; answers stand in the run's folder."""
    experiment, own = workbench.experiment_of(run), workbench.dataset_of(run)
    dataset = _rows(data, experiment.data, own, run.path.parents[1])
    tuned = workbench.open_run(run)
    rules = workbench.rules_of(experiment, own, tuned.base)
    every = experiment.evaluation.model_copy(update={"limit": None})  # that wish was for the run's own test
    experiment = experiment.model_copy(update={"evaluation": every})
    examples, longest = dataset.examples("train"), run.facts["longest_answer"]
    asked = _exam(experiment, (examples, str(data), ()), own, tuned.base.tokenizer, rules, longest)
    asked = passed(asked, experiment, tuned.base)
    asked = dataclasses.replace(asked, notes=(*asked.notes, *_learned_from(asked, own)))
    sides, against = {"tuned": ask.by_model(tuned, 0, rules, asked.how)}, "base"
    if experiment.evaluation.compare_base:
        bare = tuned if not tuned.full else workbench.base_of(run)
        sides["base"], against = base_answerer(asked, bare, own.stream("train"))
    folder = run.path / "evaluations" / dataset.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    rows = answers(asked, sides, folder / "predictions.jsonl", run.fingerprint, heard)
    return conclude(run, asked, rows, against, folder)


def _learned_from(exam: Exam, own: Dataset) -> tuple[str, ...]:
    """A note on the asked rows that the run was trained on, if there are any."""
    asked = {question.example.id for question in exam.questions}
    count = len({example.id for example in own.stream("train") if example.id in asked})
    if not count:
        return ()
    return (f"{count:,} of these {len(exam.questions):,} rows were trained on: on them a score is memory, not skill",)


def of_base(name: str, data: str | Path, home: Path, heard: Heard = lambda count: None) -> Report:
    """A base as it is, by name, on the rows of `data`; answers stand under `home`/evaluations."""
    given = spec.Experiment(model=spec.Model(name=name), data=spec.Data(train=str(data)))
    dataset = _rows(data, given.data, None, home)
    known = facts.inspect(name)
    if known.family == "encoder":
        raise ModelError(f"`{name}` is an encoder: it has no trained head before tuning", hint="evaluate a run of it")
    experiment = presets.resolve(given, known, dataset.task).experiment
    tuned = workbench.bare(experiment.model, ())
    rules = workbench.rules_of(experiment, dataset, tuned.base)
    examples = dataset.examples("train")
    longest = max(len(tuned.base.tokenizer(ask.encode.reference(each)).input_ids) for each in examples) + 1
    asked = _exam(experiment, (examples, str(data), ()), dataset, tuned.base.tokenizer, rules, longest)
    asked = passed(asked, experiment, tuned.base)
    folder = home / "evaluations" / content_id([name, dataset.fingerprint])
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"tuned": ask.by_model(tuned, None, rules, asked.how)}
    rows = answers(asked, sides, folder / "predictions.jsonl", content_id([tuned.base.weights, experiment.seed]), heard)
    subject = _subject("", experiment, asked, dataset.fingerprint, dataset.task)
    told = make(dataclasses.replace(subject, name=name, method="none"), rows, asked.metrics, None, asked.notes)
    told = dataclasses.replace(told, verdict=told.verdict.replace(": tuned ", ": ", 1))
    write_json(told, folder / "report.json")
    return told


def _rows(data: str | Path, like: spec.Data, own: Dataset | None, home: Path) -> Dataset:
    """All rows of `data` as one data set, read and repaired as the run's own were; none is dropped."""
    repairs = tuple(step for step in like.clean if step in get_args(RepairStep) and step != "empty")
    changes = {"train": str(data), "validation": 0.0, "test": 0.0, "clean": repairs, "limit": None, "group_by": None}
    # a mapping stays: the new rows write their classes as the run's own did
    known = own.labels if own is not None and not isinstance(like.labels, dict) else ()
    labels = {"labels": known} if known else {}
    return prepare(like.model_copy(update=changes | labels), home, task=own.task if own is not None else None)
