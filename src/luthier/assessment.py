"""From rows to a report: of a run's tuned model and its base, of a run on other rows, of a base alone.

Lives here: who is asked which rows, where the answers and the report lie. Does not live here: asking, scoring and the
page (`evaluation/`), bringing models into memory (`workbench.py`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from luthier import presets, runs, spec, workbench
from luthier.data import encode, gate, openings
from luthier.data.encode import Rules
from luthier.data.examples import Example, content_id
from luthier.data.openings import Opening
from luthier.data.ordering import by_content
from luthier.data.prepare import Dataset, load_dataset, prepare
from luthier.data.templates import placeholders
from luthier.errors import ModelError, SpecError
from luthier.evaluation import (
    ask,
    curves,
    differences,
    endpoint,
    forgetting,
    metrics,
    predictions,
    report_page,
    seeds,
    served,
)
from luthier.evaluation import judge as judging
from luthier.evaluation.predictions import Answer, Answerer, Question
from luthier.evaluation.report import Report, Subject, make, read_json, write_json
from luthier.evaluation.seeds import Seeds
from luthier.models import facts
from luthier.models.base import Base
from luthier.models.methods import Tuned
from luthier.runs import Finding, Run
from luthier.spec.parameters import RepairStep

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
    return _exam(experiment, (examples, split, notes, seed), dataset, tokenizer, rules, longest_answer)


def _exam(
    experiment: spec.Experiment,
    rows: tuple[list[Example], str, tuple[str, ...], int],
    dataset: Dataset,
    tokenizer: object,
    rules: Rules,
    longest_answer: int,
) -> Exam:
    examples, split, notes, seed = rows
    wishes = experiment.evaluation
    drawn = _drawn(examples, wishes.limit, seed)
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
    return _opened(exam, workbench.dataset_of(run), run.id, len(exam.questions))


def _opened(exam: Exam, dataset: Dataset, who: str, rows: int) -> Exam:
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


# ---------------------------------------------------------------------------------------------------- what is forgotten


def with_checks(exam: Exam, run: Run, experiment: spec.Experiment, base: Base) -> Exam:
    """The exam with the rows beside it: general texts, and those of `evaluation.regression`; or a note on why not."""
    if not experiment.evaluation.compare_base:
        return exam
    why_not, checks = forgetting.not_applicable(exam.rules), {}
    if why_not is None:
        asked, rules = forgetting.questions(base.tokenizer, exam.rules), forgetting.plain(exam.rules)
        how, judged_by = ask.How(1, generate=False), (metrics.METRICS["perplexity"],)
        checks["general"] = Exam(asked, judged_by, how, rules, "", len(asked), ())
    if "regression" in run.facts:
        checks["regression"] = _regression(run, experiment, base)
    said = (*((why_not,) if why_not else ()), *(note for check in checks.values() for note in check.notes))
    return dataclasses.replace(exam, notes=(*exam.notes, *said), checks=checks)


def _regression(run: Run, experiment: spec.Experiment, base: Base) -> Exam:
    """The rows that must not be spoiled, asked as this base is asked for any row."""
    dataset = load_dataset(run.path.parents[1] / "data" / run.facts["regression"])
    examples, split = dataset.examples("train"), "evaluation.regression"
    template = experiment.data.template  # holds for these rows too, if they have its columns
    fits = template and all(set(placeholders(template)) <= set(example.columns) for example in examples)
    rules = dataclasses.replace(workbench.rules_of(experiment, dataset, base), template=template if fits else None)
    rules = dataclasses.replace(rules, max_seq_length=forgetting.room(rules), overlength="drop")
    answered = any(example.kind != "text" for example in examples)
    judged_by = ("perplexity", "exact_match") if answered else ("perplexity",)
    wishes: dict[str, object] = {"metrics": judged_by, "slices": {}, "max_new_tokens": None}
    like = {"evaluation": experiment.evaluation.model_copy(update=wishes)}
    longest = max(len(base.tokenizer(encode.reference(each)).input_ids) for each in examples) + 1
    made = _exam(
        experiment.model_copy(update=like),
        (examples, split, (), experiment.seed),
        dataset,
        base.tokenizer,
        rules,
        longest,
    )
    return dataclasses.replace(made, notes=tuple(f"evaluation.regression: {note}" for note in made.notes))


def check_base(run: Run, exam: Exam, tuned: Tuned, heard: Heard) -> None:
    """The base's side of every check; asked before anything is trained, like the base's side of the exam."""
    for name, check in exam.checks.items():
        sides = {"base": ask.by_model(tuned, None, check.rules, check.how)}
        answers(check, sides, _check_file(run, f"base_{name}"), run.fingerprint, heard)


def checked(run: Run, exam: Exam, tuned: Tuned, heard: Heard) -> Exam:
    """The exam with what was forgotten: the tuned side of every check beside the base's, which `check_base` left."""
    found: list[forgetting.Forgotten] = []
    for name, check in exam.checks.items():
        before = as_given(predictions.read(_check_file(run, f"base_{name}")), "base")
        sides = {"base": before, "tuned": ask.by_model(tuned, 0, check.rules, check.how)}
        rows = answers(check, sides, _check_file(run, name), run.fingerprint, heard)
        found += forgetting.compare(rows, tuned.base.facts.vocab_size)
    return dataclasses.replace(exam, forgotten=tuple(found))


def _check_file(run: Run, name: str) -> Path:
    folder = run.path / "forgetting"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.jsonl"


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


def _made(subject: Subject, exam: Exam, rows: Sequence[predictions.Row], fit: str | None) -> Report:
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
    subject = _subject(run.id, experiment, exam, run.facts["dataset"], run.facts["task"])
    subject = dataclasses.replace(subject, name=run.name, against=against)
    went = curves.fit(curve, _knobs(experiment, events))
    told = _made(subject, exam, rows, went.words if went else None)
    _write(run, told, rows, folder, exam.metrics)
    return told


def _write(
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
    asked, rows = judged(experiment.evaluation.judge, asked, rows, folder, heard)
    return conclude(run, asked, rows, before.subject.against, folder)


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
    asked = _exam(experiment, drawn, own, tuned.base.tokenizer, rules, longest)
    asked = passed(asked, experiment, tuned.base)
    asked = dataclasses.replace(asked, notes=(*asked.notes, *_learned_from(asked, own)))
    if again := _of_split(asked, own, "test"):
        asked = _opened(asked, own, f"{run.id} evaluate", again)
    sides, against = {"tuned": ask.by_model(tuned, 0, rules, asked.how)}, "base"
    if experiment.evaluation.compare_base:
        bare = tuned if not tuned.full else workbench.base_of(run)
        sides["base"], against = base_answerer(asked, bare, own.stream("train"))
    folder = run.path / "evaluations" / dataset.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    rows = answers(asked, sides, folder / "predictions.jsonl", run.fingerprint, heard)
    asked, rows = judged(experiment.evaluation.judge, asked, rows, folder, heard)
    return conclude(run, asked, rows, against, folder)


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
    _write(first, told, list(answered[0].values()), first.path, known)
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
    asked = _exam(experiment, drawn, dataset, tuned.base.tokenizer, rules, longest)
    asked = passed(asked, experiment, tuned.base)
    folder = home / "evaluations" / content_id([name, dataset.fingerprint])
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"tuned": ask.by_model(tuned, None, rules, asked.how)}
    rows = answers(asked, sides, folder / "predictions.jsonl", content_id([tuned.base.weights, experiment.seed]), heard)
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
    asked, judged_rows = judged(experiment.evaluation.judge, asked, rows, folder, heard)
    subject = _subject("", experiment, asked, dataset.fingerprint, dataset.task)
    subject = dataclasses.replace(subject, name=experiment.model.name, method="none")
    told = _made(subject, asked, judged_rows, None)
    told = dataclasses.replace(told, verdict=told.verdict.replace(": tuned ", ": ", 1))
    write_json(told, folder / "report.json")
    return told


def _of_endpoint(given: spec.Experiment, data: str | Path, dataset: Dataset, home: Path, heard: Heard) -> Report:
    """A model behind an endpoint; a row that it did not answer is left out and said, and asked again next time."""
    model, wishes = given.model, given.evaluation
    endpoint.require(model.base_url, f"`{model.name}`")
    examples = dataset.examples("train")
    drawn = {example.id: example for example in _drawn(examples, wishes.limit, given.seed)}.values()
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
