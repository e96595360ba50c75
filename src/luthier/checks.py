"""What else is asked of a run, to see what tuning has spoiled: general texts, and the rows of `evaluation.regression`.

Lives here: those exams, both sides of them. Does not live here: the test itself (`assessment.py`), the texts and what
a difference means (`evaluation/forgetting.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from luthier import assessment, spec, workbench
from luthier.assessment import Exam, Heard
from luthier.data import encode
from luthier.data.prepare import load_dataset
from luthier.data.templates import placeholders
from luthier.evaluation import ask, forgetting, metrics, predictions
from luthier.models.base import Base
from luthier.models.methods import Tuned
from luthier.runs import Run


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
    made = assessment.exam_on(
        experiment.model_copy(update=like),
        (examples, split, (), experiment.seed),
        dataset,
        base.tokenizer,
        rules,
        longest,
    )
    return dataclasses.replace(made, notes=tuple(f"evaluation.regression: {note}" for note in made.notes))


def ask_base(run: Run, exam: Exam, tuned: Tuned, heard: Heard) -> None:
    """The base's side of every check; asked before anything is trained, like the base's side of the exam."""
    for name, check in exam.checks.items():
        sides = {"base": ask.by_model(tuned, None, check.rules, check.how)}
        assessment.answers(check, sides, _check_file(run, f"base_{name}"), run.fingerprint, heard)


def checked(run: Run, exam: Exam, tuned: Tuned, heard: Heard) -> Exam:
    """The exam with what was forgotten: the tuned side of every check beside the base's, which `ask_base` left."""
    found: list[forgetting.Forgotten] = []
    for name, check in exam.checks.items():
        before = assessment.as_given(predictions.read(_check_file(run, f"base_{name}")), "base")
        sides = {"base": before, "tuned": ask.by_model(tuned, 0, check.rules, check.how)}
        rows = assessment.answers(check, sides, _check_file(run, name), run.fingerprint, heard)
        found += forgetting.compare(rows, tuned.base.facts.vocab_size)
    return dataclasses.replace(exam, forgotten=tuple(found))


def _check_file(run: Run, name: str) -> Path:
    folder = run.path / "forgetting"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.jsonl"
