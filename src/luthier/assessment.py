"""From rows to a report: an exam, its answers, what a judge says of them, the verdict.

Lives here: who is asked which rows, where the answers and the report lie. Does not live here: asking, scoring and the
page (`evaluation/`), what else is asked of a run (`checks.py`), and later (`afterwards.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from luthier import runs, spec, workbench
from luthier.data import gate, openings
from luthier.data.encode import Rules
from luthier.data.examples import Example, content_id
from luthier.data.openings import Opening
from luthier.data.ordering import by_content
from luthier.data.prepare import Dataset
from luthier.evaluation import (
    ask,
    curves,
    differences,
    forgetting,
    metrics,
    predictions,
    report_page,
)
from luthier.evaluation import judge as judging
from luthier.evaluation.predictions import Answer, Answerer, Question
from luthier.evaluation.report import Report, Subject, make, write_json
from luthier.models.base import Base
from luthier.models.methods import Tuned
from luthier.runs import Finding, Run

TOGETHER = 128  # rows asked between two looks at the clock and at whether to stop

Heard = Callable[[int], None]  # told how many rows were answered; may raise to end the work


@dataclasses.dataclass(frozen=True, slots=True)
class Exam:
    """Test rows as questions, the metrics that judge the answers, how answers are made, and notes for the report.

    `openings`: every opening of this test split so far, this one last, once it is opened (`open_test`).
    """

    questions: tuple[Question, ...]
    metrics: tuple[metrics.Metric, ...]
    how: ask.How
    rules: Rules
    split: str
    rows_in_split: int
    notes: tuple[str, ...]
    grouped_by: str | None = None
    openings: tuple[Opening, ...] = ()
    groups: differences.Grouped = dataclasses.field(default_factory=dict)
    checks: Mapping[str, Exam] = dataclasses.field(default_factory=dict)  # other rows, to see what is forgotten
    forgotten: tuple[forgetting.Forgotten, ...] = ()
    found: judging.Found | None = None  # what a judge said


def exam(
    experiment: spec.Experiment,
    dataset: Dataset,
    tokenizer: object,
    rules: Rules,
    longest_answer: int,
    drawn_by: int | None = None,
) -> Exam:
    """The test rows of `dataset`; where it has none, its validation rows, which the notes say.

    `drawn_by`: the seed that draws `evaluation.limit` of them, if it is not the experiment's.
    """
    split = "test" if dataset.counts["test"] else "validation"
    examples = dataset.examples(split)
    notes = () if split == "test" else ("there are no test rows: measured on validation rows, which chose the weights",)
    notes = notes if examples else ("there are neither test nor validation rows: nothing can be measured",)
    seed = experiment.seed if drawn_by is None else drawn_by
    return exam_on(experiment, (examples, split, notes, seed), dataset, tokenizer, rules, longest_answer)


def exam_on(
    experiment: spec.Experiment,
    rows: tuple[list[Example], str, tuple[str, ...], int],
    dataset: Dataset,
    tokenizer: object,
    rules: Rules,
    longest_answer: int,
) -> Exam:
    examples, split, notes, seed = rows
    wishes = experiment.evaluation
    drawn = drawn_from(examples, wishes.limit, seed)
    if len(drawn) < len(examples):
        notes = (*notes, f"{len(drawn):,} of {len(examples):,} rows, drawn by seed {seed}")
    questions, left_out = ask.questions(drawn, tokenizer, rules)
    names = wishes.metrics or ask.metrics_for(dataset.task, questions, dataset.labels)
    text = bool(questions) and all(question.example.kind == "text" for question in questions)
    longest = wishes.max_new_tokens or longest_answer
    how = ask.How(longest, wishes.temperature, experiment.seed, generate=not text)
    judged_by = tuple(metrics.by_name(names))
    groups = differences.grouped(questions, dataset.task, experiment.data.group_by, wishes.slices)
    empty = (f"slice `{name}` has no row" for name, held in groups.get("slice", {}).items() if not held)
    notes = (*notes, *left_out, *empty)
    grouped_by = experiment.data.group_by
    return Exam(tuple(questions), judged_by, how, rules, split, len(examples), notes, grouped_by, groups=groups)


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
    return dataclasses.replace(exam, notes=(*exam.notes, *said, *rounding(base)))


def rounding(base: Base) -> tuple[str, ...]:
    """A note where the same row may be answered otherwise in other company (ENGINE.md §10.12 holds on float32)."""
    if base.dtype == torch.float32 or base.family == "encoder":
        return ()
    precision = str(base.dtype).removeprefix("torch.")
    return (f"answers in {precision}: where two tokens are almost equally likely, rounding may decide between them",)


def drawn_from(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
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
    """Every side's answers to the exam, kept in `path` as they come: an answer given under `key` is not asked again.

    Asked, and kept, in the order of the prompts' tokens: those that begin alike are read together. Given in the exam's.
    """
    watched = {side: _watched(answerer, heard) for side, answerer in sides.items()}
    kept = (exam.grouped_by,) if exam.grouped_by else ()
    near = [exam.questions[i] for i in by_content([question.encoded for question in exam.questions])]
    rows = predictions.collect(near, watched, exam.metrics, path, key, kept)
    found = {question.example.id: row for question, row in zip(near, rows, strict=True)}
    return [found[question.example.id] for question in exam.questions]


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


def open_test(run: Run, exam: Exam) -> Exam:
    """The exam of the run's own test rows, that the run opens them written down; to be called before the first answer.

    Rows of validation, which chose the weights, are under no lock.
    """
    if exam.split != "test" or not exam.questions:
        return exam
    return opened(exam, workbench.dataset_of(run), run.id, len(exam.questions))


def opened(exam: Exam, dataset: Dataset, who: str, rows: int) -> Exam:
    found = openings.opened(dataset, who, rows)
    return dataclasses.replace(exam, openings=found, notes=(*exam.notes, *_opened_before(found[:-1])))


def _opened_before(found: Sequence[Opening]) -> tuple[str, ...]:
    """A note on the looks that were taken at these test rows before, if there are any."""
    if not found:
        return ()
    times = "once" if len(found) == 1 else f"{len(found)} times"
    by = ", ".join(opening.run for opening in found[-3:])
    said = f"this test set was opened {times} before ({'… ' if len(found) > 3 else ''}{by})"
    return (f"{said}: if that led to a choice made since, scores and p values here are optimistic",)


def judged(
    wishes: spec.Judge | None, exam: Exam, rows: Sequence[predictions.Row], folder: Path, heard: Heard
) -> tuple[Exam, list[predictions.Row]]:
    """The rows with what the judge says of them, and the exam with its metric; as they were where nobody judges."""
    if wishes is None or not rows:
        return exam, list(rows)
    if not exam.how.generate:
        said = "plain text has no answers: there is nothing for a judge"
        return dataclasses.replace(exam, notes=(*exam.notes, said)), list(rows)
    found = judging.judge(rows, wishes, folder, heard)
    asked = [found.metric if each.name == judging.NAME else each for each in exam.metrics]
    asked += [] if found.metric in asked else [found.metric]
    notes = (*exam.notes, *found.notes)
    return dataclasses.replace(exam, metrics=tuple(asked), notes=notes, found=found), found.rows


def made(subject: Subject, exam: Exam, rows: Sequence[predictions.Row], fit: str | None) -> Report:
    told = make(subject, rows, exam.metrics, fit, exam.notes, exam.grouped_by)
    verdicts = exam.found.judged.scored(told.scores.get(judging.NAME)) if exam.found else None
    where = _where(told, rows, exam)
    return dataclasses.replace(
        told, openings=exam.openings, differences=where, forgetting=exam.forgotten, judge=verdicts
    )


def conclude(run: Run, exam: Exam, rows: Sequence[predictions.Row], against: str, folder: Path) -> Report:
    """Score the answers, write report.json and report.html to `folder`, give the report."""
    experiment = workbench.experiment_of(run)
    events = runs.read_events(run.path)
    curve = curves.from_events(events)
    subject = subject_of(run.id, experiment, exam, run.facts["dataset"], run.facts["task"])
    subject = dataclasses.replace(subject, name=run.name, against=against)
    went = curves.fit(curve, _knobs(experiment, events))
    told = made(subject, exam, rows, went.words if went else None)
    write(run, told, rows, folder, exam.metrics)
    return told


def write(
    run: Run, told: Report, rows: Sequence[predictions.Row], folder: Path, known: Sequence[metrics.Metric]
) -> None:
    """Write report.json and report.html of `run` to `folder`."""
    write_json(told, folder / "report.json")
    origins = json.loads((run.path / "origins.json").read_text(encoding="utf-8"))
    leaves = spec.leaves(workbench.experiment_of(run))
    settings = [(path, value, origins.get(path, "")) for path, value in leaves.items()]
    curve = curves.from_events(runs.read_events(run.path))
    report_page.write_html(told, rows, folder / "report.html", curve, settings, known)


def _where(told: Report, rows: Sequence[predictions.Row], exam: Exam) -> tuple[differences.Slice, ...]:
    """Where tuning helped and hurt, under the first metric that has a score."""
    lead = next((metric for metric in exam.metrics if metric.name in told.scores), None)
    return differences.slices(rows, lead, exam.groups) if lead is not None else ()


def _knobs(experiment: spec.Experiment, events: Sequence[runs.Event]) -> curves.Knobs:
    training, method = experiment.training, experiment.method
    steps = [event.steps for event in events if isinstance(event, runs.Started)]
    dropout = method.dropout if isinstance(method, spec.Lora | spec.QLora) else None
    last = steps[-1] if steps else 0
    return curves.Knobs(training.num_epochs, training.learning_rate, last, training.max_steps, dropout)


def subject_of(run: str, experiment: spec.Experiment, exam: Exam, dataset: str, task: str) -> Subject:
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
